"""The gateway's front door, around LiteLLM's application: keys, names, priority, and errors clients understand.

LiteLLM without a database answers 500 to a missing key and 400 to a wrong one, answers an unknown model from any
tier, and tells of its own routing in its errors. The door settles these before and after it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from state.keys import Key
from tasks.gateway import document_links, errors
from tasks.gateway.api_keys import Ring, secret_of
from tasks.gateway.errors import Refusal
from tasks.gateway.litellm_executor import Executor
from tasks.gateway.priority import Queue
from tasks.gateway.request_context import CURRENT, Call
from tasks.gateway.routes import Names

log = logging.getLogger("mlxq.gateway")

OPEN = frozenset({"/health/liveliness", "/health/liveness", "/health/readiness"})
"""What a supervisor may ask without a key."""
ASKING = frozenset(
    {
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
        *("/v1/messages/count_tokens", "/v1/embeddings"),
        *("/chat/completions", "/completions", "/responses", "/embeddings"),
    }
)
"""What apps may post to."""
READING = ("/v1/models", "/models")
"""What apps may get, with what lies under it."""
_TALKS = ("/chat/completions", "/messages", "/messages/count_tokens")
_HIDDEN = (b"llm_provider-", b"x-litellm-model-api-base", b"x-litellm-key", b"x-litellm-response-cost")
_REPLACED = (b"authorization", b"x-api-key", b"accept-encoding")
_FAILED = 400


class Door:
    """Lets a request through to LiteLLM, or answers it."""

    def __init__(self, app: ASGIApp, names: Names, ring: Ring, queue: Queue, count: Callable[[Call], None]) -> None:
        self._app = app
        self._names = names
        self._ring = ring
        self._queue = queue
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's message exchange (ASGI)."""
        if scope["type"] == "lifespan":
            asyncio.get_running_loop().set_default_executor(Executor())
            await self._app(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] in OPEN:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": "mlxq has no realtime models"})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = Call(scope["path"])
        key = self._ring.find(secret_of(scope["headers"]))
        if key is None:
            await _refuse(send, call, _unknown_key(scope))
            return
        call.key = key.name
        if refusal := self._closed(scope, key):
            await _refuse(send, call, refusal)
            return
        if call.path not in ASKING:
            await self._app(_as_bearer(scope), receive, send)
            return
        call.body = await _read(receive)
        refusal = self._wrong(call, key) or self._hurried(key)
        if refusal:
            await _refuse(send, call, refusal)
            self._count(call)
            return
        await self._ask(call, key, _as_bearer(scope), receive, send)

    async def _ask(self, call: Call, key: Key, scope: Scope, receive: Receive, send: Send) -> None:
        CURRENT.set(call)
        reply = _Reply(call, send, self._names.largest)
        async with self._queue.turn(background=key.background) as waited:
            call.waited_s = waited
            try:
                await self._app(scope, _replay(call.body, receive), reply)
            finally:
                self._count(call)

    def _closed(self, scope: Scope, key: Key) -> Refusal | None:
        """Tell why a route is not for this key. LiteLLM would show its settings to any."""
        path, method = scope["path"], scope["method"]
        read = method in {"GET", "HEAD"} and any(path == one or path.startswith(f"{one}/") for one in READING)
        if read or (method in {"POST", "OPTIONS"} and path in ASKING) or self._ring.is_master(key):
            return None
        return Refusal(403, f"{method} {path} is not open to apps' keys.", "route_not_allowed")

    def _wrong(self, call: Call, key: Key) -> Refusal | None:
        """Tell what is wrong with a request itself, as OpenAI would."""
        try:
            body: dict[str, Any] = orjson.loads(call.body)
            call.asked = body["model"]
            tier = self._names.tier(call.asked)
        except orjson.JSONDecodeError as problem:
            return Refusal(400, f"The body is not JSON: {problem}.", "invalid_json")
        except (KeyError, TypeError):
            return Refusal(400, "The body must be a JSON object that names a model.", "missing_model")
        return self._unnamed(call, key, tier) or self._unasked(call, body)

    def _unnamed(self, call: Call, key: Key, tier: str | None) -> Refusal | None:
        if tier is None:
            known = ", ".join(sorted(self._names.tiers))
            return Refusal(404, f"There is no model {call.asked[:100]!r} here. There are: {known}.", "model_not_found")
        if key.tiers and tier not in key.tiers:
            return Refusal(403, f"The key {key.name} may not ask for {tier}.", "model_not_allowed")
        return None

    def _unasked(self, call: Call, body: dict[str, Any]) -> Refusal | None:
        if call.path.endswith("/embeddings") and not self._names.embeds:
            return Refusal(501, "No embedding model is set up in this stack.", "no_embedding_model")
        messages = body.get("messages")
        if call.path.endswith(_TALKS) and not (isinstance(messages, list) and messages):
            return Refusal(400, "`messages` must be a list with at least one message.", "empty_messages")
        if link := document_links.followed(body):
            return Refusal(
                400, f"Send the document itself: {link[:100]} would have to be fetched.", "link_not_followed"
            )
        return None

    def _hurried(self, key: Key) -> Refusal | None:
        wait = self._ring.hurried(key)
        if wait is None:
            return None
        message = f"The key {key.name} may ask {key.rpm} times a minute."
        return Refusal(429, message, "rate_limit_exceeded", {"retry-after": str(int(wait) + 1)})


