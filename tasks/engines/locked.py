"""An engine's application, locked: without the key it answers /health and nothing else.

Engines leave /metrics, /docs and /openapi.json to every user of the machine. It imports nothing of mlxq, so that it
can be loaded in an engine's own environment too.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

OPEN = frozenset({"/health"})
_BODY = b'{"error":{"message":"A key is needed.","type":"authentication_error","code":"invalid_api_key"}}'
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
