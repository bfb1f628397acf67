"""The door before LiteLLM's proxy: who may ask, what may pass, and which conversation a request belongs to.

An ASGI application around the proxy's. Loaded by front_program.py in the proxy's own environment, which has no mlxq: it
imports nothing of it. It goes by policy.json (tasks/front/plan.py) and by keys.json, which has hashes of keys alone.
"""

from __future__ import annotations

import asyncio
import fnmatch
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

Json = dict[str, Any]
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/health/liveliness", "/health/readiness"})
"""What a supervisor may ask without a key; the proxy answers it."""
MODELS = frozenset({"/v1/models", "/models"})
LARGEST_BYTES = 32 * 2**20
READ_S = 30.0
RETRY_AFTER_S = "5"
SESSION = b"x-litellm-session-id"
"""By this header the proxy's session affinity knows a conversation."""
PASSED = frozenset(
    {b"host", b"authorization", b"x-api-key", b"content-type", b"accept", b"user-agent", b"anthropic-version"}
)
"""Headers of a request that the proxy sees: it obeys x-litellm-timeout, x-litellm-tags and others."""
HIDDEN = (b"x-litellm-", b"llm_provider-")
SHOWN = frozenset({b"x-litellm-model-id", b"x-litellm-call-id", b"x-litellm-attempted-retries"})
"""Headers of an answer that are about it alone: the others tell the addresses of nodes."""
OPENING_BYTES = 16_384
"""How much of a conversation's beginning tells it from others."""
KEY = "mlxq.key"
"""Where a request's scope has the key that it was sent with."""
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "api_error",
}


