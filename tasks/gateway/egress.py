"""The second wall: this process can connect to the engines, to its own unix sockets, and to the cloud's host alone.

It stands below every library, as an audit hook (sys.addaudithook, PEP 578), which cannot be taken away again. It holds
because the event loop is asyncio's: uvloop connects in C and raises no event.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, cast
from urllib.parse import urlsplit

from tasks.plan.gateway import LOOPBACK

log = logging.getLogger("mlxq.gateway")

RESOLVE_S = 60.0
"""How long the cloud host's addresses are taken to be the same."""
_LOOK_UPS = frozenset({"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"})
_SENDINGS = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg"})
_PORTS = {"http": 80, "https": 443}


class Wall:
    """What this process may connect to."""

    def __init__(self, places: Iterable[tuple[str, int]], cloud_url: str | None, listens: Iterable[str] = ()) -> None:
        """Take addresses and ports, the cloud's URL where there is a key for it, and the own addresses."""
        self._places = set(places)
        self._on_demand: frozenset[int] = frozenset()
        self._names = {"localhost", *(host for host, _ in self._places), *listens}
        self._cloud: tuple[str, int] | None = None
        if cloud_url:
            url = urlsplit(cloud_url)
            self._cloud = url.hostname or "", url.port or _PORTS.get(url.scheme, 443)
        self._resolved: set[str] = set()
        self._resolved_at = 0.0
        self._own = threading.local()
        """Whether this thread looks the cloud's host up for the wall itself."""

    def allow(self, ports: set[int]) -> None:
        """Let these ports of loopback be connected to, where engines on demand serve, and no earlier ones."""
        self._on_demand = frozenset(ports)

    def stand(self) -> None:
        """Let nothing else out from now on."""
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Raise PermissionError for a connection or look-up that leads elsewhere."""
        if not event.startswith("socket."):
            return
        if event in _LOOK_UPS:
            self._check_name(arguments[0])
        elif event in _SENDINGS and isinstance(arguments[1], tuple):  # a unix socket's address is a str
            host, port = cast("tuple[Any, Any]", arguments[1])[:2]
            if not self.allows(str(host), int(port)):
                raise refused(f"{host}:{port}")

    def _check_name(self, host: Any) -> None:
        name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
        if name is None or name in self._names or getattr(self._own, "looks", False):
            return
        if self._cloud is None or name not in {self._cloud[0], *self._resolved}:
            raise refused(str(name))

    def allows(self, host: str, port: int) -> bool:
        """Return whether an address may be connected to."""
        if (host, port) in self._places or (host == LOOPBACK and port in self._on_demand):
            return True
        if self._cloud is None or port != self._cloud[1]:
            return False
        return host in self._addresses() or host in self._addresses(fresh=True)

    def _addresses(self, *, fresh: bool = False) -> set[str]:
        """Return the addresses that the cloud's host has had."""
        assert self._cloud is not None
        if fresh or time.monotonic() - self._resolved_at > RESOLVE_S:
            self._own.looks = True
            try:
                addresses = socket.getaddrinfo(self._cloud[0], self._cloud[1], type=socket.SOCK_STREAM)
            except OSError:
                addresses = []
            finally:
                self._own.looks = False
            self._resolved |= {str(entry[4][0]) for entry in addresses}
            self._resolved_at = time.monotonic()
        return self._resolved


def refused(address: str) -> PermissionError:
    """Return the error that a library meets at the wall."""
    log.warning("A connection to %s was refused: the gateway asks engines and the cloud's host alone.", address)
    return PermissionError(f"mlxq's gateway may not connect to {address}")
