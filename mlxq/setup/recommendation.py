"""Render a recommendation as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from catalog import units
from mlxq import render

if TYPE_CHECKING:
    from catalog.machine import Machine
    from catalog.pick import Pick, Recommendation
    from catalog.quality import Quality
    from catalog.speed import Speed
    from state.stack import Tier

KILO = 1024


def document(machine: Machine, chosen: Recommendation) -> dict[str, Any]:
    """Return the recommendation as printed with --json. Sizes are bytes, speeds tokens/s."""
    return {
        "hardware": machine.as_row(),
        "intent": chosen.intent,
        "budget_bytes": chosen.budget,
        "total_bytes": chosen.total,
        "at_once_bytes": chosen.at_once,
        "over_bytes": chosen.over,
        "tiers": [_tier(pick) for pick in chosen.picks],
        "explain": chosen.explain,
    }


def _tier(pick: Pick) -> dict[str, Any]:
    memory = {**asdict(pick.memory), "cache": pick.cache_bytes, "total": pick.bytes}
    return {
        "tier": pick.tier,
        "model": pick.model,
        "quant": pick.quant,
        "context": pick.context,
        "concurrency": pick.concurrency,
        "shares": pick.shares or None,
        "reading_s": round(pick.reading_s, 1),
        "memory_bytes": memory,
        "speed": asdict(pick.speed),
        "quality": asdict(pick.quality),
        "reasons": list(pick.reasons),
        "next": pick.runner_up or None,
    }


def current(tier: Tier, tiers: Sequence[Tier]) -> dict[str, Any]:
    """Return a tier of the stack `tiers` with the keys of a pick; null for what only a recommendation has."""
    from state import stack

    return {
        "tier": tier.name,
        "model": tier.model,
        "quant": tier.quant,
        "context": tier.context,
        "concurrency": tier.engine.concurrency,
        "shares": stack.shares(tier, tiers) or None,
        "reading_s": None,
        "memory_bytes": {"cache": tier.engine.cache_bytes, "total": tier.engine.memory_bytes},
        "speed": None,
        "quality": None,
        "reasons": [],
        "next": None,
    }


def show(chosen: Recommendation, *, explain: bool) -> None:
    """Print the models, their memory use and their expected speed."""
    table(chosen)
    click.echo(f"\n{total(chosen)}")
    if explain:
        click.echo()
        render.prose(chosen.explain)


def table(chosen: Recommendation, fetches: Mapping[str, int] | None = None, *, err: bool = False) -> None:
    """Print one row per tier; `fetches`: the bytes still to download, by tier."""
    headers = ["TIER", "MODEL", "QUANT", "CTX", "MEMORY", "TOK/S", *(["DOWNLOAD"] if fetches is not None else [])]
    rows = [[*_row(pick), *([_download(pick, fetches)] if fetches is not None else [])] for pick in chosen.picks]
    render.table(headers, rows, right=(3, 4, 5), err=err)


def _row(pick: Pick) -> list[str]:
    """Return the cells of one tier; one that shares an engine takes no memory of its own."""
    memory = f"with {pick.shares}" if pick.shares else units.memory(pick.bytes)
    return [pick.tier, pick.model, pick.quant, tokens(pick.context), memory, ranged(pick.speed)]


def _download(pick: Pick, fetches: Mapping[str, int]) -> str:
    """Return what is to be downloaded for one tier; what it shares is counted once."""
    return "-" if pick.shares else fetch(fetches[pick.tier])


def total(chosen: Recommendation, beside: int = 0) -> str:
    """Return a sentence about the memory used and the basis of the speeds.

    `beside`: bytes of the engines beside the tiers, which the budget of the tiers leaves out.
    """
    basis = ", ".join(dict.fromkeys(pick.speed.basis for pick in chosen.picks))
    excess = f" {units.memory(chosen.over)} too much if all engines read long prompts at once." if chosen.over else ""
    used, budget = units.memory(chosen.total + beside), units.memory(chosen.budget + beside)
    return f"Uses {used} of {budget}.{excess} Speeds: {basis}."


def fetch(size: int) -> str:
    """Return a download size; `size` is in bytes, 0 for installed weights."""
    return units.files(size) if size else "installed"


def points(rated: Quality) -> str:
    """Return a quality in points, or that there is no score."""
    return f"{rated.points:.0f}" if rated.benchmark else "unrated"


def ranged(speed: Speed) -> str:
    """Return a speed with its range, in tokens/s."""
    return f"{brief(speed.decode)} ({brief(speed.low)}-{brief(speed.high)})"


def brief(speed: float) -> str:
    """Return a speed rounded to two significant digits."""
    return f"{speed:.1f}" if speed < 10 else f"{speed:.0f}"  # noqa: PLR2004 (two digits are enough)


def tokens(count: int) -> str:
    """Return a context length such as 32K or 1M."""
    if count < KILO:
        return str(count)
    return f"{count // KILO}K" if count < KILO * KILO else f"{count // KILO // KILO}M"
