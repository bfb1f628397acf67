"""The gateway's ASGI application: keys, routes, bodies, rates; what it has checked is passed to the relay."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, cast

import orjson
from starlette.types import Receive, Scope, Send

from catalog import units
from state import stack
from state.keys import Key
from tasks.gateway import errors, models
from tasks.gateway.admission import body
from tasks.gateway.admission.api_keys import MASTER_NAME, KeyRing, secret_of
from tasks.gateway.admission.body import Gone
from tasks.gateway.admission.cors import Cors
from tasks.gateway.admission.priority import Queue
from tasks.gateway.batches.api import BatchApi, serves
from tasks.gateway.connections import KNOWN
from tasks.gateway.dialects import checks, retrieval
from tasks.gateway.dialects.dialect import BY_PATH, CHAT, COUNT_TOKENS, MESSAGES, OLLAMA_CHAT, Dialect
from tasks.gateway.dialects.schemas import Fields
from tasks.gateway.engine_client import EngineClient
from tasks.gateway.errors import Refusal, unsupported
from tasks.gateway.fleet import api as fleet
from tasks.gateway.fleet.api import FleetApi
from tasks.gateway.fleet.status import status
from tasks.gateway.ollama import api as ollama
from tasks.gateway.ollama import chat as ollama_chat
from tasks.gateway.ollama.api import OllamaApi
from tasks.gateway.ollama.fields import OllamaTexts, plain
from tasks.gateway.on_demand import OnDemand, SleepingModel
from tasks.gateway.relay import Relay, RelayRequest, not_carried_out
from tasks.gateway.reply import Reply
from tasks.gateway.request_context import Call
from tasks.gateway.routes import BYTES_PER_TOKEN, RetrievalRoute, Routes
from tasks.plan import gateway as plan

log = logging.getLogger("mlxq.gateway")

CHECK, BATCH, APP = plan.CHECK.encode(), plan.BATCH.encode(), plan.APP.encode()
OPEN = frozenset({"/health", "/health/liveliness", "/health/liveness", "/health/readiness"})
"""What a supervisor may ask without a key."""
MODELS = ("/v1/models", "/models")
UNAVAILABLE = "no_tier_available"
"""The code of a refusal where no engine answered."""
MISSING = "model_not_found"
NO_MODEL = frozenset({MISSING, "no_embedding_model", "no_reranking_model"})
"""Codes of refusals of a model that there is none of."""
AUDIO = ("/v1/audio/", "/audio/")
_ONCE = {"x-should-retry": "false"}
"""Has OpenAI's and Anthropic's clients not ask again, as they do after other answers from 500 on."""
LEFT = 499
"""The status of a request whose client left; nothing is sent."""


@dataclass(frozen=True)
class Retrieving:
    """A request for vectors or a ranking, and what answers it."""

    call: Call
    dialect: Dialect
    fields: Fields
    engine: str
    model: str
    """Of a model on demand; empty where the stack has the engine."""
    route: RetrievalRoute | None = None

    @property
    def keep_s(self) -> float | None:
        """How long it says that its model is to stay."""
        return _keep_s(self.fields)


class Application:
    """Answers requests."""

    def __init__(
        self,
        routes: Routes,
        ring: KeyRing,
        start: Callable[[], tuple[EngineClient, Relay]],
        count: Callable[[Call], None],
        on_demand: OnDemand,
    ) -> None:
        """Take what the answers need. `start` makes what belongs to the event loop, at the first request."""
        self._on_demand = on_demand
        self._routes = routes
        self._ring = ring
        self._start = start
        self._count = count
        self._queue = Queue()
        self._cors = Cors(routes.allowed_origins)
        self._limit = max(body.LARGEST_BYTES, BYTES_PER_TOKEN * routes.largest)
        self._batches = BatchApi(on_demand.home, self._limit)
        self._ollama = OllamaApi(on_demand.home, routes)
        self._running = 0
        """Requests that are being answered."""
        self._fleet = self._fleet_api(version("mlxq"))
        self._started: tuple[EngineClient, Relay] | None = None

    def _fleet_api(self, release: str) -> FleetApi:
        """Return what answers the nodes of a fleet. `release`: of mlxq."""
        return FleetApi(
            self._on_demand.home,
            lambda db: status(db, self._routes, self._on_demand, running=self._running, version=release),
            release,
        )

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
            self._on_demand.start()
            await send({"type": "lifespan.startup.complete"})
        self._on_demand.stop()
        if self._started is not None:
            await self._started[0].close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, scope: Scope, receive: Receive, call: Call, reply: Reply) -> None:
        secret = secret_of(scope["headers"])
        key = self._ring.find(secret)
        if fleet.serves(call.path):
            await self._fleet.serve(scope, receive, key, reply)
            return
        if key is None:
            await reply.refuse(_unknown_key(secret))
            return
        scope[KNOWN] = True
        if not _opens(key, call.path):
            await reply.refuse(Refusal(403, f"The key {key.name} does not open {call.path[:100]}.", "not_allowed"))
            return
        call.check = key.name == MASTER_NAME and CHECK in dict(scope["headers"])
        key = self._batch_owner(scope, call) if key.name == MASTER_NAME and BATCH in dict(scope["headers"]) else key
        if isinstance(key, Refusal):
            await reply.refuse(key)
            return
        key = for_app(key, scope)
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
        shown = models.listing(self._routes, self._on_demand, key, name, anthropic=anthropic)
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
        if isinstance(request, Refusal) and self._pulls(request, call, key):
            await self._until_left(self._pull(call, key, reply), receive, call)
        elif isinstance(request, Refusal):
            await self._refuse(call, request, reply)
        else:
            await self._until_left(self._serve_request(request, key, reply), receive, call)

    async def _serve_request(self, request: RelayRequest, key: Key, reply: Reply) -> None:
        if ollama_chat.is_loading(request.fields):
            await self._load(request, key, reply)
        else:
            await self._in_turn(request, key, reply)

    def _pulls(self, refusal: Refusal, call: Call, key: Key) -> bool:
        """Return whether a model that there is none of is downloaded for this request."""
        return refusal.code in NO_MODEL and not key.tiers and self._on_demand.may_pull(call.asked)

    async def _pull(self, call: Call, key: Key, reply: Reply) -> None:
        """Have the model of a request downloaded, and the request answered then. A stream gets comments meanwhile."""
        if orjson.loads(call.body).get("stream") is True:
            reply.wait()
        try:
            refusal = await self._pulled(call)
        finally:
            await reply.stop_waiting()
        request = refusal or self._relay_request(call, call.body, key)
        if isinstance(request, Refusal):
            await reply.refuse(request)
        else:
            await self._serve_request(request, key, reply)

    async def _pulled(self, call: Call) -> Refusal | None:
        """Have the model that a request asks for downloaded; return why it is not."""
        with _timed(call):
            return await self._on_demand.pulled(call.asked, self._on_demand.patience())

    async def _load(self, request: RelayRequest, key: Key, reply: Reply) -> None:
        """Answer a request without words, by which Ollama's clients have a model loaded, kept, or stopped."""
        engine, call, keep_s = self._engine(request), request.call, _keep_s(request.fields)
        tracked, refusal = self._on_demand.tracks(engine), None
        async with self._on_demand.used(engine, keep_s):
            if keep_s != 0 and tracked:
                refusal = await self._loaded(call, engine, key, self._on_demand.patience())
        texts = cast("OllamaTexts", request.fields)
        answer = ollama_chat.loading(texts, call, stops=keep_s == 0 and tracked)
        await (reply.refuse(refusal) if refusal else reply.whole(orjson.dumps(answer)))

    async def _loaded(self, call: Call, engine: str, key: Key, until: float) -> Refusal | None:
        """Have the engine of a request loaded; return why it is not."""
        with _timed(call):
            return await self._on_demand.awake(engine, background=call.batch or key.background, until=until)

    async def _retrieve(self, content: bytes, receive: Receive, call: Call, key: Key, reply: Reply) -> None:
        """Answer a request for embeddings or a ranking."""
        request = checks.read(BY_PATH[call.path].schema, content)
        if isinstance(request, Refusal):
            await self._refuse(call, request, reply)
            return
        call.asked = self._asked(request)
        checked = self._retrieval_request(call, request, key)
        if isinstance(checked, Refusal) and self._pulls(checked, call, key):
            await self._until_left(self._pull_retrieval(call, request, key, reply), receive, call)
        elif isinstance(checked, Refusal):
            await self._refuse(call, checked, reply)
        else:
            await self._until_left(self._answer_retrieval(checked, key, reply), receive, call)

    async def _pull_retrieval(self, call: Call, request: Fields, key: Key, reply: Reply) -> None:
        """Have the model of a request for vectors or a ranking downloaded, and the request answered then."""
        refusal = await self._pulled(call)
        checked = refusal or self._retrieval_request(call, request, key)
        if isinstance(checked, Refusal):
            await reply.refuse(checked)
        else:
            await self._answer_retrieval(checked, key, reply)

    def _retrieval_request(self, call: Call, request: Fields, key: Key) -> Retrieving | Refusal:
        """Return what serves a request for vectors or a ranking, or why it is refused."""
        dialect = BY_PATH[call.path]
        model = self._on_demand.find(call.asked)
        if model is not None and model.purpose == retrieval.PURPOSES[dialect]:
            if not key.may_ask(*model.names):
                return errors.not_allowed(key.name, model.model)
            return self._limited(call, key) or Retrieving(call, dialect, request, model.engine, model.model)
        name = self._on_demand.tier(call.asked) or call.asked
        purpose = retrieval.PURPOSES[dialect]
        route = retrieval.find(self._routes, dialect, name, key, lambda: self._on_demand.names_for(purpose, key))
        if isinstance(route, Refusal):
            return route
        return self._limited(call, key) or Retrieving(call, dialect, request, route.route.engine, "", route)

    async def _answer_retrieval(self, request: Retrieving, key: Key, reply: Reply) -> None:
        """Have the engine answer, once it is awake."""
        call, engine, until = request.call, request.engine, self._on_demand.patience()
        async with self._on_demand.used(engine, request.keep_s):
            refusal = await self._loaded(call, engine, key, until)
            model = self._on_demand.find(request.model)
            route = request.route or (model.retrieval if model else None)
            if refusal is None and route is None:
                refusal = errors.unavailable({request.model: "it was removed"})
            checked = refusal or retrieval.read(call, request.dialect, request.fields, cast("RetrievalRoute", route))
            refusal = checked if isinstance(checked, Refusal) else await self._retrieved(checked, engine, until, reply)
            if refusal is not None:
                await reply.refuse(refusal)

    async def _retrieved(
        self, request: retrieval.RetrievalRequest, engine: str, until: float, reply: Reply
    ) -> Refusal | None:
        """Have the engine answer, or the one that an upgrade puts in its place; return why neither did."""

        async def answer() -> Refusal | None:
            return await retrieval.serve(request, self._parts()[0], reply)

        while True:
            since = self._on_demand.known
            refusal = await (self._queue.in_spare_time(request.call, answer) if request.call.batch else answer())
            if refusal is None or refusal.code != UNAVAILABLE:
                return refusal
            if not await self._on_demand.replaced(engine, since, until):
                return refusal
            request.call.restart()

    def _asked(self, request: Fields) -> str:
        """Return the name that a request asks for, without the tag `latest`, unless a name of this stack has that."""
        name: str = cast("Any", request).model
        owner = self._routes.tier(name) or self._routes.purpose(name) or self._on_demand.find(name)
        return name if owner or self._on_demand.tier(name) else plain(name)

    def _limited(self, call: Call, key: Key) -> Refusal | None:
        return None if call.batch else self._rate_limited(key)

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
        call.asked = self._asked(request)
        tier = self._routes.tier(call.asked) or self._on_demand.tier(call.asked)
        if tier is None or tier not in self._routes.tiers:
            return self._request_on_demand(call, dialect, request, key)
        if not key.may_ask(tier):
            return errors.not_allowed(key.name, tier)
        return self._limited(call, key) or _relay_request(call, dialect, request, tier)

    def _request_on_demand(self, call: Call, dialect: Dialect, request: Fields, key: Key) -> RelayRequest | Refusal:
        """Return the request to relay to a model that no tier serves, or the refusal of it."""
        model = self._on_demand.find(call.asked)
        own = self._routes.purpose(self._on_demand.tier(call.asked) or call.asked)
        purpose = model.purpose if model else own
        if purpose is not None and purpose != stack.CHAT:
            return retrieval.no_chat(purpose, call.asked)
        if model is None:
            return self._no_model(call.asked, key)
        if not key.may_ask(*model.names):
            return errors.not_allowed(key.name, model.model)
        return self._limited(call, key) or _relay_request(call, dialect, request, model.model, on_demand=True)

    def _no_model(self, name: str, key: Key) -> Refusal:
        names = ", ".join(models.names(self._routes, self._on_demand, key))
        return Refusal(404, f"There is no model {name[:100]!r} here. There are: {names}.", MISSING, "model")

    def _rate_limited(self, key: Key) -> Refusal | None:
        wait = self._ring.rate_limited(key)
        if wait is None:
            return None
        message = f"Rate limit exceeded: key {key.name} allows {key.rpm} requests per minute."
        return Refusal(429, message, "rate_limit_exceeded", headers={"retry-after": str(int(wait) + 1)})

    async def _in_turn(self, request: RelayRequest, key: Key, reply: Reply) -> None:
        """Have a request answered in its turn, once its engine is awake."""
        engine = self._engine(request)
        if not self._on_demand.tracks(engine):
            if refusal := await self._answer_replaced(request, engine, key, reply):
                await self._parts()[1].refuse(request, refusal, reply)
            return
        async with self._on_demand.used(engine, _keep_s(request.fields)):
            if refusal := await self._answer_awake(request, engine, key, reply):
                await self._parts()[1].refuse(request, refusal, reply)

    def _engine(self, request: RelayRequest) -> str:
        """Return the engine of the tier or model that a request asks for."""
        model = self._model(request)
        return model.engine if model else self._routes.engine(request.tier)

    def _model(self, request: RelayRequest) -> SleepingModel | None:
        """Return the model on demand that a request asks for; None for a tier."""
        return self._on_demand.find(request.tier) if request.tier not in self._routes.tiers else None

    async def _answer_replaced(self, request: RelayRequest, engine: str, key: Key, reply: Reply) -> Refusal | None:
        """Have an engine that never sleeps answer; return why it did not.

        Where an upgrade is replacing it and no other one stands in, the request waits for the next one.
        """
        until = self._on_demand.patience()
        while True:
            since = self._on_demand.known
            refusal = await self._answer(request, key, reply)
            if refusal is None or refusal.code != UNAVAILABLE:
                return refusal
            if request.streams:
                reply.wait()
            try:
                with _timed(request.call):
                    again = await self._on_demand.replaced(engine, since, until)
            finally:
                await reply.stop_waiting()
            if not again:
                return refusal
            request.call.restart()

    async def _answer_awake(self, request: RelayRequest, engine: str, key: Key, reply: Reply) -> Refusal | None:
        """Have an engine that may sleep answer; return why it did not.

        One that was stopped before its first words, as another's turn had come, is waited for again.
        """
        call, until = request.call, self._on_demand.patience()
        while True:
            if refusal := await self._awake(request, engine, key, reply, until):
                return refusal
            refusal = await self._answer(request, key, reply)
            if refusal is None or refusal.code != UNAVAILABLE:
                return refusal
            await self._on_demand.look()
            if self._on_demand.state(engine) not in {"sleeping", "loading"}:
                return refusal
            call.restart()

    async def _awake(self, request: RelayRequest, engine: str, key: Key, reply: Reply, until: float) -> Refusal | None:
        """Hold a request until its engine serves; a stream gets comments meanwhile. Return why it does not."""
        if self._on_demand.state(engine) in {"serving", "stopped"}:
            return None
        if refusal := self._refused_asleep(request):
            return refusal
        if request.streams:
            reply.wait()
        try:
            return await self._loaded(request.call, engine, key, until)
        finally:
            await reply.stop_waiting()

    def _refused_asleep(self, request: RelayRequest) -> Refusal | None:
        """Return why what a request asks for is not carried out, as far as is known before its model is loaded."""
        model = self._model(request)
        route = model.route if model else self._routes.tiers.get(request.tier)
        if route is not None:
            return not_carried_out(request, route)
        return model and checks.carried_out_by_none(
            request.fields, model.model, self._on_demand.backend, vision=model.vision
        )

    async def _answer(self, request: RelayRequest, key: Key, reply: Reply) -> Refusal | None:
        """Have the relay answer in the request's turn; return why it did not."""
        relay = self._parts()[1]
        if request.call.batch:
            return await self._queue.in_spare_time(request.call, lambda: relay.answer(request, reply))
        async with self._queue.turn(background=key.background) as waited:
            request.call.waited_s = waited
            return await relay.answer(request, reply)

    async def _until_left(self, serving: Coroutine[Any, Any, None], receive: Receive, call: Call) -> None:
        """Serve a request until it is answered or its client leaves, and count it."""
        task = asyncio.current_task()
        assert task is not None
        leaving = asyncio.create_task(_watch(receive, call, task))
        self._running += 1
        try:
            await serving
        except asyncio.CancelledError:
            if not call.disconnected:
                raise
            task.uncancel()
            call.status = LEFT
        finally:
            self._running -= 1
            leaving.cancel()
            self._count(call)

    def _parts(self) -> tuple[EngineClient, Relay]:
        if self._started is None:
            self._started = self._start()
        return self._started


