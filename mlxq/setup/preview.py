"""What a set-up would come to: the stack that stays, or the one that would take its place, what is to be fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from catalog import units
from catalog.pick import Pick, Recommendation
from mlxq import render
from mlxq.setup import recommendation
from mlxq.setup.inspection import Inspection
from state.stack import Tier
from tasks import recommend


def document(found: Inspection, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Give what `mlxq setup` would do now, as it is printed for programs. Sizes are bytes. Raises DoesNotFit.

    `asked`: the arguments of the task score. "kept" tells whether "tiers" are those of "now", which are here.
    """
    chosen = _chosen(found, asked)
    told = recommendation.document(found.machine, chosen) if chosen else _standing(found)
    now = {"kept": chosen is None, "now": recommend.served(found.tiers)}
    return told | now | {"download_bytes": _download(found, asked, chosen)}


def show(found: Inspection, asked: Mapping[str, Any]) -> None:
    """Print what `mlxq setup` would do now. Raises DoesNotFit."""
    chosen = _chosen(found, asked)
    if chosen:
        _show_choice(found, chosen)
    else:
        _show_standing(found)
    if not asked["pull"]:
        click.echo("\nNothing would be fetched or started.")
    elif not asked["start"]:
        click.echo("\nNothing would be started.")


def require_room(found: Inspection, asked: Mapping[str, Any]) -> None:
    """Refuse, as the fetch itself would, what the disk cannot hold. Raises DoesNotFit."""
    from tasks.weights import disk

    if fetch := _download(found, asked, _chosen(found, asked)):
        disk.require(found.settings.models(found.home), fetch)


def _chosen(found: Inspection, asked: Mapping[str, Any]) -> Recommendation | None:
    """Give the stack that would be made; None where the one that is here stays."""
    return None if found.stays(asked) else found.recommend(asked)


def _download(found: Inspection, asked: Mapping[str, Any], chosen: Recommendation | None) -> int:
    """Give the bytes that would be fetched."""
    if not asked["pull"]:
        return 0
    return found.to_fetch(chosen) if chosen else found.missing


def _standing(found: Inspection) -> dict[str, Any]:
    """Give the stack that is here with the keys of a recommendation; null is what only a choice knows."""
    told = found.told
    return {
        "hardware": found.machine.as_row(),
        "intent": told.get("asked", {}).get("intent"),
        "budget_bytes": told.get("budget_bytes"),
        "total_bytes": sum(tier.memory_bytes for tier in found.tiers),
        "tiers": [recommendation.standing(tier) for tier in found.tiers],
        "explain": told.get("explain"),
    }


def _show_choice(found: Inspection, chosen: Recommendation) -> None:
    recommendation.table(chosen, fetches(found, chosen))
    click.echo("\n".join([*footer(found, chosen), *differences(found.tiers, chosen)]))
    if chosen.intent != "built-in":
        click.echo()
        render.prose(chosen.explain)


def _show_standing(found: Inspection) -> None:
    click.echo("The stack that is here stays:\n")
    render.table(
        ["TIER", "MODEL", "QUANT", "CTX", "MEMORY"],
        [
            [tier.name, tier.model, tier.quant, recommendation.tokens(tier.context), units.memory(tier.memory_bytes)]
            for tier in found.tiers
        ],
        right=(3, 4),
    )
    click.echo()
    if found.missing or not found.unsized:
        click.echo(to_come(found, found.missing))
    for source in found.unsized:
        render.prose(f"To fetch: {source}; the catalog does not know how much that is.")
    if not found.hub:
        click.echo("No Hub is in reach, so no other models can be fetched now.")


def fetches(found: Inspection, chosen: Recommendation) -> dict[str, int]:
    """Give the bytes that are still to come, by tier."""
    return {pick.tier: found.fetch_of(pick.model, pick.quant) for pick in chosen.picks}


def footer(found: Inspection, chosen: Recommendation) -> list[str]:
    """Give the totals: memory against its budget, what is to be fetched against the disk."""
    lines = ["", recommendation.total(chosen)]
    if chosen.intent == "built-in":
        lines.append(chosen.explain)
    return [*lines, to_come(found, found.to_fetch(chosen))]


def to_come(found: Inspection, fetch: int) -> str:
    """Say what is still to come, against the room that there is for it; both in bytes."""
    if not fetch:
        return "All weights are here; nothing is to be fetched."
    only = "only " if fetch > found.free_bytes else ""
    return f"To fetch: {recommendation.fetch(fetch)}; the disk has {only}{units.files(found.free_bytes)} free for it."


def differences(now: Sequence[Tier], chosen: Recommendation) -> list[str]:
    """Say what would become of each tier that is here."""
    if not now:
        return []
    then, here = {pick.tier: pick for pick in chosen.picks}, {tier.name for tier in now}
    fates = {tier.name: f"{tier.model} {tier.quant} {_fate(tier, then.get(tier.name))}" for tier in now}
    fates |= {pick.tier: f"{pick.model} {pick.quant} is new" for pick in chosen.picks if pick.tier not in here}
    return ["Against what is here now:", *(f"  {name:<10}{fate}" for name, fate in fates.items())]


def _fate(tier: Tier, pick: Pick | None) -> str:
    """Say what would become of a tier for which this was picked."""
    if pick is None:
        return "goes"
    if (pick.model, pick.quant) != (tier.model, tier.quant):
        return f"becomes {pick.model} {pick.quant}"
    if pick.context != tier.context:
        context, before = recommendation.tokens(pick.context), recommendation.tokens(tier.context)
        return f"stays, with a context of {context} instead of {before}"
    return "stays"
