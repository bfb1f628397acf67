"""The list of models: what a key may ask for, with the limits that hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from state.keys import Key
from state.stack import CHAT, longest_answer
from tasks.gateway.on_demand import OnDemand
from tasks.gateway.routes import Route, Routes

CREATED = 1_735_689_600
"""Every model's `created`: a name here is older than the weights behind it, and clients only want a number."""
CREATED_TEXT = "2025-01-01T00:00:00Z"


def listing(
    routes: Routes, on_demand: OnDemand, key: Key, name: str = "", *, anthropic: bool = False
) -> dict[str, Any] | None:
    """Return the list in OpenAI's or Anthropic's shape, or the one model called `name`; None where it is none."""
    entry = _anthropic if anthropic else _openai
    shown = [
        _of(entry, name, routes.tiers[tier], on_demand)
        for name, tier in _allowed(routes, key, [name] if name else None)
    ]
    if not anthropic:
        shown += _retrieval(routes, on_demand, key, name)
    shown += _on_disk(routes, on_demand, key, name, anthropic=anthropic)
    if name:
        return shown[0] if shown else None
    if not anthropic:
        return {"object": "list", "data": shown}
    ids = [model["id"] for model in shown]
    return {"data": shown, "has_more": False, "first_id": next(iter(ids), None), "last_id": next(reversed(ids), None)}


def names(routes: Routes, on_demand: OnDemand, key: Key) -> list[str]:
    """Return the names that a key may ask for, in order; patterns are left out."""
    return [
        *(name for name, _ in _allowed(routes, key)),
        *(entry["id"] for entry in _on_disk(routes, on_demand, key, "", anthropic=True)),
    ]


def _on_disk(routes: Routes, on_demand: OnDemand, key: Key, name: str, *, anthropic: bool) -> list[dict[str, Any]]:
    """Return the models on this disk, by each of their names."""
    entry, shown = _anthropic if anthropic else _openai, list[dict[str, Any]]()
    for own in [name] if name else on_demand.known.shown:
        tier, model = on_demand.tier(own), on_demand.find(own)
        if tier and tier in routes.tiers and routes.tier(own) is None and key.may_ask(tier):
            shown.append(_of(entry, own, routes.tiers[tier], on_demand))
        elif model is not None and key.may_ask(*model.names):
            if model.purpose == CHAT:
                shown.append(entry(own, model.context, on_demand.state(model.engine), vision=model.vision))
            elif not anthropic:
                shown.append(_vectors(own, model.context, on_demand.state(model.engine)))
    return shown


def _of(entry: Callable[..., dict[str, Any]], name: str, route: Route, on_demand: OnDemand) -> dict[str, Any]:
    return entry(name, route.context, on_demand.state(route.engine), vision=route.vision)


def _allowed(routes: Routes, key: Key, among: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Return (name, tier) of what a key may ask for."""
    tiers = [(name, routes.tier(name)) for name in among or routes.exact_names]
    return [(name, tier) for name, tier in tiers if tier and key.may_ask(tier)]


def _retrieval(routes: Routes, on_demand: OnDemand, key: Key, name: str) -> list[dict[str, Any]]:
    """Return the models for embeddings and ranking; all but one go by their own names in the list."""
    shown = [route for purpose, route in routes.retrieval.items() if key.may_ask(purpose)]
    return [
        _vectors(name or route.route.name, route.route.context, on_demand.state(route.route.engine), route.dimensions)
        for route in shown
        if not name or name in route.names
    ]


def _vectors(name: str, context: int, state: str, dimensions: int = 0) -> dict[str, Any]:
    """Return the entry of a model that makes vectors or ranks documents."""
    limits = {"context_length": context, "max_input_tokens": context}
    return _base(name, state) | limits | ({"dimensions": dimensions} if dimensions else {})


def _openai(name: str, context: int, state: str, *, vision: bool) -> dict[str, Any]:
    takes = ["text", "image"] if vision else ["text"]
    return _base(name, state) | {
        "context_length": context,
        "max_model_len": context,
        "max_input_tokens": context,
        "max_output_tokens": longest_answer(context),
        "architecture": _modalities(takes, "text"),
        "capabilities": {"vision": vision},
    }


def _modalities(takes: Sequence[str], gives: str) -> dict[str, Any]:
    """Return what a model takes and gives, as OpenRouter's list has it; LM Studio's has `capabilities`."""
    return {"modality": f"{'+'.join(takes)}->{gives}", "input_modalities": list(takes), "output_modalities": [gives]}


def _base(name: str, state: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "mlxq", "state": state}


def _anthropic(name: str, context: int, state: str, *, vision: bool) -> dict[str, Any]:
    limits = {"max_input_tokens": context, "max_tokens": longest_answer(context)}
    head = {"type": "model", "id": name, "display_name": name, "created_at": CREATED_TEXT, "state": state}
    return head | limits | {"capabilities": {"image_input": {"supported": vision}}}