@contextmanager
def _timed(call: Call) -> Generator[None]:
    """Count how long a request waits for its model."""
    began = time.monotonic()
    try:
        yield
    finally:
        call.loaded_s += time.monotonic() - began


async def _watch(receive: Receive, call: Call, task: asyncio.Task[Any]) -> None:
    """Cancel a request's task when its client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
    call.disconnected = True
    task.cancel()


def for_app(key: Key, scope: Scope) -> Key:
    """Return a front's key as it counts for a request: it yields and is stored as the app's key says that it asks for.

    An app's key cannot say of itself what it is not.
    """
    headers = dict(scope["headers"])
    if APP not in headers or not (key.kind == "fleet" or key.name == MASTER_NAME):
        return key
    words = headers[APP].decode("latin-1").split()
    return replace(
        key, background=key.background or plan.BACKGROUND in words, store=key.store and plan.NO_STORE not in words
    )


def _opens(key: Key, path: str) -> bool:
    """Return whether a key's kind opens a path that is none of the fleet's: a node asks models, a member nothing."""
    if key.kind == "fleet":
        return path in BY_PATH or any(path == prefix or path.startswith(f"{prefix}/") for prefix in MODELS)
    return key.kind == "app"


def _shape(path: str) -> Dialect:
    """Return the dialect in whose shape a path that is none of a dialect's is answered."""
    if path.startswith(ollama.PREFIX):
        return OLLAMA_CHAT
    return MESSAGES if path.startswith("/v1/messages") else CHAT