class FrontRefusal(Exception):
    """A request that the proxy does not get to see."""

    def __init__(self, status: int, message: str, code: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers


# ---------------------------------------------------------------- keys


@dataclass(frozen=True)
class AppKey:
    """One app's key, as keys.json has it."""

    name: str
    digest: str
    tiers: tuple[str, ...] = ()
    rpm: int | None = None
    background: bool = False
    store: bool = True

    @property
    def words(self) -> str:
        """Return what a node is told of the app that asks: the header `x-mlxq-app` (tasks/plan/gateway.py)."""
        return " ".join(["background"] * self.background + ["no-store"] * (not self.store))

    def may_ask(self, *names: str) -> bool:
        """Return whether it may ask for what goes by these names."""
        return not self.tiers or any(name in self.tiers for name in names)


class AppKeys:
    """The keys that are valid now. A changed file is read again at the next request."""

    def __init__(self, path: Path, master: str) -> None:
        """`master`: SHA-256 of mlxq's own key, in hex."""
        self._path = path
        self._master = AppKey("mlxq", master)
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, AppKey] = {}

    def find(self, secret: str) -> AppKey | None:
        """Return what a key may do; None for one that is wrong or was revoked."""
        digest = hashlib.sha256(secret.encode()).hexdigest()
        if hmac.compare_digest(digest, self._master.digest):
            return self._master
        self._refresh()
        return self._keys.get(digest)

    def _refresh(self) -> None:
        """Read the file where it has changed. One that is damaged leaves the keys that were read before."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            self._keys, self._seen = {}, None
            return
        version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if version == self._seen:
            return
        self._seen = version
        try:
            keys = [_key(row) for row in json.loads(self._path.read_bytes()) if row.get("kind", "app") == "app"]
        except (ValueError, TypeError, KeyError, AttributeError):
            return
        self._keys = {key.digest: key for key in keys}


def _key(row: Json) -> AppKey:
    tiers = tuple(map(str, row["tiers"]))
    background, store = row.get("background") is True, row.get("store") is not False
    return AppKey(row["name"], row["digest"], tiers, row["rpm"], background, store)


def secret_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the key in a request's headers, OpenAI's style or Anthropic's; empty where there is none."""
    values = {name: value.decode("latin-1").strip() for name, value in headers}
    scheme, _, token = values.get(b"authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else values.get(b"x-api-key", "")


# ---------------------------------------------------------------- what passes


@dataclass(frozen=True)
class Policy:
    """What may be asked, as policy.json says it."""

    routes: Mapping[str, Json]
    """Path -> JSON schema of a request: the fields that pass."""
    groups: frozenset[str]
    """What can be asked for."""
    names: Mapping[str, str]
    """Other names and patterns -> the group that answers."""

    @classmethod
    def read(cls, path: Path) -> Policy:
        """Read policy.json. Raises OSError, ValueError, KeyError."""
        content: Json = json.loads(path.read_bytes())
        return cls(content["routes"], frozenset(content["groups"]), content["names"])

    def group(self, model: str) -> str | None:
        """Return the group that answers for a name; of two patterns the longer counts."""
        if model in self.groups:
            return model
        fitting = [name for name in self.names if fnmatch.fnmatchcase(model, name)]
        return self.names[max(fitting, key=len)] if fitting else None


def passed(value: Any, schema: Json, definitions: Mapping[str, Json]) -> Any:
    """Return a JSON value with the named properties alone; an object of any shape passes whole."""
    variants = list(_variants(schema, definitions))
    if isinstance(value, dict):
        objects = [variant for variant in variants if variant.get("type") == "object"]
        if any("properties" not in variant for variant in objects):
            return cast("Json", value)
        properties: dict[str, list[Json]] = {}
        for variant in objects:
            for name, part in variant["properties"].items():
                properties.setdefault(name, []).append(part)
        pairs = cast("Json", value).items()
        return {
            name: passed(part, {"anyOf": properties[name]}, definitions) for name, part in pairs if name in properties
        }
    if isinstance(value, list):
        items = {"anyOf": [variant["items"] for variant in variants if "items" in variant]}
        return [passed(part, items, definitions) for part in cast("list[Any]", value)]
    return value


def _variants(schema: Json, definitions: Mapping[str, Json]) -> Iterable[Json]:
    """Yield what a value may be, without references and alternatives. `{}` is a value of any shape."""
    if "$ref" in schema:
        yield from _variants(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    elif alternatives := schema.get("anyOf", schema.get("oneOf", schema.get("allOf"))):
        for alternative in alternatives:
            yield from _variants(alternative, definitions)
    else:
        yield schema or {"type": "object"}


# ---------------------------------------------------------------- which conversation


def conversation(body: Mapping[str, Any]) -> str | None:
    """Return what all turns of a conversation share, hashed: its system prompt, tools' names and first user message."""
    turns = body.get("messages", body.get("input"))
    if isinstance(turns, list):
        opening: list[Any] = []
        for turn in cast("list[Any]", turns):
            opening.append(turn)
            if isinstance(turn, dict) and cast("Json", turn).get("role") == "user":
                break
    else:
        opening = [turns or body.get("prompt")]
    if not opening or opening == [None]:
        return None
    text = json.dumps([body.get("system"), body.get("instructions"), opening], sort_keys=True)
    return hashlib.sha256(text[:OPENING_BYTES].encode()).hexdigest()[:32]


# ---------------------------------------------------------------- the door


@dataclass
class FrontDoor:
    """The proxy's ASGI application behind an allow-list of paths, headers and fields, and behind the apps' keys."""

    application: Application
    ring: AppKeys
    policy: Policy
    tell: Callable[[str], object] = str
    """Gets the words of a request's key, in the request's own context, before the proxy does."""
    under_way: Callable[[], AbstractContextManager[None]] = nullcontext
    """What lasts as long as the proxy answers a request."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        if scope["type"] == "lifespan":
            await self.application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["path"] in OPEN and scope["method"] in {"GET", "HEAD"}:
            await self.application({**scope, "headers": [], "query_string": b""}, receive, send)
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            key = self._admitted(scope)
            scope = {**scope, KEY: key, "query_string": b""}
            if scope["path"] in MODELS:
                passing, content = scope, receive
                headers: list[tuple[bytes, bytes]] = []
            else:
                body, headers = self._checked(scope["path"], await _read(receive), key)
                passing, content = scope, _replayed(body, receive)
        except FrontRefusal as refusal:
            await _refuse(refusal, send, anthropic=scope["path"].startswith("/v1/messages"))
        except ConnectionError:
            return
        else:
            self.tell(key.words)
            with self.under_way():
                await self.application(_with_headers(passing, headers), content, _without_addresses(send))

    def _admitted(self, scope: Scope) -> AppKey:
        """Return the key of a request for a route there is. Raises FrontRefusal."""
        names = [name for name, _ in scope["headers"]]
        if b"content-length" in names and b"transfer-encoding" in names:
            raise FrontRefusal(
                400, "A request has either Content-Length or Transfer-Encoding, not both.", "invalid_request"
            )
        secret = secret_of(scope["headers"])
        key = self.ring.find(secret) if secret else None
        if key is None:
            message = (
                "The key is not valid, or was revoked." if secret else "A key is needed: Authorization: Bearer KEY."
            )
            raise FrontRefusal(401, message, "invalid_api_key", **{"www-authenticate": "Bearer"})
        path, method = str(scope["path"]), scope["method"]
        if path not in MODELS and path not in self.policy.routes:
            raise FrontRefusal(404, f"There is nothing at {method} {path[:100]}.", "unknown_route")
        allowed = "GET" if path in MODELS else "POST"
        if method != allowed:
            message = f"{path[:100]} does not take {method}, only {allowed}."
            raise FrontRefusal(405, message, "method_not_allowed", allow=allowed)
        return key

    def _checked(self, path: str, content: bytes, key: AppKey) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """Return the body that passes, and the headers that go with it. Raises FrontRefusal."""
        try:
            fields: Any = json.loads(content)
        except (ValueError, RecursionError) as problem:
            raise FrontRefusal(400, "The request is not JSON.", "invalid_json") from problem
        if not isinstance(fields, dict):
            raise FrontRefusal(400, "The request must be a JSON object.", "invalid_json")
        schema = self.policy.routes[path]
        body: Json = passed(fields, schema, schema.get("$defs", {}))
        model = body.get("model")
        group = self.policy.group(model) if isinstance(model, str) else None
        if group is None:
            if not self.policy.groups:
                raise FrontRefusal(503, "No node serves a model now.", "no_node", **{"retry-after": RETRY_AFTER_S})
            names = ", ".join(sorted(name for name in self.policy.groups if key.may_ask(name)))
            raise FrontRefusal(
                404, f"There is no model {str(model)[:100]!r} here. There are: {names}.", "model_not_found"
            )
        if not key.may_ask(str(model), group):
            raise FrontRefusal(403, f"The key {key.name} may not ask for {str(model)[:100]}.", "model_not_allowed")
        body["model"] = group
        session = conversation(body)
        return json.dumps(body).encode(), [(SESSION, session.encode())] if session else []


async def _read(receive: Receive) -> bytes:
    """Return the body. Raises FrontRefusal beyond LARGEST_BYTES or READ_S, ConnectionError when the client has left."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(READ_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionError("the client has left")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > LARGEST_BYTES:
                    text = f"The request has more than {LARGEST_BYTES} bytes, the most that this front takes."
                    raise FrontRefusal(413, text, "request_too_large")
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError as problem:
        raise FrontRefusal(408, f"The request was not whole within {READ_S:.0f} s.", "request_timeout") from problem


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return what gives `body` as the request's, and after it what the client does."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_body() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_body


def _with_headers(scope: Scope, more: Sequence[tuple[bytes, bytes]]) -> Scope:
    return {**scope, "headers": [(name, value) for name, value in scope["headers"] if name in PASSED] + [*more]}


def _without_addresses(send: Send) -> Send:
    async def send_shown(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", [])
            shown = [pair for pair in headers if pair[0].lower() in SHOWN or not pair[0].lower().startswith(HIDDEN)]
            message = {**message, "headers": shown}
        await send(message)

    return send_shown


async def _refuse(refusal: FrontRefusal, send: Send, *, anthropic: bool) -> None:
    kind = _TYPES.get(refusal.status, "invalid_request_error")
    error: Json = {"message": refusal.message, "type": kind, "param": None, "code": refusal.code}
    payload: Json = (
        {"type": "error", "error": {"type": kind, "message": refusal.message}} if anthropic else {"error": error}
    )
    body = json.dumps(payload).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
