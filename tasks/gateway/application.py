"""The gateway's ASGI application: keys, routes, bodies, rates; what it has checked is passed to the relay."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, cast

import orjson
from starlette.types import Receive, Scope, Send

from state.keys import Key
from state.paths import Home
from tasks.gateway import models
from tasks.gateway.admission import body
from tasks.gateway.admission.api_keys import MASTER_NAME, KeyRing, secret_of
from tasks.gateway.admission.body import Gone
from tasks.gateway.admission.cors import Cors
from tasks.gateway.admission.priority import Queue
from tasks.gateway.batches.api import BatchApi, serves
from tasks.gateway.connections import KNOWN
from tasks.gateway.dialects import checks, retrieval
from tasks.gateway.dialects.dialect import BY_PATH, CHAT, COUNT_TOKENS, MESSAGES, OLLAMA_CHAT, Dialect
from tasks.gateway.dialects.retrieval import RetrievalRequest
from tasks.gateway.dialects.schemas import Fields
from tasks.gateway.engine_client import EngineClient
from tasks.gateway.errors import Refusal, unsupported
from tasks.gateway.ollama import api as ollama
from tasks.gateway.ollama import chat as ollama_chat
from tasks.gateway.ollama.api import OllamaApi
from tasks.gateway.ollama.fields import OllamaRequest, plain
from tasks.gateway.relay import Relay, RelayRequest
from tasks.gateway.reply import Reply
from tasks.gateway.request_context import Call
from tasks.gateway.routes import BYTES_PER_TOKEN, Routes
from tasks.plan import gateway as plan

log = logging.getLogger("mlxq.gateway")

CHECK, BATCH = plan.CHECK.encode(), plan.BATCH.encode()
OPEN = frozenset({"/health", "/health/liveliness", "/health/liveness", "/health/readiness"})
"""What a supervisor may ask without a key."""
MODELS = ("/v1/models", "/models")
LEFT = 499
"""The status of a request whose client left; nothing is sent."""


class Application:
    """Answers requests."""

    def __init__(
        self,
        routes: Routes,
        ring: KeyRing,
        start: Callable[[], tuple[EngineClient, Relay]],
        count: Callable[[Call], None],
        home: Home,
    ) -> None:
        """Take what the answers need. `start` makes what belongs to the event loop, at the first request."""
        self._routes = routes
        self._ring = ring
        self._start = start
        self._count = count
        self._queue = Queue()
        self._cors = Cors(routes.allowed_origins)
        self._limit = max(body.LARGEST_BYTES, BYTES_PER_TOKEN * routes.largest)
        self._batches = BatchApi(home, self._limit)
        self._ollama = OllamaApi(home, routes)
        self._started: tuple[EngineClient, Relay] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        call = Call(scope["path"])
        dialect = BY_PATH.get(call.path) or _shape(call.path)
        reply = Reply(send, call, dialect, self._cors.headers(scope))
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
            reply.add("connection", "close")
            message = "A request has either Content-Length or Transfer-Encoding, not both."
            await reply.refuse(Refusal(400, message, "invalid_request"))
        elif scope["method"] == "OPTIONS" and self._cors.is_preflight(scope):
            reply.add("content-length", "0")
            await reply.whole(b"", 204)
        elif call.path in OPEN and scope["method"] in {"GET", "HEAD"}:
            await reply.whole(b'{"status":"healthy"}')
        else:
            await self._serve(scope, receive, call, reply)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        """Start and end with the server."""
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        if self._started is not None:
            await self._started[0].close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, call: Call, reply: Reply) -> None:
        secret = secret_of(scope["headers"])
        key = self._ring.find(secret)
        if key is None:
            await reply.refuse(_unknown_key(secret))
            return
        scope[KNOWN] = True
        call.check = key.name == MASTER_NAME and CHECK in dict(scope["headers"])
        key = self._batch_owner(scope, call) if key.name == MASTER_NAME and BATCH in dict(scope["headers"]) else key
        if isinstance(key, Refusal):
            await reply.refuse(key)
            return
        call.key, call.store = key.name, key.store
        if serves(call.path):
            await self._batches.serve(scope, receive, key.name, reply)
        elif ollama.serves(call.path):
            await self._ollama.serve(scope, receive, key, reply)
        elif refusal := _route_refusal(scope):
            await reply.refuse(refusal)
        elif call.path in BY_PATH:
            await self._post(scope, receive, call, key, reply)
        else:
            await self._show_models(scope, call, key, reply)

    def _batch_owner(self, scope: Scope, call: Call) -> Key | Refusal:
        """Return the key whose batch a line belongs to: the worker asks in its name, and never has it."""
        words = dict(scope["headers"])[BATCH].decode("latin-1").split()
        key = self._ring.named(words[0]) if words else None
        if key is None:
            return Refusal(401, "The key that created this batch was revoked.", "invalid_api_key")
        call.batch, call.local = True, plan.BATCH_CLOUD not in words[1:]
        return key

    async def _show_models(self, scope: Scope, call: Call, key: Key, reply: Reply) -> None:
        name = next((call.path.removeprefix(path) for path in MODELS if call.path.startswith(path)), "").strip("/")
        anthropic = any(header == b"anthropic-version" for header, _ in scope["headers"])
        shown = models.listing(self._routes, key, name, anthropic=anthropic)
        if shown is None:
            await reply.refuse(self._no_model(name, key))
        else:
            await reply.whole(orjson.dumps(shown))

    async def _post(self, scope: Scope, receive: Receive, call: Call, key: Key, reply: Reply) -> None:
        try:
            content = await body.read(receive, scope["headers"], self._limit)
        except Gone:
            return
        if not isinstance(content, Refusal) and BY_PATH[call.path] in retrieval.PURPOSES:
            await self._retrieve(content, receive, call, key, reply)
            return
        request = content if isinstance(content, Refusal) else self._relay_request(call, content, key)
        if isinstance(request, Refusal):
            await reply.refuse(request)
            self._count(call)
            return
        if (loading := ollama_chat.loading(request.fields)) is not None:
            await reply.whole(orjson.dumps(loading))
            return
        await self._relay(request, key, receive, reply)

    async def _retrieve(self, content: bytes, receive: Receive, call: Call, key: Key, reply: Reply) -> None:
        """Answer a request for embeddings or a ranking."""
        dialect = BY_PATH[call.path]
        request = checks.read(dialect.schema, content)
        if isinstance(request, Refusal):
            await self._refuse(call, request, reply)
            return
        call.asked = _model(request)
        checked = self._retrieval_request(call, dialect, cast("Any", request), key)
        if isinstance(checked, Refusal):
            await self._refuse(call, checked, reply)
            return
        if call.batch:
            serving = self._queue.in_spare_time(call, lambda: retrieval.serve(checked, self._parts()[0], reply))
        else:
            serving = retrieval.serve(checked, self._parts()[0], reply)
        await self._until_left(serving, receive, call)

    def _retrieval_request(self, call: Call, dialect: Dialect, request: Fields, key: Key) -> RetrievalRequest | Refusal:
        route = retrieval.find(self._routes, dialect, call.asked, key)
        if isinstance(route, Refusal):
            return route
        limited = None if call.batch else self._rate_limited(key)
        return limited or retrieval.read(call, dialect, request, route)

    async def _refuse(self, call: Call, refusal: Refusal, reply: Reply) -> None:
        await reply.refuse(refusal)
        self._count(call)

    def _relay_request(self, call: Call, content: bytes, key: Key) -> RelayRequest | Refusal:
        """Return the request to relay for a body, or the refusal of it."""
        call.body = content
        dialect = BY_PATH[call.path]
        request = checks.read(dialect.schema, content)
        if isinstance(request, Refusal):
            return request
        _log_dropped(request, content)
        call.asked = _model(request)
        tier = self._routes.tier(call.asked)
        if tier is None:
            return self._no_model(call.asked, key)
        if key.tiers and tier not in key.tiers:
            return Refusal(403, f"The key {key.name} may not ask for {tier}.", "model_not_allowed", "model")
        limited = None if call.batch else self._rate_limited(key)
        return limited or _relay_request(call, dialect, request, tier)

    def _no_model(self, name: str, key: Key) -> Refusal:
        names = ", ".join(models.names(self._routes, key))
        return Refusal(404, f"There is no model {name[:100]!r} here. There are: {names}.", "model_not_found", "model")

    def _rate_limited(self, key: Key) -> Refusal | None:
        wait = self._ring.rate_limited(key)
        if wait is None:
            return None
        message = f"Rate limit exceeded: key {key.name} allows {key.rpm} requests per minute."
        return Refusal(429, message, "rate_limit_exceeded", headers={"retry-after": str(int(wait) + 1)})

    async def _relay(self, request: RelayRequest, key: Key, receive: Receive, reply: Reply) -> None:
        """Relay a request; it ends at once when its client leaves."""
        await self._until_left(self._in_turn(request, key, reply), receive, request.call)

    async def _in_turn(self, request: RelayRequest, key: Key, reply: Reply) -> None:
        if request.call.batch:
            await self._queue.in_spare_time(request.call, lambda: self._parts()[1].serve(request, reply))
            return
        async with self._queue.turn(background=key.background) as waited:
            request.call.waited_s = waited
            await self._parts()[1].serve(request, reply)

    async def _until_left(self, serving: Coroutine[Any, Any, None], receive: Receive, call: Call) -> None:
        """Serve a request until it is answered or its client leaves, and count it."""
        task = asyncio.current_task()
        assert task is not None
        leaving = asyncio.create_task(_watch(receive, call, task))
        try:
            await serving
        except asyncio.CancelledError:
            if not call.disconnected:
                raise
            task.uncancel()
            call.status = LEFT
        finally:
            leaving.cancel()
            self._count(call)

    def _parts(self) -> tuple[EngineClient, Relay]:
        if self._started is None:
            self._started = self._start()
        return self._started


async def _watch(receive: Receive, call: Call, task: asyncio.Task[Any]) -> None:
    """Cancel a request's task when its client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
    call.disconnected = True
    task.cancel()


