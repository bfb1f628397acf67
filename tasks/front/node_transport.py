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
from contextvars import ContextVar

import httpx

CONNECT_S = 1.3
"""How long a connection may take to open; a network of one building answers in milliseconds, and after one lost packet
in a second."""
PROBE_S, PROBE_LIMIT_S, PROBES = 0.3, 0.6, 3
"""While a request waits for a node, a connection is tried every PROBE_S seconds. Where PROBES in a row do not open
within PROBE_LIMIT_S, the node is taken to be cut off, after 1.5 s. TCP's own probes take 2 to 3 s: tcp(7) counts whole
seconds."""
SILENT_S = 2
"""Seconds without a sign of the other machine after which a connection is given up: its cable may be cut."""
AGAIN_S = 0.5
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30.0)
Origin = tuple[str, str, int]
APP_WORDS: ContextVar[str] = ContextVar("APP_WORDS", default="")
"""What nodes are told of the app whose request this is."""
APP = "x-mlxq-app"
"""The header that says it (tasks/plan/gateway.py)."""


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


def pinned(authority: str) -> ssl.SSLContext:
    """Return a context that trusts this authority alone, which signs for its own machine, whose addresses change."""
    context = ssl.create_default_context(cadata=authority)
    context.check_hostname = False
    return context


class Line:
    """The connections with one node."""

    def __init__(self, host: str, port: int, authority: str) -> None:
        """Trust `authority`, a certificate as PEM, and no other; an empty one trusts what the system does."""
        context = pinned(authority) if authority else True
        self.host, self.port, self.authority = host, port, authority
        self.unreachable = False
        self._transport = httpx.AsyncHTTPTransport(
            verify=context, trust_env=False, limits=_LIMITS, socket_options=socket_options()
        )
        self._looking: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Future[httpx.Response]] = set()
        """Requests that are not answered yet."""

    async def ask(self, request: httpx.Request) -> httpx.Response:
        """Send a request. Raises httpx.ConnectError at once while the node cannot be reached."""
        if self.unreachable:
            raise httpx.ConnectError(f"{self.host}:{self.port} cannot be reached", request=request)
        limits = dict(request.extensions.get("timeout") or {})
        request.extensions = {**request.extensions, "timeout": {**limits, "connect": CONNECT_S, "pool": None}}
        try:
            return await self._unless_cut_off(request)
        except httpx.ConnectTimeout:
            self._cut_off()
            raise
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            self._look()
            raise

    async def _unless_cut_off(self, request: httpx.Request) -> httpx.Response:
        """Send a request. Raises httpx.ReadError when the node's machine is found gone before it answers."""
        sending = asyncio.ensure_future(self._transport.handle_async_request(request))
        self._waiting.add(sending)
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(self._probe())
        try:
            return await sending
        except asyncio.CancelledError:
            if sending in self._waiting:  # it is the client that left
                sending.cancel()
                raise
            raise httpx.ReadError(f"{self.host}:{self.port} is cut off", request=request) from None
        finally:
            self._waiting.discard(sending)

    async def _probe(self) -> None:
        """Try connections as long as requests wait."""
        missed = 0

        async def tried() -> None:
            nonlocal missed
            missed = 0 if await self._is_there(PROBE_LIMIT_S) else missed + 1
            if missed >= PROBES:
                self._cut_off()

        async with asyncio.TaskGroup() as probes:
            await asyncio.sleep(PROBE_S)
            while self._waiting:
                probes.create_task(tried())
                await asyncio.sleep(PROBE_S)

    def _cut_off(self) -> None:
        """Have nothing wait for the node, nor begin to, until it is there."""
        self.unreachable = True
        waiting, self._waiting = self._waiting, set()
        for sending in waiting:
            sending.cancel()
        self._look()

    def _look(self) -> None:
        """Find out whether the machine is there, until it is."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._until_there())

    async def _until_there(self) -> None:
        while not await self._is_there(CONNECT_S):
            self.unreachable = True
            await asyncio.sleep(AGAIN_S)
        self.unreachable = False

    async def _is_there(self, limit_s: float) -> bool:
        """Return whether a connection opens within seconds, or is refused: a machine that refuses costs no time."""
        try:
            async with asyncio.timeout(limit_s):
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
        for task in (self._looking, self._probing):
            if task:
                task.cancel()
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
        if words := APP_WORDS.get():
            request.headers[APP] = words
        return await line.ask(request)

    async def aclose(self) -> None:
        """Close all connections (httpx)."""
        for line in self._lines.values():
            with suppress(OSError):
                await line.close()


def _origin(url: httpx.URL) -> Origin:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)
