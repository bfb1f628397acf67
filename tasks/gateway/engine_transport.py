"""Between LiteLLM and the engines: every dialect passes here as one, so the engine's gaps are closed here once.

Measured of vllm-mlx 0.6.0: it ignores `stop`; json_schema without Metal fails the whole batch; a generation that
breaks ends its stream without a finish reason, which reads like a complete answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from tasks.gateway import context_limit, errors, json_schema, sse
from tasks.gateway.cloud_budget import CLOUD, Purse
from tasks.gateway.errors import Refusal
from tasks.gateway.poison_requests import Guard
from tasks.gateway.request_context import CURRENT, Call
from tasks.gateway.routes import Names
from tasks.gateway.stop_strings import Scanner

_FINISHED = (b'"finish_reason":"', b'"finish_reason": "')
_USAGE = (b'"usage":{', b'"usage": {')
_COMMENT = b":"
"""How the engine's heartbeat begins, which LiteLLM's handler takes for a chunk without words."""
_MENDED = ("/chat/completions", "/completions")


@dataclass(frozen=True)
class Mend:
    """What the engine cannot do for this request."""

    stops: tuple[str, ...]
    schema: dict[str, Any] | None
    streams: bool
    """Whether the caller gets a stream. The engine is always asked for one, so that it can be cut off."""


class Wire(httpx.AsyncBaseTransport):
    """LiteLLM's way to the engines, and the only way out of the machine."""

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        names: Names,
        guard: Guard,
        purse: Purse,
        *,
        native_schema: bool,
    ) -> None:
        """Take who lives at which host and port, and its size; a request to any other is refused."""
        self._inner = inner
        self._names = names
        self._guard = guard
        self._purse = purse
        self._native_schema = native_schema

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Pass one request on, mended. Raises httpx.TransportError as the network does."""
        call = CURRENT.get() or Call(path="")
        tier = self._names.places.get((request.url.host, request.url.port))
        if tier is None:
            raise httpx.ConnectError(f"mlxq lets nothing go to {request.url.host}")
        if refusal := self._refusal(call, tier):
            return _refused(request, refusal)
        body: dict[str, Any] = orjson.loads(request.content) if request.content else {}
        if refusal := await self._overlong(request.content, body, call, tier):
            return _refused(request, refusal)
        call.tried.append(tier)
        if tier == CLOUD:
            self._purse.leave(call)
        with self._noting(call, tier):
            return await self._pass(request, body, call, tier)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()

    def _refusal(self, call: Call, tier: str) -> Refusal | None:
        """Tell why nobody may try this request, or why not this tier.

        LiteLLM takes a refused request to every fallback in turn; here the rest of that way costs nothing.
        """
        if call.settled:
            return call.refusal
        if killers := self._guard.killers(lambda: call.fingerprint):
            names = " and ".join(sorted(killers))
            message = f"{names} died while working on this very request, so no other tier gets it for ten minutes."
            return _settle(call, Refusal(422, message, "request_kills_tiers"))
        if tier == CLOUD and (told := self._purse.empty()):
            call.failures[tier] = told
            return Refusal(402, told)
        return None

    async def _overlong(self, content: bytes, body: dict[str, Any], call: Call, tier: str) -> Refusal | None:
        """Tell that a prompt does not fit the tier; LiteLLM then asks the next larger one."""
        context = self._names.contexts.get(tier)
        if context is None or (tokens := await context_limit.excess(call, content, body, context)) is None:
            return None
        return errors.overlong(tokens, context)

    @contextmanager
    def _noting(self, call: Call, tier: str) -> Generator[None]:
        try:
            yield
        except httpx.ConnectError:
            call.failures[tier] = "refused the connection"
            raise
        except httpx.TimeoutException:
            call.failures[tier] = "was silent for too long"
            raise
        except httpx.TransportError:
            call.failures[tier] = "died while it worked on the request"
            self._guard.crashed(call.fingerprint, tier)
            raise

    async def _pass(self, request: httpx.Request, body: dict[str, Any], call: Call, tier: str) -> httpx.Response:
        mend = self._mend(request, body, tier)
        if mend and mend.schema is not None and (fault := json_schema.faulty(mend.schema)):
            fault = _settle(call, Refusal(400, f"The JSON schema is not valid: {fault}", "invalid_json_schema"))
            return _refused(request, fault)
        if mend or tier == CLOUD:
            request = _rewrite(request, self._purse.ask(body) if tier == CLOUD else _asked(body, mend))
        request.headers["accept-encoding"] = "identity"
        response = await self._inner.handle_async_request(request)
        if not response.is_success:
            call.failures[tier] = f"answered {response.status_code}"
            return await _failed(request, response, call)
        source = sse.events(_bytes(response))
        if mend:
            return await self._mended(request, source, mend, call, tier)
        if body.get("stream"):
            return _streamed(request, self._told(self._whole(source), call, tier))
        whole = await response.aread()
        self._note_usage(call, tier, _usage(whole))
        self._guard.answered(lambda: call.fingerprint)
        return _answer(request, 200, whole)

    def _mend(self, request: httpx.Request, body: dict[str, Any], tier: str) -> Mend | None:
        if tier == CLOUD or not request.url.path.endswith(_MENDED):
            return None
        stop = body.get("stop") or ()
        stops = (stop,) if isinstance(stop, str) else tuple(str(one) for one in stop)
        schema = None if self._native_schema else json_schema.wanted(body)
        return Mend(stops, schema, bool(body.get("stream"))) if stops or schema is not None else None

    async def _mended(
        self,
        request: httpx.Request,
        source: AsyncGenerator[bytes],
        mend: Mend,
        call: Call,
        tier: str,
    ) -> httpx.Response:
        source = self._whole(source)
        if mend.stops:
            source = _stopped(source, mend.stops, lambda count: self._count(request, count))
        if mend.streams and mend.schema is None:
            return _streamed(request, self._told(source, call, tier))
        fold = sse.Fold()
        async with aclosing(source):
            async for event in source:
                if (payload := sse.data(event)) and payload != sse.DONE:
                    fold.add(orjson.loads(payload))
        self._note_usage(call, tier, fold.usage)
        self._guard.answered(lambda: call.fingerprint)
        told = json_schema.mismatch(fold.text, mend.schema) if mend.schema is not None and not fold.calls else None
        if told:
            call.refusal = Refusal(422, f"The model's answer does not match the schema: {told}", "schema_mismatch")
            return _refused(request, call.refusal)
        if mend.streams:
            return _answer(request, 200, b"".join(fold.chunks()), "text/event-stream")
        return _answer(request, 200, orjson.dumps(fold.answer()))

    async def _whole(self, source: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        """Pass the events on; fail where the stream ends without a finish reason, which would read as complete."""
        finished = False
        async with aclosing(source):
            async for event in source:
                finished = finished or any(mark in event for mark in _FINISHED)
                payload = sse.data(event)
                if payload == sse.DONE and not finished:
                    break
                if payload and payload.startswith((b'{"error"', b'{"detail"')):
                    raise httpx.RemoteProtocolError(f"the engine broke off: {payload[:300].decode(errors='replace')}")
                yield event
        if not finished:
            raise httpx.RemoteProtocolError("the stream ended without a finish reason")

    async def _told(self, source: AsyncGenerator[bytes], call: Call, tier: str) -> AsyncGenerator[bytes]:
        """Pass a stream on, and keep account of it."""
        usage: dict[str, Any] | None = None
        try:
            with self._noting(call, tier):
                async with aclosing(source):
                    async for event in source:
                        if any(mark in event for mark in _USAGE):
                            usage = _usage(sse.data(event)) or usage
                        if call.first_byte_s is None and sse.speaks(event):
                            call.heard()
                        if not event.startswith(_COMMENT):
                            yield sse.disguised(event)
            self._guard.answered(lambda: call.fingerprint)
        finally:
            self._note_usage(call, tier, usage)

    def _note_usage(self, call: Call, tier: str, usage: dict[str, Any] | None) -> None:
        call.heard()
        if usage:
            call.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            call.completion_tokens = int(usage.get("completion_tokens") or 0)
        if tier == CLOUD:
            self._purse.pay(usage or {})

    async def _count(self, request: httpx.Request, completion: int) -> dict[str, int] | None:
        """Ask the engine how long the prompt of a running request is, as a cut stream never says it.

        The engine's account has no request id that we know, so the one nearest in progress is taken.
        """
        headers = {"authorization": request.headers.get("authorization", "")}
        asked = httpx.Request("GET", request.url.copy_with(path="/v1/status"), headers=headers)
        response = await self._inner.handle_async_request(asked)
        if not response.is_success:
            await response.aclose()
            return None
        running: list[dict[str, Any]] = orjson.loads(await response.aread()).get("requests") or []
        if not running:
            return None
        nearest = min(running, key=lambda one: abs(int(one.get("completion_tokens") or 0) - completion))
        prompt = int(nearest.get("prompt_tokens") or 0)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class _Body(httpx.AsyncByteStream):
    """A response's body that is made while it is read."""

    def __init__(self, source: AsyncGenerator[bytes]) -> None:
        self._source = source

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._source:
            yield part

    async def aclose(self) -> None:
        await self._source.aclose()


