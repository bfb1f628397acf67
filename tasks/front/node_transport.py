"""How the front reaches its nodes: to these alone, each known by its own certificate, and never waiting for one twice.

An httpx transport for LiteLLM's setting `aclient_session`. It is loaded in the proxy's environment, which has no mlxq.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import Mapping
from contextlib import suppress

import httpx

CONNECT_S = 1.5
"""How long a connection may take to open; a network of one building answers in milliseconds."""
SILENT_S = 2
"""Seconds without a sign of the other machine after which a connection is given up: its cable may be cut."""
AGAIN_S = 0.5
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30.0)
Origin = tuple[str, str, int]


def socket_options() -> list[tuple[int, int, int]]:
    """Return what ends a connection whose other side does not even acknowledge bytes (tcp(7); macOS tcp(4)).

    A model may think for minutes: silence of its program is none of the machine, whose kernel answers probes.
    """
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    options += [(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1), (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, SILENT_S)]
    if sys.platform == "darwin":
        keepalive, dropped = 0x10, 0x80  # TCP_KEEPALIVE, TCP_RXT_CONNDROPTIME of netinet/tcp.h; both in seconds
        return [*options, (socket.IPPROTO_TCP, keepalive, 1), (socket.IPPROTO_TCP, dropped, SILENT_S)]
    unacknowledged_ms = 1000 * SILENT_S - 200
    return [
        *options,
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, unacknowledged_ms),
    ]


class Line:
    """The connections with one node."""

    def __init__(self, host: str, port: int, authority: str) -> None:
        """Trust `authority`, a certificate as PEM, and no other; an empty one trusts what the system does."""
        context = ssl.create_default_context(cadata=authority) if authority else True
        self.host, self.port, self.authority = host, port, authority
        self.unreachable = False
        self._transport = httpx.AsyncHTTPTransport(
            verify=context, trust_env=False, limits=_LIMITS, socket_options=socket_options()
        )
        self._looking: asyncio.Task[None] | None = None

    async def ask(self, request: httpx.Request) -> httpx.Response:
        """Send a request. Raises httpx.ConnectError at once while the node cannot be reached."""
        if self.unreachable:
            raise httpx.ConnectError(f"{self.host}:{self.port} cannot be reached", request=request)
        limits = dict(request.extensions.get("timeout") or {})
        request.extensions = {**request.extensions, "timeout": {**limits, "connect": CONNECT_S, "pool": None}}
        try:
            return await self._transport.handle_async_request(request)
        except httpx.ConnectTimeout:
            self.unreachable = True
            self._look()
            raise
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            self._look()
            raise

    def _look(self) -> None:
        """Find out whether the machine is there, until it is."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._until_there())

    async def _until_there(self) -> None:
        while not await self._is_there():
            self.unreachable = True
            await asyncio.sleep(AGAIN_S)
        self.unreachable = False

    async def _is_there(self) -> bool:
        """Return whether a connection opens, or is refused: a machine that refuses costs no time."""
        try:
            async with asyncio.timeout(CONNECT_S):
                _, writer = await asyncio.open_connection(self.host, self.port)
        except (TimeoutError, socket.gaierror):
            return False
        except ConnectionRefusedError:
            return True
        except OSError:  # no route, no network, host down
            return False
        writer.close()
        return True

    async def close(self) -> None:
        """Close the connections."""
        if self._looking:
            self._looking.cancel()
        await self._transport.aclose()


class NodeTransport(httpx.AsyncBaseTransport):
    """Sends each request on its node's line; one to any other place is refused."""

    def __init__(self) -> None:
        self._lines: dict[Origin, Line] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def point(self, authorities: Mapping[str, str]) -> None:
        """Reach these nodes from now on, base URL -> authority as PEM. What is under way with others is finished."""
        lines: dict[Origin, Line] = {}
        for address, authority in authorities.items():
            origin = _origin(httpx.URL(address))
            line = self._lines.pop(origin, None)
            lines[origin] = line if line and line.authority == authority else Line(origin[1], origin[2], authority)
        self._lines = lines

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request (httpx). Raises httpx.TransportError."""
        line = self._lines.get(_origin(request.url))
        if line is None:
            raise httpx.ConnectError(f"{request.url.host} is no node of this fleet", request=request)
        return await line.ask(request)

    async def aclose(self) -> None:
        """Close all connections (httpx)."""
        for line in self._lines.values():
            with suppress(OSError):
                await line.close()


def _origin(url: httpx.URL) -> Origin:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)
