"""Has this machine announced by Bonjour, in a thread of its own, while other machines reach its gateway encrypted."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from state.errors import MlxqError
from state.paths import Home
from tasks.fleet import discovery, identity, trust
from tasks.queue import tick
from tasks.runtime import log, runtime

if TYPE_CHECKING:
    from zeroconf import Zeroconf

LOOK_S = 5.0
Announced = tuple[str, tuple[str, ...], str]
"""Name, addresses and fingerprint."""


class Announcer:
    """Announces this machine as long as others reach it, and takes it back in the end."""

    def __init__(self) -> None:
        self._said: Announced | None = None
        self._network: Zeroconf | None = None
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Start the thread, where this machine is to be announced and it does not run; return at once."""
        if self._thread is None and identity.is_open(runtime.home):
            self._thread = threading.Thread(target=self._run, name="announce", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not runtime.stopping.is_set():
            self.ensure(runtime.home)
            runtime.stopping.wait(LOOK_S)
        self.close()

    def ensure(self, home: Home) -> None:
        """Have what is announced agree with what is."""
        wanted = _wanted(home)
        if wanted == self._said:
            return
        self.close()
        try:
            if wanted is not None:
                self._announce(*wanted)
            self._said = wanted
        except OSError as problem:  # no network that has multicast now
            log.warning("not_announced", cause=str(problem))

    def _announce(self, name: str, addresses: tuple[str, ...], fingerprint: str) -> None:
        from zeroconf import Zeroconf

        info = discovery.service(name, addresses, fingerprint)
        if info is not None:
            self._network = Zeroconf(interfaces=info.parsed_addresses())
            self._network.register_service(info, allow_name_change=True)

    def close(self) -> None:
        """Take back what is announced."""
        self._said = None
        if self._network is not None:
            self._network.close()
            self._network = None


def _wanted(home: Home) -> Announced | None:
    """Return what is to be announced; None where nothing is."""
    if not identity.is_open(home):
        return None
    try:
        return identity.own_name(home), identity.addresses(home), trust.fingerprint(trust.own_authority(home))
    except (MlxqError, OSError, ValueError):  # no certificate yet, or no private network
        return None


ANNOUNCER = Announcer()


@tick("announce this machine", LOOK_S)
def announce_this_machine() -> None:
    """Have this machine announced while it is open to others."""
    ANNOUNCER.begin()