def _keep_s(request: Fields) -> float | None:
    """Return how long a request says that its model is to stay after it, in seconds; None where it does not say."""
    fields = cast("Any", request)
    keep_alive: float | None = getattr(fields, "keep_alive", None)
    return getattr(fields, "ttl", None) if keep_alive is None else keep_alive


def _relay_request(
    call: Call, dialect: Dialect, request: Fields, tier: str, *, on_demand: bool = False
) -> RelayRequest | Refusal:
    streams = bool(getattr(request, "stream", None)) and dialect.streams
    if streams and call.batch:
        return unsupported("stream", "the answers of a batch are read whole.")
    alone = bool(getattr(request, "disable_fallbacks", False)) or dialect is COUNT_TOKENS or on_demand
    return RelayRequest(call, dialect, request, tier, alone, streams)


def _route_refusal(scope: Scope) -> Refusal | None:
    """Return the refusal of a path that is no route, or not for this method; None for a route."""
    path, method = scope["path"], scope["method"]
    if path.startswith(AUDIO):
        return Refusal(
            501, f"mlxq serves no model that hears or speaks: there is no {path[:100]}.", "no_audio", headers=_ONCE
        )
    reads = any(path == prefix or path.startswith(f"{prefix}/") for prefix in MODELS)
    if not reads and path not in BY_PATH:
        return Refusal(404, f"There is nothing at {method} {path[:100]}.", "unknown_route")
    allowed = {"GET", "HEAD"} if reads else {"POST"}
    if method in allowed:
        return None
    message = f"{path[:100]} does not take {method}, only {units.listed(sorted(allowed))}."
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
