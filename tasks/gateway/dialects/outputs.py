"""From an engine's answer to the caller's: its bytes as they are, or chunk by chunk where a plan asks for more."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import orjson

from tasks.gateway import errors
from tasks.gateway.dialects import chat_stream, json_schema, sse, usage
from tasks.gateway.dialects.chat_stream import BROKE_OFF, Chunk, Count, Fold, Stopper, Thoughts
from tasks.gateway.dialects.dialect import CHAT, COMPLETIONS, is_object, parsed
from tasks.gateway.dialects.json_values import first, obj, objects
from tasks.gateway.dialects.plans import Plan
from tasks.gateway.dialects.usage import ReuseSource, Tokens
from tasks.gateway.engine_client import EngineDown
from tasks.gateway.errors import NotAsAsked

_CALLS = "tool_calls"
_USAGE = re.compile(rb'"usage": ?\{')
_OPEN_END, _WITH_REASON = b"}}]}" + sse.END, b'},"finish_reason":null}]}' + sse.END
"""The end of a chunk, of its only choice and of its delta; JSON has no newline within, so that no text can hold it."""
HELD_BYTES = 16 * 2**20
"""How much of a stream is held back while its tool call has not come."""


class ChunkSource(Protocol):
    """An answer's body."""

    async def read(self) -> bytes:
        """Return it whole. Raises EngineDown."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield it as it comes. Raises EngineDown."""
        ...

    async def resume(self, thoughts: str) -> AsyncIterator[bytes]:
        """Have the engine answer after what it has thought, instead of thinking on. Raises EngineDown."""
        ...


@dataclass
class Exchange:
    """One request to an engine, and what its answer comes to."""

    plan: Plan
    source: ChunkSource
    count: Count
    """Asks how long the prompt of an answer in progress is."""
    reuse: ReuseSource
    id: str
    """Of the answer, without a prefix."""
    tokens: Tokens | None = None
    """What the answer's usage says; None until then."""
    turn: Mapping[str, Any] | None = None
    """A chat's whole answer with its thoughts, as a message; None until its end."""


async def _checked(text: str, schema: Mapping[str, Any]) -> None:
    if fault := await asyncio.to_thread(json_schema.mismatch, text, schema):
        raise NotAsAsked(errors.mismatch(fault))


# Whole answers


async def whole(exchange: Exchange) -> bytes:
    """Return an answer that is not streamed. Raises EngineDown, NotAsAsked."""
    plan = exchange.plan
    if plan.chunked and plan.asks_stream:
        return await _folded(exchange)
    content = await exchange.source.read()
    answer = parsed(content)
    if answer is None:
        raise EngineDown(BROKE_OFF)
    await exchange.reuse.settle()
    filled, exchange.tokens = _filled(answer, exchange.reuse)
    if plan.one_call and (message := obj(first(filled.get("choices")).get("message"))).get(_CALLS):
        message[_CALLS] = message[_CALLS][:1]
        content = orjson.dumps(filled)
    if plan.needs_call and not obj(first(answer.get("choices")).get("message")).get(_CALLS):
        raise NotAsAsked(errors.without_call())
    if plan.dialect is CHAT:
        exchange.turn = obj(first(filled.get("choices")).get("message"))
    if plan.translation:
        return orjson.dumps(plan.translation.whole(filled, exchange.id, None, None))
    return content if filled is answer else orjson.dumps(filled)


def _filled(answer: Mapping[str, Any], reuse: ReuseSource) -> tuple[Mapping[str, Any], Tokens | None]:
    """Return an answer whose usage says what was not read again, and its tokens; itself where it says so already."""
    tokens = usage.read(answer.get("usage"))
    if tokens is None or tokens.cached == (cached := reuse.cached(tokens)):
        return answer, tokens
    filled = {**answer, "usage": usage.with_cached(answer["usage"], cached)}
    return filled, replace(tokens, cached=cached)


async def _folded(exchange: Exchange) -> bytes:
    plan, fold, spoke = exchange.plan, Fold(), None
    stopper = Stopper(plan.stops, exchange.count)
    async with aclosing(_cut(exchange, stopper)) as chunks:
        async for chunk in chunks:
            spoke = spoke or (time.monotonic() if CHAT.look(chunk).spoke else None)
            fold.add(chunk)
    await _check_fold(plan, fold)
    answer, exchange.tokens, exchange.turn = fold.answer(), usage.read(fold.usage), fold.turn
    if plan.translation:
        answer = plan.translation.whole(answer, exchange.id, stopper.hit, spoke)
    return orjson.dumps(answer)


