"""Services whose weights cannot be read are started when they can: their folders are looked at until they are back.

A look may hang, so it runs in a thread, one at a time a folder; the watchdog reads what the latest one found.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from state import stack
from state.db import Database
from state.errors import DiskUnavailable, NotFound, NotSetUp
from tasks.weights import model_dir
from tasks.weights.model_dir import ModelDir

FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 30.0
"""Between two looks at a folder that stays away; each pause is twice the one before."""


@dataclass
class _Folder:
    """What is known of one folder that is away."""

    next_look: float
    """Monotonic seconds."""
    pause_s: float = FIRST_PAUSE_S
    looking: bool = False
    problem: str = ""
    """What the latest look found; empty before the first one ended."""
    back: bool = False


class DiskWatch:
    """The folders that services wait for; it belongs to one thread, which is never held up."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._folders: dict[Path, _Folder] = {}

    def returned(self, db: Database, waiting: list[str]) -> list[str]:
        """Return those of the waiting services whose folders can be read again; start the looks that are due."""
        by_folder: dict[Path, list[str]] = {}
        for name in waiting:
            if weights := _weights(db, name):
                by_folder.setdefault(weights.parent, []).append(name)
        for path in self._folders.keys() - by_folder.keys():
            del self._folders[path]
        return [name for path, names in by_folder.items() if self._is_back(db, path) for name in names]

    def _is_back(self, db: Database, path: Path) -> bool:
        now = self._clock()
        folder = self._folders.setdefault(path, _Folder(next_look=now))
        if folder.back:
            del self._folders[path]
            return True
        if not folder.looking and now >= folder.next_look:
            folder.looking = True
            expected = model_dir.expected(db, path)
            threading.Thread(target=self._look, args=(folder, expected), name=f"disk-{path.name}", daemon=True).start()
        return False

    def _look(self, folder: _Folder, expected: ModelDir) -> None:
        """Look once, however long it takes."""
        try:
            model_dir.look(expected)
        except DiskUnavailable as problem:
            if problem.message != folder.problem:
                folder.pause_s = FIRST_PAUSE_S
            folder.problem = problem.message
            folder.next_look = self._clock() + folder.pause_s
            folder.pause_s = min(LONGEST_PAUSE_S, 2 * folder.pause_s)
            folder.looking = False
        else:
            folder.back = True


def _weights(db: Database, name: str) -> Path | None:
    """Return the folder of an engine's weights; None for one that is gone or has none."""
    try:
        weights = stack.engine(db, name).weights
    except (NotFound, NotSetUp):
        return None
    return Path(weights) if weights else None
