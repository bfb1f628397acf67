"""Notice within milliseconds that a process ended, also one that is not our child.

psutil and waitpid cannot: the first polls until the process is reaped, the second knows children alone.
Linux has pidfds, macOS has kqueue's NOTE_EXIT; both are waited on by one thread that a pipe can wake.
"""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable
from typing import Protocol

from tasks.system.process import Identity, alive, pin


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
        deaths = _deaths(self._woken)
        while self._open:
            with self._lock:
                wanted = dict(self._watched)
            dead = deaths.follow(set(wanted.values())) or deaths.wait()
            for name, identity in wanted.items():
                if identity in dead and self._settle(name, identity):
                    self._on_exit(name, identity)
        deaths.close()

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


class _ExitWaiter(Protocol):
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


class _Pidfds:
    """Linux: a pidfd becomes readable when its process ends."""

    def __init__(self, woken: int) -> None:
        self._woken = woken
        self._held: dict[Identity, int] = {}
        self._poll = select.poll()
        self._poll.register(woken, select.POLLIN)

    def follow(self, wanted: set[Identity]) -> set[Identity]:
        for identity in self._held.keys() - wanted:
            self._drop(identity)
        return {identity for identity in wanted - self._held.keys() if not self._add(identity)}

    def wait(self) -> set[Identity]:
        ready = {descriptor for descriptor, _ in self._poll.poll()}
        if self._woken in ready:
            _drain(self._woken)
        dead = {identity for identity, descriptor in self._held.items() if descriptor in ready}
        for identity in dead:
            self._drop(identity)
        return dead

    def close(self) -> None:
        for identity in tuple(self._held):
            self._drop(identity)

    def _add(self, identity: Identity) -> bool:
        descriptor = pin(identity)
        if descriptor is None:
            return False
        self._held[identity] = descriptor
        self._poll.register(descriptor, select.POLLIN)
        return True

    def _drop(self, identity: Identity) -> None:
        descriptor = self._held.pop(identity)
        self._poll.unregister(descriptor)
        os.close(descriptor)


def _drain(pipe: int) -> None:
    """Empty the pipe that woke us."""
    try:
        while os.read(pipe, 4096):
            pass
    except BlockingIOError:
        return


if sys.platform == "linux":

    def _deaths(woken: int) -> _ExitWaiter:
        return _Pidfds(woken)

else:
    from tasks.system.process import exit_event

    class _Kqueue:
        """macOS: NOTE_EXIT fires for any process of this user."""

        def __init__(self, woken: int) -> None:
            self._woken = woken
            self._held: set[Identity] = set()
            self._queue = select.kqueue()
            self._queue.control([select.kevent(woken, select.KQ_FILTER_READ, select.KQ_EV_ADD)], 0)

        def follow(self, wanted: set[Identity]) -> set[Identity]:
            self._held &= wanted
            return {identity for identity in wanted - self._held if not self._add(identity)}

        def wait(self) -> set[Identity]:
            ready = {event.ident for event in self._queue.control(None, 16, None)}
            if self._woken in ready:
                _drain(self._woken)
            dead = {identity for identity in self._held if identity.pid in ready and not alive(identity)}
            self._held -= dead
            return dead

        def close(self) -> None:
            self._queue.close()

        def _add(self, identity: Identity) -> bool:
            try:
                self._queue.control([exit_event(identity.pid)], 0)
            except ProcessLookupError:
                return False
            if not alive(identity):
                return False
            self._held.add(identity)
            return True

    def _deaths(woken: int) -> _ExitWaiter:
        return _Kqueue(woken)
