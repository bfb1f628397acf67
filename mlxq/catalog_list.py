"""What `mlxq models --catalog` shows, and what is recorded about this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from catalog import retrieval, units
from catalog.fit import memory, smallest
from catalog.machine import Machine, from_row
from catalog.model import Model
from catalog.quality import quality
from catalog.retrieval import RetrievalModel
from catalog.select import SHOWN_CONTEXT
from catalog.speed import Measured, Speed, predict
from mlxq import jobs_client, render
from mlxq.setup import recommendation
from state import facts
from state.classes import dataclass
from state.errors import NotSetUp
from state.paths import Home
from tasks import recommend

NO_ROOM = "no room"


@dataclass(frozen=True)
class Here:
    """What is recorded about this machine."""

    machine: Machine | None
    measured: list[Measured]

    def speed(self, model: Model, quant: str) -> Speed | None:
        """Return the predicted speed after a prompt of 8K tokens; None while the machine is unknown."""
        return predict(self.machine, model, quant, SHOWN_CONTEXT, self.measured) if self.machine else None

    def fits(self, model: Model, quant: str) -> bool:
        """Return whether the model alone fits, with one request of 8K tokens."""
        return not self.machine or memory(model, quant, SHOWN_CONTEXT).total <= self.machine.usable_bytes


def here(home: Home) -> Here:
    """Return what is recorded, also where nothing is set up."""
    try:
        with jobs_client.reading(home) as db:
            row = facts.get(db, "machine")
            machine = from_row(row) if row else None
            return Here(machine, recommend.measured(db, machine) if machine else [])
    except NotSetUp:
        return Here(None, [])


def show(home: Home, models: Mapping[str, Model], *, filtered: bool, as_json: bool) -> None:
    """Show what mlxq knows; sizes and speeds are those of the first quant named.

    `filtered`: whether only some models for chats are wanted; else those for embeddings and ranking are shown too.
    """
    machine = here(home)
    beside = [] if filtered else list(retrieval.entries().values())
    if as_json:
        entries = [_entry(model, machine) for model in models.values()]
        render.data({"models": entries, "retrieval": [_retrieval_entry(model) for model in beside]})
        return
    render.table(
        ["MODEL", "GB", "CTX", "TOK/S", "TOOLS", "QUANTS"],
        [_catalog_row(model, machine) for model in models.values()],
        right=(1, 2, 3),
    )
    if beside:
        click.echo()
        render.table(
            ["MODEL", "KIND", "GB", "INPUT", "QUANTS"], [_retrieval_row(model) for model in beside], right=(2, 3)
        )
    if machine.machine is None:
        render.say("Speeds are shown after mlxq setup, or with mlxq models --recommend.")


def by_size(model: Model | RetrievalModel) -> list[str]:
    """Return the names of a model's quants, the smallest first."""
    return sorted(model.quants, key=lambda quant: model.quants[quant].bytes)


def _catalog_row(model: Model, machine: Here) -> list[Any]:
    quant = smallest(model)
    speed = machine.speed(model, quant.name)
    rate = recommendation.brief(speed.decode) if speed else None
    return [
        model.id,
        units.gigabytes_of_files(quant.bytes),
        recommendation.tokens(model.context),
        rate if machine.fits(model, quant.name) else NO_ROOM,
        "yes" if model.tool_calling else "no",
        " ".join(by_size(model)),
    ]


def _retrieval_row(model: RetrievalModel) -> list[Any]:
    quants = by_size(model)
    smallest_gb = units.gigabytes_of_files(model.quants[quants[0]].bytes)
    kind = f"embedding, {model.dimensions} values" if model.dimensions else "rerank"
    return [model.id, kind, smallest_gb, recommendation.tokens(model.longest_input), " ".join(quants)]


def _retrieval_entry(model: RetrievalModel) -> dict[str, Any]:
    """Return one model for embeddings or ranking as it is printed for programs."""
    plain = ("id", "name", "repo", "license", "languages", "longest_input", "shortens")
    return {
        "kind": model.purpose,
        **{name: getattr(model, name) for name in plain},
        "dimensions": model.dimensions or None,
        "quants": {
            name: {"source": quant.source, "size_bytes": quant.bytes, "memory_bytes": model.memory_bytes(name)}
            for name, quant in model.quants.items()
        },
    }


def _entry(model: Model, machine: Here) -> dict[str, Any]:
    """Return one model as it is printed for programs."""
    plain = ("id", "name", "family", "repo", "licence", "gated", "total_params_b", "active_params_b", "context")
    speed = {quant: machine.speed(model, quant) for quant in model.quants}
    return {
        **{name: getattr(model, name) for name in plain},
        "tags": list(model.tags),
        "tool_calling": model.tool_calling,
        "vision": model.vision,
        "quality": asdict(quality(model)),
        "retired": model.retired or None,
        "quants": {
            name: {
                "source": quant.source,
                "size_bytes": quant.bytes,
                "confidence": quant.confidence,
                "fits": machine.fits(model, name) if machine.machine else None,
                "speed": asdict(rate) if (rate := speed[name]) else None,
            }
            for name, quant in model.quants.items()
        },
    }
