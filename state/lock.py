"""Locks that die with their holder: the kernel frees them at a process's death."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO, Any


def take(file: IO[Any]) -> bool:
    """Take the lock of an open file without waiting; return whether it is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def held(path: Path) -> bool:
    """Return whether a living process holds a lock. Those who ask at once do not take each other for a holder."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def wait(path: Path) -> None:
    """Wait until no process holds a lock; a signal that ends this process ends the wait."""
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
