"""The dialects that clients speak: what passes in, and what has to be seen in a stream that passes out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson

from tasks.gateway.dialects import answer_shape, schemas, sse, usage
from tasks.gateway.dialects.json_values import first, obj
from tasks.gateway.dialects.schemas import Fields
from tasks.gateway.dialects.usage import Tokens
from tasks.gateway.errors import Refusal
from tasks.gateway.ollama import fields


@dataclass(frozen=True)
class Seen:
    """What one event says."""

    spoke: bool = False
    """It has words, thoughts or a tool call in it, or the end."""
    finished: bool = False
    """The answer is whole."""
    failed: bool = False
    tokens: Tokens | None = None


_RESPONSES = "responses"


@dataclass(frozen=True)
class Dialect:
    """One dialect."""

    name: str
    """As catalog/engines.yaml has it."""
    path: str
    """Of the engine's route, and of the gateway's."""
    schema: type[Fields]
    anthropic: bool = False
    """Whether errors have Anthropic's shape."""
    ollama: bool = False
    """Whether errors have Ollama's shape, and a stream is lines of JSON."""
    streams: bool = False
    marks: re.Pattern[bytes] = re.compile(rb"$^")
    """Finds the events that have to be read; all others pass unread."""
    look: Callable[[Mapping[str, Any]], Seen] = lambda _: Seen()
    """Reads one event."""

    def error(self, refusal: Refusal) -> bytes:
        """Return a refusal as a whole answer."""
        if self.ollama:
            return orjson.dumps({"error": refusal.message})
        return refusal.body(anthropic=self.anthropic)

    def error_event(self, refusal: Refusal) -> bytes:
        """Return how a stream says that it ends here, unfinished."""
        if self.ollama:
            return self.error(refusal) + b"\n"
        payload = refusal.payload(anthropic=self.anthropic)
        if self.name == _RESPONSES:
            error = payload["error"]
            payload = {"type": "error", "code": error["code"], "message": error["message"], "param": None}
            return sse.encode({**payload, "sequence_number": 0}, "error")
        return sse.encode(payload, "error" if self.anthropic else "")


def _look_chat(chunk: Mapping[str, Any]) -> Seen:
    if "error" in chunk or "detail" in chunk:
        return Seen(failed=True)
    choice = first(chunk.get("choices"))
    delta = obj(choice.get("delta"))
    words = any(value for name, value in delta.items() if name != "role") or bool(choice.get("text"))
    finished = bool(choice.get("finish_reason"))
    return Seen(words or finished, finished, tokens=usage.read(chunk.get("usage")))


_CHAT_MARKS = re.compile(rb'"finish_reason": ?"|"usage": ?\{|"error"|"detail"|\[DONE\]')

CHAT = Dialect("chat", "/v1/chat/completions", schemas.Chat, streams=True, marks=_CHAT_MARKS, look=_look_chat)
COMPLETIONS = Dialect(
    "completions", "/v1/completions", schemas.Completions, streams=True, marks=_CHAT_MARKS, look=_look_chat
)
RESPONSES = Dialect(_RESPONSES, "/v1/responses", schemas.Responses, streams=True)
MESSAGES = Dialect("messages", "/v1/messages", schemas.Messages, anthropic=True, streams=True)
"""No engine is asked in these two: the gateway asks their chat."""
COUNT_TOKENS = Dialect("count_tokens", "/v1/messages/count_tokens", schemas.CountTokens, anthropic=True)
EMBEDDINGS = Dialect("embeddings", "/v1/embeddings", schemas.Embeddings)
RERANK = Dialect("rerank", "/v1/rerank", schemas.Rerank)
OLLAMA_CHAT = Dialect("ollama_chat", "/api/chat", fields.OllamaChat, ollama=True, streams=True)
OLLAMA_GENERATE = Dialect("ollama_generate", "/api/generate", fields.OllamaGenerate, ollama=True, streams=True)
OLLAMA_EMBED = Dialect("ollama_embed", "/api/embed", fields.OllamaEmbed, ollama=True)
OLLAMA_EMBEDDINGS = Dialect("ollama_embeddings", "/api/embeddings", fields.OllamaEmbeddings, ollama=True)

_ALL = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT_TOKENS, EMBEDDINGS, RERANK)
_OLLAMA = (OLLAMA_CHAT, OLLAMA_GENERATE, OLLAMA_EMBED, OLLAMA_EMBEDDINGS)
BY_PATH: Mapping[str, Dialect] = {
    **{dialect.path: dialect for dialect in (*_ALL, *_OLLAMA)},
    **{dialect.path.removeprefix("/v1"): dialect for dialect in _ALL if not dialect.anthropic},
}
"""What may be posted to; OpenAI's routes also without /v1, as some clients have it."""


def is_object(payload: bytes) -> bool:
    """Return whether a payload is a JSON object, of whatever shape."""
    try:
        return isinstance(orjson.loads(payload), dict)
    except orjson.JSONDecodeError:
        return False


def parsed(payload: bytes) -> Mapping[str, Any] | None:
    """Return the JSON object of an event or a whole answer; None for what is none, or has another shape."""
    try:
        event: Any = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(event, dict) or not answer_shape.fits(cast("object", event)):
        return None
    return cast("Mapping[str, Any]", event)