async def _check_fold(plan: Plan, fold: Fold) -> None:
    """Check a whole answer. One that was cut by its length is not judged: its `finish_reason` says so."""
    if plan.needs_call and not fold.calls:
        raise NotAsAsked(errors.without_call())
    if plan.schema is not None and not fold.calls and fold.finish != "length":
        fold.text = json_schema.bare(fold.text)
        await _checked(fold.text, plan.schema)


async def _cut(exchange: Exchange, stopper: Stopper) -> AsyncGenerator[Chunk]:
    """Yield a chat's chunks: thoughts within their budget, words up to a stop string, what was not read again."""
    plan, reuse = exchange.plan, exchange.reuse
    chunks = chat_stream.chunks(exchange.source.chunks())
    if plan.thinking.budget is not None:
        chunks = Thoughts(plan.thinking.budget, exchange.source.resume, exchange.count).limited(chunks)
    if plan.one_call:
        chunks = chat_stream.first_call_only(chunks)
    cut = cast("AsyncGenerator[Chunk]", stopper.cut(chunks) if plan.stops else chunks)
    async with aclosing(cut):
        async for chunk in cut:
            if CHAT.look(chunk).spoke:
                reuse.look()
            if chunk.get("usage"):
                await reuse.settle()
                chunk = dict(_filled(chunk, reuse)[0])  # noqa: PLW2901 - the same one, filled
            yield chunk


# Streams


class Stream(Protocol):
    """A stream for the caller."""

    async def opening(self) -> bytes:
        """Return all up to the first words. Until then another engine can be asked. Raises EngineDown, NotAsAsked."""
        ...

    def rest(self) -> AsyncIterator[bytes]:
        """Yield what comes after the opening. Raises EngineDown."""
        ...


def _check_room(plan: Plan, content: bytearray) -> None:
    """Raise where more is held back than there is room for: NotAsAsked for words without the call, else EngineDown."""
    if len(content) <= HELD_BYTES:
        return
    raise NotAsAsked(errors.without_call()) if plan.needs_call else EngineDown("answered without an end")


def stream(exchange: Exchange) -> Stream:
    """Return the stream that a plan wants of an answer."""
    plan = exchange.plan
    if plan.chunked or (plan.needs_call and plan.dialect is CHAT):
        return ChunkStream(exchange)
    return ByteStream(exchange)


class ByteStream:
    """An engine's bytes as they are; what has to be seen is looked for."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._plan = exchange.plan
        self._reuse = exchange.reuse
        self._spoke = self._finished = self._done = False
        self._runs = self._read(exchange.source)
        self._broken = False

    async def opening(self) -> bytes:
        """Return all up to the first words."""
        content = bytearray()
        async for run in self._runs:
            content += run
            if self._spoke:
                break
            _check_room(self._plan, content)
        return bytes(content)

    def rest(self) -> AsyncIterator[bytes]:
        """Yield what comes after the opening."""
        return self._runs

    async def _read(self, source: ChunkSource) -> AsyncIterator[bytes]:
        written = _with_finish_reason if self._plan.dialect is CHAT else bytes
        async for run in sse.whole_events(source.chunks()):
            if _USAGE.search(run):
                await self._reuse.settle()
            if events := self._inspected(run):
                yield written(events)
            if self._broken:
                break
        if self._broken or not self._finished:
            raise EngineDown(BROKE_OFF)
        if self._plan.dialect in {CHAT, COMPLETIONS} and not self._done:
            yield b"data: " + sse.DONE + sse.END

    def _inspected(self, run: bytes) -> bytes:
        """Return a run of events without what the caller did not ask for, up to where the answer broke off."""
        output = bytearray()
        for event in sse.split(run):
            if self._broken:
                break
            payload = sse.data(event)
            if payload is None:
                output += event if self._spoke else b""
            elif self._passes(event, payload):
                output += event
            elif payload == sse.DONE:
                self._done, self._broken = True, not self._finished
                output += event if self._finished else b""
            else:
                output += self._event(event, payload)
        return bytes(output)

    def _passes(self, event: bytes, payload: bytes) -> bool:
        """Return whether an event says nothing that has to be seen. Judged alone: the network's cuts change nothing."""
        return self._spoke and self._plan.dialect.marks.search(event) is None and is_object(payload)

    def _event(self, event: bytes, payload: bytes) -> bytes:
        chunk = parsed(payload)
        if chunk is None or (look := self._plan.dialect.look(chunk)).failed:
            problem = chat_stream.failure(payload)
            if isinstance(problem, NotAsAsked):
                raise problem
            self._broken = True
            return b""
        self._spoke = self._spoke or look.spoke
        self._finished = self._finished or look.finished
        if look.spoke:
            self._reuse.look()
        return event if look.tokens is None else self._with_usage(event, chunk, look.tokens)

    def _with_usage(self, event: bytes, chunk: Mapping[str, Any], tokens: Tokens) -> bytes:
        """Return an event that has a usage: as the caller asked for it, and with what was not read again."""
        exchange = self._exchange
        exchange.tokens = tokens.after(exchange.tokens)
        if not self._plan.shows_usage:
            rest = {name: value for name, value in chunk.items() if name != "usage"}
            return sse.encode(rest) if rest.get("choices") else b""
        filled, counted = _filled(chunk, self._reuse)
        exchange.tokens = counted.after(exchange.tokens) if counted else exchange.tokens
        return event if filled is chunk else sse.encode(filled)


