"""A chat's messages in an order that chat templates take. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.gateway.dialects.json_values import objects

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
