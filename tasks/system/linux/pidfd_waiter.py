"""Linux: wait for the exits of many processes with pidfds, for exit_watcher."""

from __future__ import annotations

import contextlib
import os
import select

from tasks.system.process import Identity, pin


class PidfdWaiter:
    """A pidfd becomes readable when its process exits (pidfd_open(2))."""

    def __init__(self, wake_pipe: int) -> None:
        self._wake_pipe = wake_pipe
        self._watched: dict[Identity, int] = {}
        self._poll = select.poll()
        self._poll.register(wake_pipe, select.POLLIN)

    def follow(self, wanted: set[Identity]) -> set[Identity]:
        """Watch exactly these; return those that are dead already."""
        for identity in self._watched.keys() - wanted:
            self._drop(identity)
        return {identity for identity in wanted - self._watched.keys() if not self._add(identity)}

    def wait(self) -> set[Identity]:
        """Wait until one exits or the pipe is written to; return the dead."""
        ready = {descriptor for descriptor, _ in self._poll.poll()}
        if self._wake_pipe in ready:
            with contextlib.suppress(BlockingIOError):
                while os.read(self._wake_pipe, 4096):
                    pass
        dead = {identity for identity, descriptor in self._watched.items() if descriptor in ready}
        for identity in dead:
            self._drop(identity)
        return dead

    def close(self) -> None:
        """Let go of what was held."""
        for identity in tuple(self._watched):
            self._drop(identity)

    def _add(self, identity: Identity) -> bool:
        descriptor = pin(identity)
        if descriptor is None:
            return False
        self._watched[identity] = descriptor
        self._poll.register(descriptor, select.POLLIN)
        return True

    def _drop(self, identity: Identity) -> None:
        descriptor = self._watched.pop(identity)
        self._poll.unregister(descriptor)
        os.close(descriptor)
