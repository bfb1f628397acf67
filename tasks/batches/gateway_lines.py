"""Sends lines to the gateway as requests of the batch's owner, over connections that are kept for the next line.

The worker shows the master key and names the owner; the owner's key itself is known to no one but the owner. Plain
asyncio connections: an HTTP client would cost the worker 15 MB.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from urllib.parse import quote

from state import secrets, settings
from state.batches.batches import Batch
from state.paths import Home
from tasks.plan.gateway import BATCH, BATCH_CLOUD, LOOPBACK

LARGEST_ANSWER = 32 * 2**20
MODEL_S = 10.0
KEEP_S = 2.0
"""How long an idle connection is kept: less than the 5 s after which uvicorn closes its end of it."""


@dataclass(frozen=True)
class LineAnswer:
    """An HTTP answer to a line."""

    status: int
    body: bytes
    request_id: str
    retry_after_s: float
    closes: bool = False
    """Whether the gateway closes the connection after it."""


@dataclass(frozen=True)
class _GatewayConnection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    port: int
    since: float = 0.0
    """When it became idle, in monotonic seconds."""


class Broken(Exception):
    """The connection ended before the answer was whole."""


class GatewayLines:
    """The gateway, asked for one batch. Used in one event loop from its first line on."""

    def __init__(self, home: Home, batch: Batch) -> None:
        self._home = home
        self._owner = f"{batch.owner} {BATCH_CLOUD}" if batch.cloud else batch.owner
        self._idle: list[_GatewayConnection] = []

    def close(self) -> None:
        """Close the connections that are kept."""
        for connection in self._idle:
            connection.writer.transport.abort()
        self._idle.clear()

    async def post(self, path: str, body: bytes) -> LineAnswer:
        """Send a line and return its answer, however long that takes. Raises OSError, Broken."""
        return await self._exchange("POST", path, body)

    def model_status(self, model: str) -> int:
        """Return the HTTP status of a model for the owner, 0 while the gateway does not answer."""

        async def ask() -> int:
            try:
                async with asyncio.timeout(MODEL_S):
                    return (await self._exchange("GET", f"/v1/models/{quote(model, safe='')}", b"")).status
            finally:
                self.close()

        try:
            return asyncio.run(ask())
        except (OSError, Broken):
            return 0

    async def _exchange(self, method: str, path: str, body: bytes) -> LineAnswer:
        port: int = settings.load(self._home)["litellm-port"]
        connection = self._kept(port) or _GatewayConnection(*await asyncio.open_connection(LOOPBACK, port), port)
        keep = False
        try:
            connection.writer.write(self._head(method, path, len(body)) + body)
            await connection.writer.drain()
            answer = await _read(connection.reader)
            keep = not answer.closes
        finally:
            if keep:
                self._idle.append(replace(connection, since=time.monotonic()))
            else:
                connection.writer.transport.abort()
        return answer

    def _kept(self, port: int) -> _GatewayConnection | None:
        """Return a connection to this port that is still good, the one used last; close those that are not."""
        while self._idle:
            connection = self._idle.pop()
            fresh = time.monotonic() - connection.since < KEEP_S and not connection.reader.at_eof()
            if fresh and connection.port == port:
                return connection
            connection.writer.transport.abort()
        return None

    def _head(self, method: str, path: str, size: int) -> bytes:
        """Spell a request's head. The gateway answers a line, and a model, with its length and without chunks."""
        key = secrets.read(self._home.secrets)[secrets.MASTER]
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: {LOOPBACK}",
            f"Authorization: Bearer {key}",
            f"{BATCH}: {self._owner}",
            *(["Content-Type: application/json", f"Content-Length: {size}"] if size else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode()


async def _read(reader: asyncio.StreamReader) -> LineAnswer:
    """Read an answer. Raises Broken, OSError."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        size = int(headers["content-length"])
        if size > LARGEST_ANSWER:
            raise Broken
        body = await reader.readexactly(size)
        status = int(head[0].split()[1])
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, KeyError, IndexError) as problem:
        raise Broken from problem
    after = headers.get("retry-after", "0")
    after_s = float(after) if after.isdecimal() else 0.0
    return LineAnswer(status, body, headers.get("x-request-id", ""), after_s, headers.get("connection") == "close")
