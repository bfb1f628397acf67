"""The list of models: what a key may ask for, with the limits that hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from state.keys import Key
from tasks.gateway.routes import Route, Routes

CREATED = 1_735_689_600
"""Every model's `created`: a name here is older than the weights behind it, and clients only want a number."""
CREATED_TEXT = "2025-01-01T00:00:00Z"


def listing(routes: Routes, key: Key, name: str = "", *, anthropic: bool = False) -> dict[str, Any] | None:
    """Return the list in OpenAI's or Anthropic's shape, or the one model called `name`; None where it is none."""
    entry = _anthropic if anthropic else _openai
    shown = [entry(name, routes.tiers[tier]) for name, tier in _allowed(routes, key, [name] if name else None)]
    if not anthropic:
        shown += _retrieval(routes, key, name)
    if name:
        return shown[0] if shown else None
    if not anthropic:
        return {"object": "list", "data": shown}
    ids = [model["id"] for model in shown]
    return {"data": shown, "has_more": False, "first_id": next(iter(ids), None), "last_id": next(reversed(ids), None)}


def names(routes: Routes, key: Key) -> list[str]:
    """Return the names that a key may ask for, in order; patterns are left out."""
    return [name for name, _ in _allowed(routes, key)]


def _allowed(routes: Routes, key: Key, among: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Return (name, tier) of what a key may ask for."""
    tiers = [(name, routes.tier(name)) for name in among or routes.exact_names]
    return [(name, tier) for name, tier in tiers if tier and (not key.tiers or tier in key.tiers)]


def _retrieval(routes: Routes, key: Key, name: str) -> list[dict[str, Any]]:
    """Return the models for embeddings and ranking; all but one go by their own names in the list."""
    shown = [route for purpose, route in routes.retrieval.items() if not key.tiers or purpose in key.tiers]
    return [
        {
            "id": name or route.route.name,
            "object": "model",
            "created": CREATED,
            "owned_by": "mlxq",
            "context_length": route.route.context,
            "max_input_tokens": route.route.context,
            **({"dimensions": route.dimensions} if route.dimensions else {}),
        }
        for route in shown
        if not name or name in route.names
    ]


def _openai(name: str, route: Route) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": CREATED,
        "owned_by": "mlxq",
        "context_length": route.context,
        "max_model_len": route.context,
        "max_input_tokens": route.context,
        "max_output_tokens": route.longest_answer,
    }


def _anthropic(name: str, route: Route) -> dict[str, Any]:
    limits = {"max_input_tokens": route.context, "max_tokens": route.longest_answer}
    return {"type": "model", "id": name, "display_name": name, "created_at": CREATED_TEXT, **limits}