async def _bytes(response: httpx.Response) -> AsyncGenerator[bytes]:
    """Give the body as it comes; closing this closes the connection, by which the engine stops working."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    try:
        async for chunk in response.stream:
            yield chunk
    finally:
        await response.aclose()


async def _stopped(
    source: AsyncGenerator[bytes], stops: tuple[str, ...], count: Callable[[int], Awaitable[dict[str, int] | None]]
) -> AsyncGenerator[bytes]:
    """Pass a stream on up to the first stop string, then end it as the engine would have."""
    scanner, tokens = Scanner(stops), 0
    async with aclosing(source):
        async for event in source:
            payload = sse.data(event)
            chunk: dict[str, Any] = orjson.loads(payload) if payload and payload != sse.DONE else {}
            if not chunk.get("choices"):
                yield event
                continue
            choice: dict[str, Any] = chunk["choices"][0]
            part, name = (choice, "text") if "text" in choice else (choice.setdefault("delta", {}), "content")
            tokens += bool(part.get(name))
            shown = scanner.feed(part.get(name) or "")
            if choice.get("finish_reason") and not scanner.hit:
                shown += scanner.rest()
            if part.get(name) is not None or shown:
                part[name] = shown
            if scanner.hit:
                choice["finish_reason"] = "stop"
                usage = chunk.pop("usage", None) or await count(tokens)
                yield sse.encode(chunk)
                if usage:
                    yield sse.encode({**chunk, "choices": [], "usage": usage})
                yield b"data: " + sse.DONE + b"\n\n"
                return
            yield sse.encode(chunk)


def _asked(body: dict[str, Any], mend: Mend | None) -> dict[str, Any]:
    """Give what the engine is asked instead."""
    if mend is None:
        return body
    asked = json_schema.ask(body, mend.schema) if mend.schema is not None else dict(body)
    asked.pop("stop", None)
    if not mend.streams:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    return asked


def _rewrite(request: httpx.Request, body: dict[str, Any]) -> httpx.Request:
    headers = [(name, value) for name, value in request.headers.items() if name != "content-length"]
    return httpx.Request(
        request.method, request.url, headers=headers, content=orjson.dumps(body), extensions=request.extensions
    )


def _refused(request: httpx.Request, refusal: Refusal) -> httpx.Response:
    """Tell LiteLLM that a request is at fault: of all answers only 400 neither cools a tier down nor is mended."""
    return _answer(request, 400, refusal.body(""))


def _settle(call: Call, refusal: Refusal) -> Refusal:
    """Note that no tier could answer this request."""
    call.refusal, call.settled = refusal, True
    return refusal


async def _failed(request: httpx.Request, response: httpx.Response, call: Call) -> httpx.Response:
    """Pass an engine's error on in OpenAI's shape.

    LiteLLM 1.106.2 makes a 422, which is the engine's word for a bad field, into 200 `null`; so it becomes 400.
    """
    status = 400 if response.status_code == 422 else response.status_code  # noqa: PLR2004 - Unprocessable Entity
    message = errors.told(await response.aread())["message"]
    refusal = Refusal(status, message)
    if status == 400 and not errors.about_length(message):  # noqa: PLR2004 - Bad Request
        _settle(call, refusal)
    return _answer(request, status, refusal.body(""), headers=_waits(response))


def _answer(
    request: httpx.Request,
    status: int,
    content: bytes,
    kind: str = "application/json",
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    told = {"content-type": kind, **(headers or {})}
    return httpx.Response(status, headers=told, content=content, request=request)


def _waits(response: httpx.Response) -> dict[str, str]:
    """Give the time after which a busy engine wants to be asked again."""
    return {name: value for name, value in response.headers.items() if name.lower() == "retry-after"}


def _streamed(request: httpx.Request, source: AsyncGenerator[bytes]) -> httpx.Response:
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=_Body(source), request=request)


def _usage(payload: bytes | None) -> dict[str, Any] | None:
    try:
        return orjson.loads(payload or b"{}").get("usage")
    except (orjson.JSONDecodeError, AttributeError):
        return None
