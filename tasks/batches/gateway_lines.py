"""Sends lines to the gateway as requests of the batch's owner, each over a connection of its own.

The worker shows the master key and names the owner; the owner's key itself is known to no one but the owner. A plain
asyncio connection: an HTTP client would cost the worker 15 MB.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import quote

from state import secrets, settings
from state.batches.batches import Batch
from state.paths import Home
from tasks.plan.gateway import BATCH, BATCH_CLOUD, LOOPBACK

LARGEST_ANSWER = 32 * 2**20
MODEL_S = 10.0


@dataclass(frozen=True)
class LineAnswer:
    """An HTTP answer to a line."""

    status: int
    body: bytes
    request_id: str
    retry_after_s: float


class Broken(Exception):
    """The connection ended before the answer was whole."""


class GatewayLines:
    """The gateway, asked for one batch."""

    def __init__(self, home: Home, batch: Batch) -> None:
        self._home = home
        self._owner = f"{batch.owner} {BATCH_CLOUD}" if batch.cloud else batch.owner

    async def post(self, path: str, body: bytes) -> LineAnswer:
        """Send a line and return its answer, however long that takes. Raises OSError, Broken."""
        return await self._exchange("POST", path, body)

    def model_status(self, model: str) -> int:
        """Return the HTTP status of a model for the owner, 0 while the gateway does not answer."""

        async def ask() -> int:
            async with asyncio.timeout(MODEL_S):
                return (await self._exchange("GET", f"/v1/models/{quote(model, safe='')}", b"")).status

        try:
            return asyncio.run(ask())
        except (OSError, Broken):
            return 0

    async def _exchange(self, method: str, path: str, body: bytes) -> LineAnswer:
        port: int = settings.load(self._home)["litellm-port"]
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        try:
            writer.write(self._head(method, path, len(body)) + body)
            await writer.drain()
            return await _read(reader)
        finally:
            writer.transport.abort()

    def _head(self, method: str, path: str, size: int) -> bytes:
        """Spell a request's head. HTTP/1.0, so that the server sends no chunks and closes the connection."""
        key = secrets.read(self._home.secrets)[secrets.MASTER]
        lines = [
            f"{method} {path} HTTP/1.0",
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
    return LineAnswer(status, body, headers.get("x-request-id", ""), float(after) if after.isdecimal() else 0.0)
