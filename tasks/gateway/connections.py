"""What a connection may do before it has shown a key: little, and not for long.

uvicorn bounds neither. A head or a body that does not come to its end within REQUEST_S ends its connection; of the
connections that have never shown a valid key the oldest one is closed when there are more than KEYLESS.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 30.0
KEYLESS = 128
READ_BYTES = 32 * 1024
"""Read at once. asyncio reads 256 KiB, which hold 40,000 chunks of one byte: others waited a second for each read."""
KNOWN = "mlxq.known"
"""The entry of a request's scope that the application sets when its key is valid."""


class Connection(H11Protocol):
    """uvicorn's connection, with a time limit for half a request and a bound on those without a key."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limit: asyncio.TimerHandle | None = None
        self._known = False
        self._opened = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - as uvicorn has it
        """Start the time limit, and close the oldest connection without a key where there are too many."""
        super().connection_made(transport)
        # asyncio does it only for sockets whose protocol it knows, and those handed over have none on macOS: with
        # Nagle's algorithm an answer's second write waits 40 ms for the client's acknowledgement.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        cast("Any", transport).max_size = READ_BYTES
        self._start_limit()
        if len(self.connections) > KEYLESS:
            self._close_oldest()

    def data_received(self, data: bytes) -> None:
        """Read on; the limit ends with the whole head, and starts again with the first bytes of the next one."""
        before = cast("object", self.cycle)
        self._known = self.known  # the next request has a scope of its own
        super().data_received(data)
        if self.cycle is not before:
            self._end_limit()
        elif self._limit is None and self._waits():
            self._start_limit()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the time limit with the connection."""
        self._end_limit()
        super().connection_lost(exc)

    @property
    def known(self) -> bool:
        """Whether a valid key came over this connection."""
        return self._known or bool(self.scope and self.scope.get(KNOWN))

    def _waits(self) -> bool:
        """Return whether a request is expected, or the rest of one that was answered already."""
        return self.cycle is None or self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison] - None at first

    def _start_limit(self) -> None:
        self._limit = self.loop.call_later(REQUEST_S, self._expire)

    def _end_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _expire(self) -> None:
        self._limit = None
        if self._waits():
            self.transport.close()

    def _close_oldest(self) -> None:
        connections = cast("set[Connection]", self.connections)
        keyless = sorted((peer for peer in connections if not peer.known), key=lambda peer: peer.opened)
        for connection in keyless[: max(0, len(keyless) - KEYLESS)]:
            connection.transport.abort()

    @property
    def opened(self) -> float:
        """When it was opened, in the event loop's seconds."""
        return self._opened
