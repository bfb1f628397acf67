"""macOS: wait for the exits of many processes with kqueue's NOTE_EXIT, for exit_watcher."""

from __future__ import annotations

import contextlib
import os
import select
import sys

from tasks.system.macos import process_table as table
from tasks.system.process import Identity, alive

assert sys.platform == "darwin"


class KqueueWaiter:
    """NOTE_EXIT fires for any process of this user, and is believed.

    It fires before the process is a zombie (XNU kern_exit.c), so that asking the process table right after it finds the
    process alive, and the event is spent (libuv issues 3504, 3521).
    """

    def __init__(self, wake_pipe: int) -> None:
        self._wake_pipe = wake_pipe
        self._watched: dict[int, Identity] = {}
        self._queue = select.kqueue()
        self._queue.control([select.kevent(wake_pipe, select.KQ_FILTER_READ, select.KQ_EV_ADD)], 0)

    def follow(self, wanted: set[Identity]) -> set[Identity]:
        """Watch exactly these; return those that are dead already."""
        for pid, identity in tuple(self._watched.items()):
            if identity not in wanted:
                self._drop(pid)
        dead: set[Identity] = set()
        for identity in wanted - set(self._watched.values()):
            dead |= self._add(identity)
        return dead

    def wait(self) -> set[Identity]:
        """Wait until one exits or the pipe is written to; return the dead."""
        events = self._queue.control(None, 16, None)
        if any(event.filter == select.KQ_FILTER_READ for event in events):
            drain(self._wake_pipe)
        exited = [event.ident for event in events if event.filter == select.KQ_FILTER_PROC]
        return {self._watched.pop(pid) for pid in exited if pid in self._watched}

    def close(self) -> None:
        """Let go of what was held."""
        self._queue.close()

    def _add(self, identity: Identity) -> set[Identity]:
        """Watch a process; return who is dead: itself, or the one whose pid it has now."""
        if not alive(identity):
            return {identity}
        dead = {self._drop(identity.pid)} if identity.pid in self._watched else set[Identity]()
        try:
            self._queue.control([table.exit_event(identity.pid, select.KQ_EV_ADD | select.KQ_EV_ONESHOT)], 0)
        except ProcessLookupError:
            return dead | {identity}
        self._watched[identity.pid] = identity
        return dead if alive(identity) else dead | {self._drop(identity.pid)}

    def _drop(self, pid: int) -> Identity:
        """Remove the filter with an event that it may hold: the next process of that pid would get it."""
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has exited
            self._queue.control([table.exit_event(pid, select.KQ_EV_DELETE)], 0)
        return self._watched.pop(pid)


def drain(pipe: int) -> None:
    """Empty the pipe that woke us; it does not block."""
    with contextlib.suppress(BlockingIOError):
        while os.read(pipe, 4096):
            pass