def _with_finish_reason(run: bytes) -> bytes:
    """Return chunks of a chat with the `finish_reason` null that OpenAI's have, and rapid-mlx leaves out."""
    if _OPEN_END not in run:
        return run
    if b'"finish_reason"' not in run:
        return run.replace(_OPEN_END, _WITH_REASON)
    events = sse.split(run)
    return b"".join(
        event if b'"finish_reason"' in event else event.replace(_OPEN_END, _WITH_REASON) for event in events
    )


class ChunkStream:
    """A chat's chunks: cut at stop strings, checked, or written in another dialect."""

    def __init__(self, exchange: Exchange) -> None:
        plan = exchange.plan
        self._exchange = exchange
        self._plan = plan
        self._stopper = Stopper(plan.stops, exchange.count)
        self._chunks = _cut(exchange, self._stopper)
        self._fold = Fold() if plan.thinking.kept else None
        self._encoder = plan.translation.encoder(exchange.id, plan.body["model"]) if plan.translation else None

    async def opening(self) -> bytes:
        """Return all up to the first words; up to the tool call, or the end, where that has to be checked."""
        if self._plan.schema is not None:
            return await self._checked_whole()
        content = bytearray(self._encoder.start() if self._encoder else b"")
        async for chunk in self._chunks:
            content += self._written(chunk)
            if self._may_open(chunk):
                return bytes(content)
            _check_room(self._plan, content)
        if self._plan.needs_call:
            raise NotAsAsked(errors.without_call())
        return bytes(content)

    def _may_open(self, chunk: Chunk) -> bool:
        if not self._plan.needs_call:
            return self._plan.dialect.look(chunk).spoke
        return bool(obj(first(chunk.get("choices")).get("delta")).get(_CALLS))

    async def _checked_whole(self) -> bytes:
        fold = Fold()
        async for chunk in self._chunks:
            fold.add(chunk)
        await _check_fold(self._plan, fold)
        start = self._encoder.start() if self._encoder else b""
        return start + b"".join([self._written(chunk) for chunk in fold.chunks()])

    async def rest(self) -> AsyncIterator[bytes]:
        """Yield what comes after the opening, and the end."""
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                if written := self._written(chunk):
                    yield written
        if self._fold:
            self._exchange.turn = self._fold.turn
        yield self._encoder.end(self._stopper.hit) if self._encoder else b"data: " + sse.DONE + sse.END

    def _written(self, chunk: Chunk) -> bytes:
        self._exchange.tokens = usage.read(chunk.get("usage")) or self._exchange.tokens
        if self._fold:
            self._fold.add(chunk)
        if self._encoder:
            return self._encoder.feed(chunk)
        if not self._plan.shows_usage:
            chunk = {name: value for name, value in chunk.items() if name != "usage"}
            if not chunk.get("choices"):
                return b""
        for choice in objects(chunk.get("choices")):
            choice.setdefault("finish_reason", None)
        return sse.encode(chunk)
