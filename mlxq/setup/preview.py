"""What setup would do: keep or replace the current stack, and what it would download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from catalog import units
from catalog.pick import Pick, Recommendation
from mlxq import render
from mlxq.setup import engines, recommendation
from mlxq.setup.inspection import Inspection
from state.stack import Tier, engines_of, shares
from tasks import recommend

PURPOSE_TEXTS = {"embedding": "embeddings", "rerank": "ranking"}


def document(inspection: Inspection, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `mlxq setup` would do, as printed with --json. Sizes are bytes. Raises DoesNotFit.

    `arguments`: those of the task score. "kept": whether "tiers" is the current stack, "now"; "engine":
    the one that would be installed, or null.
    """
    chosen = _chosen(inspection, arguments)
    stack = recommendation.document(inspection.machine, chosen) if chosen else _current(inspection)
    now = {"kept": chosen is None, "now": recommend.served(inspection.tiers)}
    models = [pick.model for pick in chosen.picks] if chosen else [tier.model for tier in inspection.tiers]
    engine = inspection.engine_of(models) if inspection.index else None
    return stack | now | {"engine": engine} | {"download_bytes": _download(inspection, arguments, chosen)}


def show(inspection: Inspection, arguments: Mapping[str, Any]) -> None:
    """Print what `mlxq setup` would do. Raises DoesNotFit."""
    chosen = _chosen(inspection, arguments)
    if chosen:
        _show_choice(inspection, arguments, chosen)
    else:
        _show_current(inspection)
    if not arguments["pull"]:
        click.echo("\nNothing would be downloaded or started.")
    elif not arguments["start"]:
        click.echo("\nNothing would be started.")


def require_room(inspection: Inspection, arguments: Mapping[str, Any]) -> None:
    """Check that the download fits on the disk, as the download itself would. Raises DoesNotFit."""
    from tasks.weights import disk

    if fetch := _download(inspection, arguments, _chosen(inspection, arguments)):
        disk.require(inspection.settings.models(inspection.home), fetch)


def _chosen(inspection: Inspection, arguments: Mapping[str, Any]) -> Recommendation | None:
    """Return the stack that would be installed; None if the current one is kept."""
    return None if inspection.stays(arguments) else inspection.recommend(arguments)


def _download(inspection: Inspection, arguments: Mapping[str, Any], chosen: Recommendation | None) -> int:
    """Return the bytes that would be downloaded."""
    if not arguments["pull"]:
        return 0
    if chosen:
        return inspection.to_fetch(chosen, arguments)
    return inspection.missing + inspection.to_fetch_beside(arguments)


def _current(inspection: Inspection) -> dict[str, Any]:
    """Return the current stack with the keys of a recommendation; null for what only a recommendation has."""
    facts = inspection.stack_facts
    return {
        "hardware": inspection.machine.as_row(),
        "intent": facts.get("asked", {}).get("intent"),
        "budget_bytes": facts.get("budget_bytes"),
        "total_bytes": sum(engine.memory_bytes for engine in engines_of(inspection.tiers)),
        "tiers": [recommendation.current(tier, inspection.tiers) for tier in inspection.tiers],
        "explain": facts.get("explain"),
    }


def _show_choice(inspection: Inspection, arguments: Mapping[str, Any], chosen: Recommendation) -> None:
    recommendation.table(chosen, fetches(inspection, chosen))
    click.echo("\n".join([*footer(inspection, arguments, chosen), *differences(inspection.tiers, chosen)]))
    show_engine(inspection, [pick.model for pick in chosen.picks])
    if chosen.intent != "built-in":
        click.echo()
        render.prose(chosen.explain)


def _show_current(inspection: Inspection) -> None:
    click.echo("The current stack is kept:\n")
    render.table(
        ["TIER", "MODEL", "QUANT", "CTX", "MEMORY"],
        [
            [tier.name, tier.model, tier.quant, recommendation.tokens(tier.context), memory(tier, inspection.tiers)]
            for tier in inspection.tiers
        ],
        right=(3, 4),
    )
    click.echo()
    if inspection.missing or not inspection.unsized:
        click.echo(download_size(inspection, inspection.missing))
    for source in inspection.unsized:
        render.prose(f"To download: {source}, of unknown size.")
    show_engine(inspection, [tier.model for tier in inspection.tiers])
    if not inspection.hub:
        click.echo("The Hub is unreachable, so no other models can be downloaded now.")


def memory(tier: Tier, tiers: Sequence[Tier]) -> str:
    """Return the memory of a tier's engine, or the tier with which it shares it: it is counted once."""
    first = shares(tier, tiers)
    return f"with {first}" if first else units.memory(tier.engine.memory_bytes)