class _Reply:
    """Passes LiteLLM's answer on; an error is held until it is whole, and told again in our words."""

    def __init__(self, call: Call, send: Send, largest: int) -> None:
        self._call = call
        self._send = send
        self._largest = largest
        self._failed: Message | None = None
        self._content = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self._failed is None:
            await self._send(message)
        else:
            self._content += message.get("body", b"")
            if not message.get("more_body"):
                await self._tell(self._failed["status"])

    async def _start(self, message: Message) -> None:
        self._call.status = message["status"]
        if message["status"] >= _FAILED:
            self._failed = message
            return
        kept = [(name, value) for name, value in message.get("headers", []) if not name.lower().startswith(_HIDDEN)]
        told = [(b"x-mlxq-tier", self._call.tier.encode()), (b"x-mlxq-tried", ",".join(self._call.tried).encode())]
        await self._send({**message, "headers": kept + told})

    async def _tell(self, status: int) -> None:
        call = self._call
        refusal = call.refusal or errors.translate(status, self._content, call.failures, self._largest)
        failures = "; ".join(f"{tier} {problem}" for tier, problem in call.failures.items())
        log.warning("%d %s key=%s asked=%r: %s", refusal.status, call.path, call.key, call.asked, failures or "-")
        await _refuse(self._send, call, refusal)


def _unknown_key(scope: Scope) -> Refusal:
    given = secret_of(scope["headers"])
    message = "The key is not valid, or was revoked." if given else "A key is needed: Authorization: Bearer KEY."
    return Refusal(401, message, "invalid_api_key", {"www-authenticate": "Bearer"})


async def _refuse(send: Send, call: Call, refusal: Refusal) -> None:
    call.status = refusal.status
    content = refusal.body(call.path)
    headers = {"content-type": "application/json", "content-length": str(len(content)), **refusal.headers}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})


def _as_bearer(scope: Scope) -> Scope:
    """Write the key in the one style that every part of LiteLLM reads, and ask for no compression."""
    others = [(name, value) for name, value in scope["headers"] if name.lower() not in _REPLACED]
    secret = secret_of(scope["headers"]) or ""
    return {**scope, "headers": [*others, (b"authorization", f"Bearer {secret}".encode("latin-1"))]}


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give LiteLLM the body that was read already; after it come the connection's own messages."""
    unread = True

    async def receive_again() -> Message:
        nonlocal unread
        if unread:
            unread = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return receive_again
