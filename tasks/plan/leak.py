"""What to do about an engine whose memory only grows: first drop its cache, then replace it at a quiet moment. Pure.

Engines of some model families keep what they should let go (vllm-mlx issue 442: 100 GB to 220 GB in hours); left
alone they end in an abort, or take the machine with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from statistics import linear_regression

WINDOW_S = 1200.0
"""Older looks are forgotten."""
SURE_S = 600.0
"""A trend is believed after so long."""
AHEAD_S = 1800.0
"""It matters when it would leave the budget within this time."""
OVER = 1.15
"""What of its budget an engine may reach: sizes are estimates."""
AFTER_PURGE_S = 300.0
"""What a purge brought shows by then."""

FORGET_PURGE_S = 3600.0
"""So much later a rise is a new one, and begins with the mild step again."""


class Advice(StrEnum):
    """What to do about an engine's memory."""

    NOTHING = "nothing"  # it is steady, or there is room
    PURGE = "purge"  # have it drop its cache of old prompts
    RECYCLE = "recycle"  # restart it while others serve, or while it is idle where there is no other


@dataclass(frozen=True)
class Trend:
    """How an engine's memory went since it was ready or purged: looks as (monotonic seconds, bytes)."""

    looks: tuple[tuple[float, int], ...] = ()
    purged_at: float | None = None


def add(trend: Trend, at: float, used: int) -> Trend:
    """Add one look."""
    looks = tuple(look for look in trend.looks if at - look[0] <= WINDOW_S)
    old = trend.purged_at is not None and at - trend.purged_at > FORGET_PURGE_S
    return Trend((*looks, (at, used)), None if old else trend.purged_at)


def rise(trend: Trend) -> float:
    """Return the bytes a second by which it grows, by least squares; 0.0 while that cannot be told."""
    if not trend.looks or trend.looks[-1][0] - trend.looks[0][0] < (
        SURE_S if trend.purged_at is None else AFTER_PURGE_S
    ):
        return 0.0
    return linear_regression(*zip(*trend.looks, strict=True)).slope


def advise(trend: Trend, budget: int, *, short: bool, spare: bool) -> Advice:
    """Decide. `budget`: the tier's bytes.

    `short`: the machine is short of memory; `spare`: the engine is idle, and others serve or there are none.
    """
    growth = rise(trend)
    if growth <= 0:
        return Advice.NOTHING
    used = trend.looks[-1][1]
    if used + growth * AHEAD_S <= OVER * budget and not (short and used > budget):
        return Advice.NOTHING
    if trend.purged_at is None:
        return Advice.PURGE
    return Advice.RECYCLE if spare else Advice.NOTHING
