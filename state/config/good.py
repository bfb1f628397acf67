"""The last valid version of a file that users edit, kept beside it in run/good.

It is what counts while the file is wrong, also for a worker that was started since.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from state import files
from state.config import text
from state.paths import Home


def _copy(home: Home, name: str) -> Path:
    return home.run / "good" / name


def folder(home: Home, name: str) -> Path:
    """Return where the last valid files of a folder are kept."""
    return _copy(home, name)


def read(home: Home, name: str) -> str | None:
    """Return the last valid text of a file; None where none was kept."""
    try:
        return text.read(_copy(home, name))
    except text.Unreadable:
        return None


def keep(home: Home, name: str, valid: str) -> None:
    """Keep the text of a valid file. A home that is not there is not made, and one that cannot be written is left."""
    if home.run.is_dir() and read(home, name) != valid:
        copy = _copy(home, name)
        with contextlib.suppress(OSError):
            copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.replace_private(copy, valid)
