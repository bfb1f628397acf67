"""Server-sent events of an engine's stream: cut from bytes, and folded into one whole answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any

import orjson

DONE = b"[DONE]"


async def events(chunks: AsyncIterable[bytes]) -> AsyncGenerator[bytes]:
    """Give each event whole, with its blank line, however the network cut the bytes."""
    held = b""
    async for chunk in chunks:
        held += chunk
        *whole, held = held.split(b"\n\n")
        for event in whole:
            yield event + b"\n\n"
    if held.strip():
        yield held


def data(event: bytes) -> bytes | None:
    """Give an event's payload; None for a comment, such as the engine's heartbeat."""
    return event[5:].strip() if event.startswith(b"data:") else None


def disguised(event: bytes) -> bytes:
    """Give an event in whose payload no `[DONE]` can be read: LiteLLM's handler ends a stream wherever it reads one."""
    return event if DONE not in event or data(event) == DONE else event.replace(DONE, rb"\u005bDONE]")


def speaks(event: bytes) -> bool:
    """Tell whether an event has words in it: an answer's, a thought's or a tool call's, and not merely who speaks."""
    payload = data(event)
    chunk: Any = orjson.loads(payload) if payload and payload != DONE else {}
    match chunk:
        case {"choices": [{"delta": {"role": _, **words}}, *_]} | {"choices": [{"delta": {**words}}, *_]}:
            return any(words.values())
        case {"choices": [{"text": text}, *_]}:
            return bool(text)
        case _:
            return False


def encode(payload: Any) -> bytes:
    """Write one event."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


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

    @property
    def calls(self) -> bool:
        """Whether tools are called."""
        return bool(self._calls)

    def add(self, chunk: dict[str, Any]) -> None:
        """Take the next chunk."""
        self._head = self._head or {key: chunk[key] for key in ("id", "created", "model") if key in chunk}
        self.usage = chunk.get("usage") or self.usage
        choices: list[dict[str, Any]] = chunk.get("choices") or []
        for choice in choices:
            self.finish = choice.get("finish_reason") or self.finish
            if "text" in choice:
                self._plain = (self._plain or "") + choice["text"]
            self._add_delta(choice.get("delta") or {})

    def _add_delta(self, delta: dict[str, Any]) -> None:
        calls: list[dict[str, Any]] = delta.get("tool_calls") or []
        for call in calls:
            self._add_call(call)
        for key, value in delta.items():
            if isinstance(value, str) and key != "role":
                self._message[key] = (self._message.get(key) or "") + value

    def _add_call(self, piece: dict[str, Any]) -> None:
        known = self._calls.setdefault(piece.get("index", 0), {"type": "function", "function": {"arguments": ""}})
        if piece.get("id"):
            known["id"] = piece["id"]
        told: dict[str, Any] = piece.get("function") or {}
        if told.get("name"):
            known["function"]["name"] = told["name"]
        known["function"]["arguments"] += told.get("arguments") or ""

    def answer(self) -> dict[str, Any]:
        """Give the whole answer: of a chat, or of /v1/completions."""
        if self._plain is not None:
            written = {"index": 0, "text": self._plain, "logprobs": None, "finish_reason": self.finish}
            return {**self._head, "object": "text_completion", "choices": [written], "usage": self.usage}
        message = dict(self._message)
        if self._calls:
            message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        choice = {"index": 0, "message": message, "finish_reason": self.finish}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": self.usage}

    def chunks(self) -> list[bytes]:
        """Give the whole answer as a short stream."""
        whole = self.answer()
        head = {**self._head, "object": "chat.completion.chunk"}
        message = whole["choices"][0]["message"]
        for index, call in enumerate(message.get("tool_calls", [])):
            call["index"] = index
        choice: dict[str, Any] = {"index": 0, "delta": message, "finish_reason": None}
        last: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": self.finish}
        return [
            encode({**head, "choices": [choice]}),
            encode({**head, "choices": [last]}),
            *([encode({**head, "choices": [], "usage": self.usage})] if self.usage else []),
            b"data: " + DONE + b"\n\n",
        ]
