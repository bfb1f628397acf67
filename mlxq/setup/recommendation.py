"""A recommendation as a person and a program read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import click

from catalog import units
from catalog.machine import Machine
from catalog.pick import Pick, Recommendation
from catalog.speed import Speed
from mlxq import render
from state.stack import Tier

KILO = 1024


def document(machine: Machine, chosen: Recommendation) -> dict[str, Any]:
    """Give it as it is printed for programs. Sizes are bytes, speeds tokens/s."""
    return {
        "hardware": machine.as_row(),
        "intent": chosen.intent,
        "budget_bytes": chosen.budget,
        "total_bytes": chosen.total,
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
        "memory_bytes": memory,
        "speed": asdict(pick.speed),
        "quality": asdict(pick.quality),
        "reasons": list(pick.reasons),
        "next": pick.runner_up or None,
    }


def standing(tier: Tier) -> dict[str, Any]:
    """Give a tier of the stack with the keys of a pick; null is what only a choice knows."""
    return {
        "tier": tier.name,
        "model": tier.model,
        "quant": tier.quant,
        "context": tier.context,
        "concurrency": tier.concurrency,
        "memory_bytes": {"cache": tier.cache_bytes, "total": tier.memory_bytes},
        "speed": None,
        "quality": None,
        "reasons": [],
        "next": None,
    }


def show(chosen: Recommendation, *, explain: bool) -> None:
    """Print the three models, what they need and how fast they will be."""
    table(chosen)
    click.echo(f"\n{total(chosen)}")
    if explain:
        click.echo()
        render.prose(chosen.explain)


def table(chosen: Recommendation, fetches: Mapping[str, int] | None = None, *, err: bool = False) -> None:
    """Print one row a tier; `fetches`: the bytes of each tier's weights that are still to come."""
    headers = ["TIER", "MODEL", "QUANT", "CTX", "MEMORY", "TOK/S"]
    rows = [
        [pick.tier, pick.model, pick.quant, tokens(pick.context), units.memory(pick.bytes), ranged(pick.speed)]
        for pick in chosen.picks
    ]
    if fetches is not None:
        headers.append("FETCH")
        rows = [[*row, fetch(fetches[row[0]])] for row in rows]
    render.table(headers, rows, right=(3, 4, 5), err=err)


def total(chosen: Recommendation) -> str:
    """Say how much of the budget is used, and how far the speeds can be trusted."""
    basis = ", ".join(dict.fromkeys(pick.speed.basis for pick in chosen.picks))
    return f"Uses {units.memory(chosen.total)} of {units.memory(chosen.budget)}. Speeds: {basis}."


def fetch(size: int) -> str:
    """Say how much is to be fetched."""
    return units.files(size) if size else "here"


def ranged(speed: Speed) -> str:
    """Give a speed with its range."""
    return f"{brief(speed.decode)} ({brief(speed.low)}-{brief(speed.high)})"


def brief(speed: float) -> str:
    """Give a number in as many digits as it is worth."""
    return f"{speed:.1f}" if speed < 10 else f"{speed:.0f}"  # noqa: PLR2004 (two digits are enough)


def tokens(count: int) -> str:
    """Give a context as people say it: 32K, 1M."""
    if count < KILO:
        return str(count)
    return f"{count // KILO}K" if count < KILO * KILO else f"{count // KILO // KILO}M"
