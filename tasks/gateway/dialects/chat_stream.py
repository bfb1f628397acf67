"""A chat's stream, chunk by chunk: for what an engine does not do by itself, and for other dialects made from it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, cast

import orjson

from tasks.gateway import errors
from tasks.gateway.dialects import sse
from tasks.gateway.dialects.dialect import CHAT, parsed
from tasks.gateway.dialects.json_values import first, obj, objects
from tasks.gateway.dialects.stop_strings import Scanner
from tasks.gateway.engine_client import EngineDown
from tasks.gateway.errors import NotAsAsked

Chunk = dict[str, Any]
Count = Callable[[int], Awaitable[Mapping[str, Any] | None]]
"""Tokens of an answer so far -> its usage."""
Resume = Callable[[str], Awaitable[AsyncIterator[bytes]]]
"""What was thought -> the bytes of the answer that follows it."""

BROKE_OFF = "broke off its answer"
END_S = 1.0
"""How long the end of an answer that an engine has written is waited for."""


async def chunks(source: AsyncIterator[bytes]) -> AsyncGenerator[Chunk]:
    """Yield the chunks of a chat. Raises NotAsAsked, and EngineDown also where it ends without a finish reason.

    Such an end would read as complete.
    """
    finished = False
    async for run in sse.whole_events(source):
        for event in sse.split(run):
            payload = sse.data(event)
            if payload is None:
                continue
            if payload == sse.DONE:
                if finished:
                    return
                raise EngineDown(BROKE_OFF)
            chunk = parsed(payload)
            if chunk is None or (look := CHAT.look(chunk)).failed:
                raise failure(payload)
            finished = finished or look.finished
            yield cast("Chunk", chunk)
    if not finished:
        raise EngineDown(BROKE_OFF)


class Thoughts:
    """Ends a model's thoughts at a budget, in tokens: it answers after what it has thought so far.

    Each chunk counts as a token, as both engines send them.
    """

    def __init__(self, budget: int, resume: Resume, count: Count) -> None:
        self._budget = budget
        self._resume = resume
        self._count = count
        self._pieces: list[str] = []

    async def limited(self, source: AsyncGenerator[Chunk]) -> AsyncGenerator[Chunk]:
        """Yield a chat's chunks; where it has to be ended, those of both parts, with one usage. Raises EngineDown."""
        head: Chunk = {}
        async with aclosing(source):
            async for chunk in source:
                head = head or {name: chunk[name] for name in ("id", "created", "model") if name in chunk}
                if self._ends(obj(first(chunk.get("choices")).get("delta"))):
                    break
                yield chunk
            else:
                return
            spent = await self._count(len(self._pieces)) or {}
        async for chunk in chunks(await self._resume("".join(self._pieces))):
            delta = obj(first(chunk.get("choices")).get("delta"))
            if delta.keys() != {"role"}:
                usage = {"usage": self._sum(spent, chunk["usage"])} if chunk.get("usage") else {}
                yield {**chunk, **head, **usage}

    def _ends(self, delta: Mapping[str, Any]) -> bool:
        """Return whether a piece of thought is over the budget. None is once the answer has begun."""
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if thought and len(self._pieces) == self._budget:
            return True
        self._pieces += [thought] if thought else []
        if delta.get("content") or delta.get("tool_calls"):
            self._budget = -1
        return False

    def _sum(self, spent: Mapping[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
        """Return the usage of an answer in two parts: the prompt of the first, and the tokens of both."""
        thought = len(self._pieces)
        prompt = int(spent.get("prompt_tokens") or rest.get("prompt_tokens") or 0)
        answer = thought + int(rest.get("completion_tokens") or 0)
        return {
            **rest,
            **({"prompt_tokens_details": spent["prompt_tokens_details"]} if "prompt_tokens_details" in spent else {}),
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "completion_tokens_details": {"reasoning_tokens": thought},
        }


async def first_call_only(source: AsyncIterator[Chunk]) -> AsyncGenerator[Chunk]:
    """Yield chunks without the second tool call and those after it."""
    async for chunk in source:
        for choice in objects(chunk.get("choices")):
            delta = obj(choice.get("delta"))
            if "tool_calls" in delta:
                delta["tool_calls"] = [piece for piece in objects(delta["tool_calls"]) if not piece.get("index")]
        yield chunk


def failure(payload: bytes) -> EngineDown | NotAsAsked:
    """Return the exception for an error event of an engine: the model's failure, or the engine's own.

    An event of Responses that tells a failure repeats the request, `tool_choice` included: its error alone counts.
    """
    response = obj((parsed(payload) or {}).get("response"))
    refusal = errors.about_answer(orjson.dumps(response.get("error")) if response else payload)
    return NotAsAsked(refusal) if refusal else EngineDown(BROKE_OFF)


def usage_of(prompt: int, answer: int) -> dict[str, Any]:
    """Return a chat's `usage` for the tokens of a prompt and of its answer."""
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


class Stopper:
    """Ends a chat at the first of its stop strings, as the engine would have."""

    def __init__(self, stops: Sequence[str], count: Count) -> None:
        self._scanner = Scanner(stops)
        self._count = count
        self._tokens = 0

    @property
    def hit(self) -> str | None:
        """The stop string that ended the answer."""
        return self._scanner.hit

    async def cut(self, source: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
        """Yield the chunks up to the stop string. Raises as the source does."""
        async for chunk in source:
            if chunk.get("choices"):
                self._scan(chunk["choices"][0])
            if self._scanner.hit is None:
                yield chunk
                continue
            usage = chunk.pop("usage", None) or await self._count(self._tokens) or await self._told_at_end(source)
            yield chunk
            if usage:
                yield {**chunk, "choices": [], "usage": usage}
            return

    async def _told_at_end(self, source: AsyncIterator[Chunk]) -> Mapping[str, Any] | None:
        """Return the usage of an answer that is out already: it is on its way to us."""
        with contextlib.suppress(TimeoutError, EngineDown):
            async with asyncio.timeout(END_S):
                async for chunk in source:
                    if usage := obj(chunk.get("usage")):
                        return {**usage, **usage_of(int(usage.get("prompt_tokens") or 0), self._tokens)}
        return None

    def _scan(self, choice: dict[str, Any]) -> None:
        """Take the words of one choice, and put what may be shown in their place."""
        part, name = (choice, "text") if "text" in choice else (choice.setdefault("delta", {}), "content")
        words: str = part.get(name) or ""
        self._tokens += bool(words)
        shown = self._scanner.feed(words)
        if choice.get("finish_reason") and self._scanner.hit is None:
            shown += self._scanner.rest()
        if words or shown:
            part[name] = shown
        if self._scanner.hit is not None:
            choice["finish_reason"] = "stop"


class Fold:
    """Makes the chunks of a streamed completion into the answer that is not streamed."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._message: dict[str, Any] = {"role": "assistant", "content": None}
        self._calls: dict[int, dict[str, Any]] = {}
        self._plain: str | None = None
        self.finish: str | None = None
        self.usage: dict[str, Any] | None = None

    @property
    def text(self) -> str:
        """The visible text so far."""
        return self._message["content"] or ""

    @text.setter
    def text(self, text: str) -> None:
        self._message["content"] = text

    @property
    def calls(self) -> bool:
        """Whether tools are called."""
        return bool(self._calls)

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Take the next chunk."""
        self._head = self._head or {key: chunk[key] for key in ("id", "created", "model") if key in chunk}
        self.usage = chunk.get("usage") or self.usage
        choices: list[dict[str, Any]] = chunk.get("choices") or []
        for choice in choices:
            self.finish = choice.get("finish_reason") or self.finish
            if "text" in choice:
                self._plain = (self._plain or "") + (choice["text"] or "")
            self._add_delta(choice.get("delta") or {})

    def _add_delta(self, delta: Mapping[str, Any]) -> None:
        calls: list[dict[str, Any]] = delta.get("tool_calls") or []
        for call in calls:
            self._add_call(call)
        for key, value in delta.items():
            if isinstance(value, str) and key != "role":
                self._message[key] = (self._message.get(key) or "") + value

    def _add_call(self, piece: Mapping[str, Any]) -> None:
        index = int(piece.get("index") or 0)
        empty = {"id": f"call_{index}", "type": "function", "function": {"name": "", "arguments": ""}}
        call = self._calls.setdefault(index, empty)
        if piece.get("id"):
            call["id"] = piece["id"]
        function: Mapping[str, Any] = piece.get("function") or {}
        if function.get("name"):
            call["function"]["name"] = function["name"]
        call["function"]["arguments"] += function.get("arguments") or ""

    @property
    def turn(self) -> dict[str, Any]:
        """The answer so far as a message of the conversation."""
        calls = [self._calls[index] for index in sorted(self._calls)]
        return self._message | ({"tool_calls": calls} if calls else {})

    def answer(self) -> dict[str, Any]:
        """Return the whole answer: of a chat, or of /v1/completions."""
        if self._plain is not None:
            written = {"index": 0, "text": self._plain, "logprobs": None, "finish_reason": self.finish}
            return {**self._head, "object": "text_completion", "choices": [written], "usage": self.usage}
        choice = {"index": 0, "message": self.turn, "finish_reason": self.finish}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self.usage}

    def chunks(self) -> list[Chunk]:
        """Return the whole answer as a short stream."""
        message = self.answer()["choices"][0]["message"]
        for index, call in enumerate(message.get("tool_calls", [])):
            call["index"] = index
        head = {**self._head, "object": "chat.completion.chunk"}
        choice: dict[str, Any] = {"index": 0, "delta": message, "finish_reason": None}
        last: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": self.finish}
        usage: list[Chunk] = [{**head, "choices": [], "usage": self.usage}] if self.usage else []
        return [{**head, "choices": [choice]}, {**head, "choices": [last]}, *usage]
