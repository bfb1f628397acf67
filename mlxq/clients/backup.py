"""Other programs' files: written atomically, with the last five versions as backups."""

from __future__ import annotations

from pathlib import Path

from state import files
from state.errors import MlxqError, NotFound, UsageProblem
from state.paths import Home

KEPT = 5
NONE = ".none"
"""Suffix of a backup that stands for a missing file."""


def read(path: Path) -> str | None:
    """Return a file's text; None if it does not exist. Raises UsageProblem if it is not readable text."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageProblem(f"Cannot read {path}: {problem}.", done="The file was not changed.") from problem


def save(home: Home, client: str, text: str | None) -> None:
    """Store a backup and delete all but the last five. `text` is None for a missing file."""
    folder = home.root / "backups" / client
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    backups = kept_backups(home, client)
    number = int(backups[-1].name.partition(".")[0]) + 1 if backups else 1
    write(folder / f"{number:06}{NONE if text is None else ''}", text or "", mode=0o600)
    for old in backups[: max(0, len(backups) + 1 - KEPT)]:
        old.unlink(missing_ok=True)


def kept_backups(home: Home, client: str) -> list[Path]:
    """Return the backups of a client's file, oldest first."""
    return sorted(file for file in (home.root / "backups" / client).glob("[0-9]*") if file.is_file())


def newest(home: Home, client: str) -> tuple[Path, str | None]:
    """Return the newest backup and its text, None for a missing file. Raises NotFound."""
    backups = kept_backups(home, client)
    if not backups:
        raise NotFound(f"There is no backup of the configuration of {client}.", hint=f"mlxq connect {client}")
    return backups[-1], None if backups[-1].name.endswith(NONE) else backups[-1].read_bytes().decode()


def write(path: Path, text: str | None, *, mode: int) -> None:
    """Write a file atomically, or delete it if `text` is None; a symbolic link is kept. Raises MlxqError."""
    path = path.resolve()
    try:
        if text is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, text.encode(), mode)
    except OSError as problem:
        raise MlxqError(
            f"Cannot write {path}: {problem.strerror}.", done="The file was not changed.", hint=f"ls -la {path.parent}"
        ) from problem
