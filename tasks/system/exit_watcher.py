"""Notice within milliseconds that a process ended, also one that is not our child.

psutil and waitpid cannot: the first polls until the process is reaped, the second knows children alone.
Linux has pidfds, macOS has kqueue's NOTE_EXIT; both are waited on by one thread that a pipe can wake.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

from tasks.system.process import Identity


class ExitWatcher(threading.Thread):
    """Watches processes and calls `on_exit(name, identity)` once for each that ends.

    The call comes from this thread, must be short, and must not raise. A process that is dead already
    when it is added is reported too, so no death falls between two worlds.
    """

    def __init__(self, on_exit: Callable[[str, Identity], None]) -> None:
        super().__init__(name="exits", daemon=True)
        self._on_exit = on_exit
        self._watched: dict[str, Identity] = {}
        self._lock = threading.Lock()
        self._open = True
        self._woken, self._wake_fd = os.pipe()
        os.set_blocking(self._wake_fd, False)
        os.set_blocking(self._woken, False)

    def watch(self, name: str, identity: Identity) -> None:
        """Watch a service's process, in place of the one watched under that name before."""
        with self._lock:
            self._watched[name] = identity
        self._interrupt()

    def forget(self, name: str) -> None:
        """Stop watching; a death that was noticed already may still be reported."""
        with self._lock:
            self._watched.pop(name, None)
        self._interrupt()

    def close(self) -> None:
        """End the thread and wait for it."""
        self._open = False
        self._interrupt()
        self.join()
        os.close(self._wake_fd)
        os.close(self._woken)

    def run(self) -> None:
        """Wait for deaths and for changes of what is watched."""
        waiter = _waiter(self._woken)
        while self._open:
            self.step(waiter)
        waiter.close()

    def step(self, waiter: ExitWaiter) -> None:
        """Report those who are dead; wait for a death, or a change of what is watched, when none is."""
        with self._lock:
            wanted = dict(self._watched)
        self._report(wanted, waiter.follow(set(wanted.values())) or waiter.wait())

    def _report(self, wanted: Mapping[str, Identity], dead: set[Identity]) -> None:
        for name, identity in wanted.items():
            if identity in dead and self._settle(name, identity):
                self._on_exit(name, identity)

    def _settle(self, name: str, identity: Identity) -> bool:
        """Take a dead process off the list; False when it was forgotten or replaced meanwhile."""
        with self._lock:
            if self._watched.get(name) != identity:
                return False
            del self._watched[name]
        return True

    def _interrupt(self) -> None:
        try:
            os.write(self._wake_fd, b"!")
        except BlockingIOError:
            return  # a full pipe wakes the thread as well


class ExitWaiter(Protocol):
    """What the two systems offer."""

    def follow(self, wanted: set[Identity]) -> set[Identity]:
        """Watch exactly these; return those that are dead already."""
        ...

    def wait(self) -> set[Identity]:
        """Wait until one dies or the pipe is written to; return the dead."""
        ...

    def close(self) -> None:
        """Let go of what was held."""
        ...


def _waiter(wake_pipe: int) -> ExitWaiter:
    if sys.platform == "linux":
        from tasks.system.linux.pidfd_waiter import PidfdWaiter

        return PidfdWaiter(wake_pipe)
    from tasks.system.macos.kqueue_waiter import KqueueWaiter

    return KqueueWaiter(wake_pipe)
