"""The list of models: what a key may ask for, with the limits that hold."""

from __future__ import annotations

from typing import Any

from state.keys import Key
from tasks.gateway.routes import Routes

CREATED = 1_735_689_600
"""Every model's `created`: a name here is older than the weights behind it, and clients only want a number."""
CREATED_TEXT = "2025-01-01T00:00:00Z"


def listing(routes: Routes, key: Key, name: str = "", *, anthropic: bool = False) -> dict[str, Any] | None:
    """Return the list in OpenAI's or Anthropic's shape, or the one model called `name`; None where it is none."""
    names = [name] if name else routes.exact_names
    tiers = {name: routes.tier(name) for name in names}
    entry = _anthropic if anthropic else _openai
    shown = [entry(routes, name, tier) for name, tier in tiers.items() if tier and (not key.tiers or tier in key.tiers)]
    if name:
        return shown[0] if shown else None
    if not anthropic:
        return {"object": "list", "data": shown}
    ids = [model["id"] for model in shown]
    return {"data": shown, "has_more": False, "first_id": next(iter(ids), None), "last_id": next(reversed(ids), None)}


def _openai(routes: Routes, name: str, tier: str) -> dict[str, Any]:
    context = routes.tiers[tier].context
    return {
        "id": name,
        "object": "model",
        "created": CREATED,
        "owned_by": "mlxq",
        "context_length": context,
        "max_model_len": context,
        "max_input_tokens": context,
        "max_output_tokens": context,
    }


def _anthropic(routes: Routes, name: str, tier: str) -> dict[str, Any]:
    context = routes.tiers[tier].context
    limits = {"max_input_tokens": context, "max_tokens": context}
    return {"type": "model", "id": name, "display_name": name, "created_at": CREATED_TEXT, **limits}
