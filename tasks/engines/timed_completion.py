"""Ask an engine for one answer and time it token by token.

`vllm-mlx bench-serve` (0.6.0) measures something else: it sends no key; it asks the same prompt again and again, or
has a serving tier drop the prompts it keeps; it counts only `content`, so that a model which thinks first has no speed;
and it divides n tokens by n - 1 gaps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

from state.errors import EngineFailed
from tasks.plan.bench import TimedAnswer

HOST = "127.0.0.1"
TEXTS = ("content", "reasoning_content", "reasoning")
SILENCE_S = 600.0
"""How long a prompt may take to read."""


def timed(port: int, key: str, model: str, prompt: str, tokens: int, *, greedy: bool = False) -> TimedAnswer:
    """Ask for one streamed answer of at most `tokens` tokens; `greedy`: the likeliest one. Raises EngineFailed."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **({"temperature": 0} if greedy else {}),
    }
    connection = HTTPConnection(HOST, port, timeout=SILENCE_S)
    began = time.perf_counter()
    try:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        return _read(connection.getresponse(), began)
    except (OSError, HTTPException) as problem:
        raise EngineFailed(f"The engine ended its response early: {problem!r}.", hint="mlxq logs") from problem
    finally:
        connection.close()


def _read(answer: HTTPResponse, began: float) -> TimedAnswer:
    """Note when the first and the last token came, and what the engine counted."""
    if answer.status != 200:  # noqa: PLR2004 (HTTP's OK)
        text = answer.read(500).decode("utf-8", "replace")
        raise EngineFailed(f"The engine answered HTTP {answer.status}: {text}")
    first = last = None
    usage: Mapping[str, int] = {}
    texts: list[str] = []
    for event in _events(answer):
        if "error" in event:
            raise EngineFailed(f"The engine ended its response early: {event['error']}.")
        usage = event.get("usage") or usage
        if _has_token(event):
            last = time.perf_counter()
            first = first or last
            texts.append(_text(event))
    if first is None or last is None:
        raise EngineFailed("The engine answered without a token.")
    prompt, tokens = int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
    return TimedAnswer(first - began, last - first, prompt, tokens, "".join(texts))


def _events(answer: HTTPResponse) -> Iterator[dict[str, Any]]:
    """Return each server-sent event up to [DONE]."""
    for raw in answer:
        text = raw.decode("utf-8", "replace").strip()
        if text == "data: [DONE]":
            return
        if text.startswith("data:"):
            yield json.loads(text.removeprefix("data:"))


def _has_token(event: Mapping[str, Any]) -> bool:
    """Return whether an event brings something the model wrote: text, thoughts or a call."""
    return any(delta.get(kind) for delta in _deltas(event) for kind in (*TEXTS, "tool_calls"))


def _text(event: Mapping[str, Any]) -> str:
    """Return the text or thoughts of an event."""
    return "".join(delta.get(kind) or "" for delta in _deltas(event) for kind in TEXTS)


def _deltas(event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choices: list[Mapping[str, Any]] = event.get("choices") or []
    return [choice.get("delta") or {} for choice in choices]
