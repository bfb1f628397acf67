"""What a tier's defaults fill in where a request says nothing. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.gateway.dialects.dialect import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Dialect

SAMPLING = ("temperature", "top_p", "top_k")
LIMITS: Mapping[str, tuple[str, ...]] = {
    CHAT.name: ("max_tokens", "max_completion_tokens"),
    COMPLETIONS.name: ("max_tokens",),
    RESPONSES.name: ("max_output_tokens",),
}
"""The fields that limit an answer's tokens, the one to fill in first. Anthropic's messages always have theirs."""
HOTTEST_MESSAGE = 1.0
"""Anthropic's temperature ends here, OpenAI's at 2."""


def fill(dialect: Dialect, body: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's body with a tier's defaults in it, by the names of state.stack.Defaults."""
    if dialect not in {CHAT, COMPLETIONS, MESSAGES, RESPONSES}:
        return dict(body)
    filled = {name: defaults[name] for name in SAMPLING if name in defaults} | dict(body)
    if dialect is MESSAGES and "temperature" not in body and "temperature" in filled:
        filled["temperature"] = min(HOTTEST_MESSAGE, filled["temperature"])
    names = LIMITS.get(dialect.name, ())
    if names and "max_tokens" in defaults and not any(name in body for name in names):
        filled[names[0]] = defaults["max_tokens"]
    return filled
