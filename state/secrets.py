"""The keys, as NAME=value lines in a file that only its user can read. They reach children by environment alone."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from state import files
from state.errors import Damaged, MlxqError

MASTER = "LITELLM_MASTER_KEY"
"""Opens the gateway; mlxq's own commands use it."""
TIER = "MLXQ_TIER_KEY"
"""Opens the engines; only the gateway and the watchdog know it."""
PAGE = "MLXQ_PAGE_KEY"
"""Signs the page's links and cookies, and the key with which Prometheus reads the metrics."""
SHELL = "MLXQ_SHELL_KEY"
"""The app's key that `mlxq connect env` prints, again and again; the others are kept as hashes alone."""
CLOUD = "OPENROUTER_API_KEY"
"""The user's own; present only when they gave one."""

MADE = frozenset({MASTER, TIER, PAGE})
"""Those without which no service starts."""
_LINE = r"([A-Z][A-Z0-9_]*)=([\x21-\x7e]+)"


def read(path: Path) -> dict[str, str]:
    """Return every key in the file by name; an absent file holds none.

    Raises Damaged when a line is no NAME=value, and MlxqError when others may read the file or it cannot be read.
    """
    lines = [line for line in _text(path).splitlines() if line and not line.startswith("#")]
    matches = [re.fullmatch(_LINE, line) for line in lines]
    if not all(matches):
        raise Damaged(
            f"{path} has a line that is not NAME=value.",
            hint=f"rm {path} && mlxq setup   # makes new keys",
        )
    return {match[1]: match[2] for match in matches if match}


def _text(path: Path) -> str:
    """Read the private file of secrets; an absent one is empty."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as problem:
        raise Damaged(f"Cannot read the keys in {path}.", hint=f"ls -l {path}") from problem
    if mode & 0o077:
        raise MlxqError(f"Other users may read {path} (mode {mode:04o}).", hint=f"chmod 600 {path}")
    return text


def write(path: Path, keys: Mapping[str, str]) -> None:
    """Replace the file in one step, mode 0600. Raises MlxqError when a key has blanks or the place is not writable."""
    lines = [f"{name}={value}" for name, value in sorted(keys.items())]
    if wrong := next((line for line in lines if not re.fullmatch(_LINE, line)), None):
        raise MlxqError(f"{wrong.partition('=')[0]} must be printable characters without blanks.")
    try:
        files.replace_private(path, "\n".join([*lines, ""]))
    except OSError as problem:
        raise _unwritten(path, problem) from problem


def _unwritten(path: Path, problem: OSError) -> MlxqError:
    return MlxqError(f"Cannot write the keys to {path}: {problem.strerror}.")


def _changing(path: Path) -> AbstractContextManager[None]:
    """Let one process at a time change the keys: a command, the worker, the page."""
    return files.changing(path, lambda problem: _unwritten(path, problem))


def ensure(path: Path) -> dict[str, str]:
    """Return the keys, making those of mlxq that are missing; keys that exist never change."""
    keys = read(path)
    if keys.keys() >= MADE:
        return keys
    with _changing(path):
        keys = read(path)
        keys |= {name: generate() for name in MADE - keys.keys()}
        write(path, keys)
    return keys


def put(path: Path, name: str, value: str | None) -> None:
    """Set one key, or take it out with None."""
    with _changing(path):
        keys = read(path)
        keys.pop(name, None)
        write(path, keys if value is None else {**keys, name: value})


def generate() -> str:
    """Make a key of 256 random bits, in the form that OpenAI clients expect."""
    import secrets  # hmac, and with it OpenSSL

    return f"sk-mlxq-{secrets.token_urlsafe(32)}"