def _shape(path: str) -> Dialect:
    """Return the dialect in whose shape a path that is none of a dialect's is answered."""
    if path.startswith(ollama.PREFIX):
        return OLLAMA_CHAT
    return MESSAGES if path.startswith("/v1/messages") else CHAT


def _model(request: Fields) -> str:
    """Return the name that a request asks for."""
    name: str = cast("Any", request).model
    return plain(name) if isinstance(request, OllamaRequest) else name


def _relay_request(call: Call, dialect: Dialect, request: Fields, tier: str) -> RelayRequest | Refusal:
    streams = bool(getattr(request, "stream", None)) and dialect.streams
    if streams and call.batch:
        return unsupported("stream", "the answers of a batch are read whole.")
    alone = bool(getattr(request, "disable_fallbacks", False)) or dialect is COUNT_TOKENS
    return RelayRequest(call, dialect, request, tier, alone, streams)


def _route_refusal(scope: Scope) -> Refusal | None:
    """Return the refusal of a path that is no route, or not for this method; None for a route."""
    path, method = scope["path"], scope["method"]
    reads = any(path == prefix or path.startswith(f"{prefix}/") for prefix in MODELS)
    if not reads and path not in BY_PATH:
        return Refusal(404, f"There is nothing at {method} {path[:100]}.", "unknown_route")
    allowed = {"GET", "HEAD"} if reads else {"POST"}
    if method in allowed:
        return None
    message = f"{path[:100]} does not take {method}, only {' and '.join(sorted(allowed))}."
    return Refusal(405, message, "method_not_allowed", headers={"allow": ", ".join(sorted(allowed))})


def _unknown_key(key: str | None) -> Refusal:
    message = "The key is not valid, or was revoked." if key else "A key is needed: Authorization: Bearer KEY."
    return Refusal(401, message, "invalid_api_key", headers={"www-authenticate": "Bearer"})


def _log_dropped(request: Fields, content: bytes) -> None:
    """Count, by name, the fields that no schema knows; only where the log level shows it."""
    if log.isEnabledFor(logging.DEBUG):
        named = {field.alias or name for name, field in type(request).model_fields.items()}
        dropped = sorted(name[:60] for name in cast("dict[str, Any]", orjson.loads(content)) if name not in named)
        log.debug("%d unknown fields were dropped: %s", len(dropped), ", ".join(dropped[:20]))
