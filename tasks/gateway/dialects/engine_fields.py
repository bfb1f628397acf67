"""From the fields of the references to those that an engine reads: other names, and ranges that engines have narrower.

A body is a dict of fields that the schemas have checked. Pure.
"""

from __future__ import annotations

from typing import Any

from catalog.engines import Abilities

LEAST_TOP_P = 0.01
"""What 0 is taken for: engines refuse it, or take it for no limit. A smaller share keeps no token with bfloat16."""
_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
MOST_EFFORT = "xhigh"
"""The engines' word for Anthropic's `max`."""


def limit(body: dict[str, Any], longest: int) -> None:
    """Lower the limit of an answer to `longest` tokens, the most that engines take.

    It is an upper bound, and clients send that of the model whose name they know: 32,000 and more.
    """
    for name in _LIMITS:
        if body.get(name, 0) > longest:
            body[name] = longest


def chat(body: dict[str, Any], can: Abilities) -> None:
    """Change the fields of a chat or a completion."""
    _sampling(body)
    if not can.frequency_penalty:
        body.pop("frequency_penalty", None)
    if not body.get("logit_bias"):
        body.pop("logit_bias", None)
    if not body.get("logprobs"):
        body.pop("logprobs", None)
        body.pop("top_logprobs", None)
    if body.get("reasoning_effort") == "max":
        body["reasoning_effort"] = MOST_EFFORT
    if "thinking_token_budget" in body:
        body[can.thinking_budget.field] = body.pop("thinking_token_budget")


def _sampling(body: dict[str, Any]) -> None:
    if body.get("top_k") == -1:
        body["top_k"] = 0
    if body.get("top_p") == 0:
        body["top_p"] = LEAST_TOP_P
