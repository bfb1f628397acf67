"""What is around an engine's application: a lock, and an eye on the client's connection.

Engines leave /metrics, /docs and /openapi.json to every user of the machine: without the key, /health alone is
answered. And they ask every half second whether the client of an answer that is not streamed is still there
(`poll_interval` of vllm-mlx 0.6.0 and rapid-mlx 0.16.10). Until then they decode for no one, and the next prompt is
read more slowly: a line of a batch that was interrupted held up the request that interrupted it.

It imports nothing of mlxq, so that it can be loaded in an engine's own environment too, and in the front's.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

OPEN = frozenset({"/health"})
_BODY = b'{"error":{"message":"A key is needed.","type":"authentication_error","code":"invalid_api_key"}}'
Message = dict[str, Any]
Asgi = Callable[..., Awaitable[None]]


def locked(application: Asgi, key: str) -> Asgi:
    """Return an ASGI application that asks for `key`, as a bearer token, before another one sees the request."""
    wanted = f"Bearer {key}".encode()

    async def serve(scope: Mapping[str, Any], receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        if not key or scope["type"] == "lifespan" or scope["path"] in OPEN or _has(scope, wanted):
            await application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_BODY)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": _BODY})

    return serve


def _has(scope: Mapping[str, Any], wanted: bytes) -> bool:
    values = [value for name, value in scope["headers"] if name == b"authorization"]
    return len(values) == 1 and hmac.compare_digest(values[0], wanted)


def cancelled_on_disconnect(application: Asgi) -> Asgi:
    """Return an ASGI application that cancels another one's work on a request when its client disconnects.

    What has begun to answer is left alone: an engine notices at its next write.
    """

    async def serve(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await _WatchedRequest(receive, send).serve(application, scope)
        else:
            await application(scope, receive, send)

    return serve


class _WatchedRequest:
    """One request, whose connection is watched once its body is read."""

    def __init__(self, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]) -> None:
        self._receive = receive
        self._send = send
        self._disconnect: asyncio.Task[Message] | None = None
        self._limit = asyncio.timeout(None)
        self._answering = False

    async def serve(self, application: Asgi, scope: Mapping[str, Any]) -> None:
        """Have the request served until it is answered or its client disconnects."""
        try:
            async with self._limit:
                await application(scope, self._next, self._pass_on)
        except TimeoutError:
            if not self._limit.expired():
                raise
        finally:
            if self._disconnect is not None:
                self._disconnect.cancel()

    async def _next(self) -> Message:
        """Return the next message of the client's."""
        if self._disconnect is not None:
            return await asyncio.shield(self._disconnect)
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            self._disconnect = asyncio.ensure_future(self._receive())
            self._disconnect.add_done_callback(self._drop)
        return message

    def _drop(self, disconnect: asyncio.Task[Message]) -> None:
        if not disconnect.cancelled() and not self._answering:
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def _pass_on(self, message: Message) -> None:
        self._answering = True
        await self._send(message)