def fetches(inspection: Inspection, chosen: Recommendation) -> dict[str, int]:
    """Return the bytes still to download, by tier."""
    return {pick.tier: inspection.fetch_of(pick.model, pick.quant) for pick in chosen.picks}


def footer(inspection: Inspection, arguments: Mapping[str, Any], chosen: Recommendation) -> list[str]:
    """Return the lines below the table: what is added beside the tiers, memory and its budget, download and disk."""
    lines = ["", *beside(inspection, arguments), recommendation.total(chosen, inspection.reserved_bytes(arguments))]
    if chosen.intent == "built-in":
        lines.append(chosen.explain)
    return [*lines, download_size(inspection, inspection.to_fetch(chosen, arguments))]


def beside(inspection: Inspection, arguments: Mapping[str, Any]) -> list[str]:
    """Return a line for each model for embeddings or ranking that is added, and an empty one behind them."""
    lines = [
        f"With {PURPOSE_TEXTS[model.purpose]}: {model.id} {quant}, {units.memory(model.memory_bytes(quant))} of memory."
        for model, quant in inspection.added(arguments)
    ]
    return [*lines, ""] if lines else []


def show_engine(inspection: Inspection, models: Sequence[str], *, err: bool = False) -> None:
    """Print which engine these models need that is not here, and whether it will be installed; nothing for none."""
    engine = inspection.engine_of(models)
    if engine is not None:
        render.prose(engines.gain(engine) if inspection.index else engines.loss(engine, engines.NO_INDEX), err=err)


def download_size(inspection: Inspection, fetch: int) -> str:
    """Return a sentence with the download size and the free disk space. `fetch` is in bytes."""
    if not fetch:
        return "All models are downloaded."
    only = "only " if fetch > inspection.free_bytes else ""
    return f"To download: {recommendation.fetch(fetch)}; the disk has {only}{units.files(inspection.free_bytes)} free."


def differences(now: Sequence[Tier], chosen: Recommendation) -> list[str]:
    """Return lines that say what would change for each current tier."""
    if not now:
        return []
    picks, names = {pick.tier: pick for pick in chosen.picks}, {tier.name for tier in now}
    changes = {tier.name: f"{tier.model} {tier.quant} {_change(tier, now, picks.get(tier.name))}" for tier in now}
    changes |= {pick.tier: _addition(pick) for pick in chosen.picks if pick.tier not in names}
    return ["Changes to the current stack:", *(f"  {name:<10}{change}" for name, change in changes.items())]


def reasons(chosen: Recommendation) -> list[str]:
    """Return one reason for each tier, and where to read the rest; all that is known of the built-in stack."""
    if chosen.intent == "built-in":
        return [chosen.explain]
    lines = [f"{pick.tier}: {pick.model}, {pick.reasons[0]}." for pick in chosen.picks if pick.reasons]
    return [*lines, "All reasons, and what comes next: mlxq models --recommend --explain"]


def costs(before: Recommendation, after: Recommendation) -> list[str]:
    """Return what a change of one model does to the other tiers: quant, window and requests, before and after."""
    picks = {pick.tier: pick for pick in after.picks}
    return [
        f"  {pick.tier:<10}{_form(pick)} -> {_form(picks[pick.tier])}"
        for pick in before.picks
        if pick.tier in picks and pick.model == picks[pick.tier].model and _form(pick) != _form(picks[pick.tier])
    ]


def _form(pick: Pick) -> str:
    """Return how a model serves, apart from which it is."""
    side_by_side = "1 request" if pick.concurrency == 1 else f"{pick.concurrency} requests"
    return f"{pick.quant} {recommendation.tokens(pick.context)}, {side_by_side}"


def _addition(pick: Pick) -> str:
    """Return what would be new about a tier."""
    return f"{pick.model} {pick.quant} is new" + _sharing(pick)


def _sharing(pick: Pick) -> str:
    return f"; it shares the engine of {pick.shares}" if pick.shares else ""


def _change(tier: Tier, now: Sequence[Tier], pick: Pick | None) -> str:
    """Return what would change for a tier of the stack `now`; `pick` is the recommendation for it."""
    if pick is None:
        return "is removed"
    if (pick.model, pick.quant) != (tier.model, tier.quant):
        return "is replaced" + (_sharing(pick) or f" by {pick.model} {pick.quant}")
    if pick.shares != shares(tier, now):
        return "is kept" + (_sharing(pick) or "; it gets an engine of its own")
    if pick.context != tier.context:
        context, before = recommendation.tokens(pick.context), recommendation.tokens(tier.context)
        return f"is kept, with a context of {context} instead of {before}"
    return "is kept"
