"""Other programs' files: written in one step, and kept five times before."""

from __future__ import annotations

from pathlib import Path

from state import files
from state.errors import MlxqError, NotFound, UsageProblem
from state.paths import Home

KEPT = 5
NONE = ".none"
"""Ends the name of a backup that says that there was no file."""


def read(path: Path) -> str | None:
    """Give a file's text, None when there is none. Raises UsageProblem when it is no text or cannot be read."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageProblem(f"Cannot read {path}: {problem}.", done="It was left as it is.") from problem


def save(home: Home, client: str, text: str | None) -> None:
    """Keep a file as it was, the newest of five. `text` is None for a file that was not there."""
    folder = home.root / "backups" / client
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    kept = kept_backups(home, client)
    number = int(kept[-1].name.partition(".")[0]) + 1 if kept else 1
    write(folder / f"{number:06}{NONE if text is None else ''}", text or "", mode=0o600)
    for old in kept[: max(0, len(kept) + 1 - KEPT)]:
        old.unlink(missing_ok=True)


def kept_backups(home: Home, client: str) -> list[Path]:
    """Give what is kept of a client's file, oldest first."""
    return sorted(each for each in (home.root / "backups" / client).glob("[0-9]*") if each.is_file())


def newest(home: Home, client: str) -> tuple[Path, str | None]:
    """Give the newest backup and the text it holds, None for no file. Raises NotFound."""
    kept = kept_backups(home, client)
    if not kept:
        raise NotFound(f"Nothing of {client} is kept.", hint=f"mlxq connect {client}")
    return kept[-1], None if kept[-1].name.endswith(NONE) else kept[-1].read_bytes().decode()


def write(path: Path, text: str | None, *, mode: int) -> None:
    """Put a text, or with None no file, in place in one step; a link stays one. Raises MlxqError."""
    path = path.resolve()
    try:
        if text is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, text.encode(), mode)
    except OSError as problem:
        raise MlxqError(
            f"Cannot write {path}: {problem.strerror}.", done="It is as it was.", hint=f"ls -la {path.parent}"
        ) from problem
