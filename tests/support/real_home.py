"""No test may touch the home of the person who runs it: `~/.mlxq` refuses every access from this process.

A thread that outlives its test is how that happens, or an object that asked for the home when it was imported. The
hook raises where the access is made, and keeps the stack, so that the test that is running fails also for a thread
whose error no one sees.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path

REAL = os.fspath(Path("~/.mlxq").expanduser().absolute())
EVENTS = {"open", "sqlite3.connect", "os.mkdir", "os.remove", "os.rename", "os.scandir", "os.listdir", "os.chmod"}
EXISTED = Path(REAL).exists()
touched: list[str] = []
"""The stack of each access, until a test takes it."""


class TouchedRealHomeError(RuntimeError):
    """A test reached for the real home."""


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if event not in EVENTS or not arguments or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    path = os.fsdecode(arguments[0])  # pyright: ignore[reportArgumentType]
    if path.removeprefix("file:").startswith(REAL):
        touched.append(f"{event} {path} in {threading.current_thread().name}\n{''.join(traceback.format_stack()[:-1])}")
        raise TouchedRealHomeError(f"{event} {path}")


def guard() -> None:
    """Refuse every access to the real home from now on, for the life of this process."""
    sys.addaudithook(_refuse)


def taken() -> str:
    """Return the stacks of the accesses since the last call, and whether a child has made the home meanwhile."""
    stacks = "\n".join(touched)
    touched.clear()
    return stacks or ("a process made it" if Path(REAL).exists() and not EXISTED else "")
