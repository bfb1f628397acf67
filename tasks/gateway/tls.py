"""The gateway's connections with other machines, encrypted.

A handshake costs its client nothing and holds a descriptor here, before any key is shown. So HANDSHAKES run at
once, and others wait in the kernel's queue; connections on loopback, where mlxq itself asks, are apart from them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

log = logging.getLogger("mlxq.gateway")

HANDSHAKES = 64
HANDSHAKE_S = 10.0
REST_S = 1.0
"""Before the next connection is accepted when the process has no descriptor left."""


class ServerContext:
    """The certificate in one file, read again when the file has changed: it is renewed while the gateway serves."""

    def __init__(self, file: Path) -> None:
        """Read the file. Raises OSError, ssl.SSLError."""
        self._file = file
        self._read_at = 0
        self.current = self._load()

    def _load(self) -> ssl.SSLContext:
        self._read_at = self._file.stat().st_mtime_ns
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._file)
        context.sni_callback = self._choose
        return context

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        """Have a handshake use the newest certificate (called at each, also without a name)."""
        with suppress(OSError):  # ssl.SSLError is one: a file that cannot be used leaves the one before in use
            if self._file.stat().st_mtime_ns != self._read_at:
                self.current = self._load()
        connection.context = self.current


class TlsListener:
    """Accepts encrypted connections from one socket. It is closed as asyncio's own servers are."""

    def __init__(self, listener: socket.socket, context: ServerContext, make: Callable[[], asyncio.Protocol]) -> None:
        self.sockets = [listener]
        self._context = context
        self._make = make
        self._handshakes = set[asyncio.Task[None]]()
        self._loop = asyncio.get_running_loop()

    def listen(self, backlog: int) -> None:
        """Begin to accept connections."""
        listener = self.sockets[0]
        listener.setblocking(False)
        listener.listen(backlog)
        self._resume()

    def close(self) -> None:
        """Accept no more; what was accepted is served."""
        for listener in self.sockets:
            self._loop.remove_reader(listener)
            listener.close()
        self.sockets = []

    async def wait_closed(self) -> None:
        """Return; what was accepted ends by itself."""

    def _resume(self) -> None:
        """Accept connections, as long as the socket is open."""
        for listener in self.sockets:
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept one connection. Where HANDSHAKES are under way it is the last until one of them ends."""
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # it left, or another gateway accepted it
            return
        except OSError as problem:
            log.warning("no connection could be accepted: %s", problem)
            self._loop.remove_reader(listener)
            self._loop.call_later(REST_S, self._resume)
            return
        connection.setblocking(False)
        handshake = self._loop.create_task(self._shake(connection))
        self._handshakes.add(handshake)
        handshake.add_done_callback(self._ended)
        if len(self._handshakes) == HANDSHAKES:
            self._loop.remove_reader(listener)

    def _ended(self, handshake: asyncio.Task[None]) -> None:
        self._handshakes.discard(handshake)
        self._resume()

    async def _shake(self, connection: socket.socket) -> None:
        """Have uvicorn's protocol serve a connection once its handshake is done."""
        try:
            await self._loop.connect_accepted_socket(
                self._make,
                connection,
                ssl=self._context.current,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=HANDSHAKE_S,
            )
        except OSError:  # the client speaks no TLS, does not trust us, or has left
            connection.close()
