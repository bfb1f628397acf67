"""The answer to one request as it is sent: whole, refused, or a stream that sends comments while it waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Mapping

from starlette.types import Send

from tasks.gateway.dialects import sse
from tasks.gateway.dialects.dialect import CHAT, Dialect
from tasks.gateway.errors import Refusal
from tasks.gateway.request_context import Call

WAIT_S = 10.0
"""Seconds of silence after which a waiting stream gets a comment; clients and proxies give up after 30 s or more."""
_JSON = "application/json"
EVENTS, LINES = "text/event-stream; charset=utf-8", "application/x-ndjson"
_FAILED = 400


class Reply:
    """Sends one answer. Everything about a request is in its headers: its id, who answered, who was tried."""

    def __init__(
        self, send: Send, call: Call, dialect: Dialect = CHAT, headers: Mapping[str, str] | None = None
    ) -> None:
        self._send = send
        self._call = call
        self._dialect = dialect
        self._headers = dict(headers or {})
        self._streams = False
        self._beat: asyncio.TimerHandle | None = None
        self._beating: asyncio.Task[None] | None = None

    def add(self, name: str, value: str) -> None:
        """Add a header."""
        self._headers[name] = value

    async def whole(self, content: bytes, status: int = 200, kind: str = _JSON) -> None:
        """Send a whole answer."""
        self._call.status = status
        await self._head(status, {"content-type": kind, "content-length": str(len(content))})
        await self._send({"type": "http.response.body", "body": content})

    async def pieces(self, source: AsyncIterable[bytes], size: int, kind: str) -> None:
        """Send a whole answer of `size` bytes in pieces."""
        self._call.status = 200
        await self._head(200, {"content-type": kind, "content-length": str(size)})
        async for piece in source:
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})

    async def refuse(self, refusal: Refusal) -> None:
        """Send a refusal: as the whole answer, or as a stream's last event where that has begun."""
        await self.stop_waiting()
        if self._streams:
            await self.fail(refusal)
            return
        content = self._dialect.error(refusal)
        for name, value in refusal.headers.items():
            self.add(name, value)
        await self.whole(content, refusal.status)

    def wait(self) -> None:
        """Send a comment every WAIT_S seconds until the first words come; lines of JSON have none."""
        if self._dialect.ollama:
            return
        self._beat = asyncio.get_running_loop().call_later(WAIT_S, self._start_beat)

    def _start_beat(self) -> None:
        self._beating = asyncio.create_task(self._say_waiting())

    async def _say_waiting(self) -> None:
        await self.write(sse.COMMENT)
        self.wait()

    async def stop_waiting(self) -> None:
        """End `wait`."""
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        if self._beating is not None:
            await self._beating
            self._beating = None
            if self._beat is not None:
                self._beat.cancel()

    async def write(self, run: bytes) -> None:
        """Send a part of a stream; the first one begins it."""
        if not self._streams:
            self._streams = True
            self._call.status = 200
            kind = LINES if self._dialect.ollama else EVENTS
            await self._head(200, {"content-type": kind, "cache-control": "no-cache"})
        await self._send({"type": "http.response.body", "body": run, "more_body": True})

    async def end(self) -> None:
        """End a stream."""
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, refusal: Refusal) -> None:
        """End a stream with an error, never in silence."""
        self._call.status = refusal.status
        await self.write(self._dialect.error_event(refusal))
        await self.end()

    async def _head(self, status: int, extra: Mapping[str, str]) -> None:
        call = self._call
        headers = {"x-request-id": call.id, **self._headers, **extra}
        if self._dialect.anthropic:
            headers["request-id"] = call.id
        if call.tried:
            headers["x-mlxq-tried"] = ",".join(call.tried)
            if status < _FAILED:
                headers["x-mlxq-tier"] = call.tier
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})
