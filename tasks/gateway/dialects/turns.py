"""A chat's messages in an order and a form that chat templates take, and recognized by what was said. Pure."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from tasks.gateway.dialects.json_values import obj, objects

Message = Mapping[str, Any]
_SYSTEM = "system"
OPENED, CLOSED = "<think>\n", "\n</think>\n\n"
"""Between these a chat template takes the thoughts of a turn, at the start of its text."""


def arranged(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the messages with all that the system says first in one message, and what it says later as reminders.

    A reminder stands at the end of the turn before it, in the form that agents use, so that all before it is read
    once: templates such as those of Qwen 3.5 and later refuse a system message that is not the first, and an engine
    that moves it to the front reads the whole prompt again.
    """
    first = next((at for at, message in enumerate(messages) if message["role"] != _SYSTEM), len(messages))
    head = "\n\n".join(filter(None, (text(message) for message in messages[:first])))
    placed: list[dict[str, Any]] = [{"role": _SYSTEM, "content": head}] if head else []
    for message in messages[first:]:
        if message["role"] == _SYSTEM:
            _remind(placed, f"<system-reminder>\n{text(message)}\n</system-reminder>")
        else:
            placed.append(dict(message))
    return placed


def _remind(placed: list[dict[str, Any]], reminder: str) -> None:
    """Put a reminder at the end of the turn before it; after an answer it is a turn of its own."""
    last = placed[-1]
    if last["role"] not in {"user", "tool"}:
        placed.append({"role": "user", "content": reminder})
    elif isinstance(last.get("content"), list):
        placed[-1] = {**last, "content": [*last["content"], {"type": "text", "text": reminder}]}
    else:
        placed[-1] = {**last, "content": f"{last.get('content') or ''}\n\n{reminder}"}


def text(message: Message) -> str:
    """Return the words of a message."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in objects(content) if part.get("type") == "text")


def digests(seed: bytes, messages: Sequence[Message]) -> list[bytes]:
    """Return for each message a SHA-256 of it and all before it. Thoughts are left out.

    `seed` tells one caller from another.
    """
    values: list[bytes] = []
    digest = hashlib.sha256(seed).digest()
    for message in messages:
        digest = hashlib.sha256(digest + _said(message)).digest()
        values.append(digest)
    return values


def _said(message: Message) -> bytes:
    """Return what a message says, however its client writes it: without spaces around it, calls without their ids."""
    calls = [_call(call) for call in objects(message.get("tool_calls"))]
    parts = objects(message.get("content")) if message["role"] != "assistant" else []
    return orjson.dumps([message["role"], parts or text(message).strip(), calls], option=orjson.OPT_SORT_KEYS)


def _call(call: Message) -> list[Any]:
    function = obj(call.get("function"))
    arguments: Any = function.get("arguments") or "{}"
    with contextlib.suppress(orjson.JSONDecodeError):
        arguments = orjson.loads(arguments)
    return [function.get("name"), arguments]


def thoughts(message: Message) -> str:
    """Return what the model thought before a turn; empty where the message does not say."""
    return str(message.get("reasoning_content") or message.get("reasoning") or "")


def with_thoughts_inside(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return the messages with the thoughts of a turn at the start of its text.

    Neither engine passes `reasoning_content` on to the template of every model: rapid-mlx 0.16.10 drops it, vllm-mlx
    0.6.0 does so on its text path.
    """
    return [_with_thoughts_inside(message) for message in messages]


def _with_thoughts_inside(message: Message) -> dict[str, Any]:
    rest = {name: value for name, value in message.items() if name not in {"reasoning_content", "reasoning"}}
    thought, words = thoughts(message).strip(), text(message)
    if message["role"] != "assistant" or not thought or CLOSED.strip() in thought + words:
        return rest
    return {**rest, "content": f"{OPENED}{thought}{CLOSED}{words}"}
