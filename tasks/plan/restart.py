"""When a service that ended is started again. Pure.

At once, then after 1, 2, 4 … 60 s, so that a passing fault costs nothing and a lasting one little. What was ready for
ten minutes starts over. More than five exits in ten minutes is a crash loop: no
requests, and one try every five minutes.
The first pause and the number of exits are settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_S = 60.0
FORGET_S = 600.0
CRASH_LOOP_EXITS = 5
FIRST_PAUSE_S = 1.0
KEPT_EXITS = 200
"""Above the largest `max-restarts`."""
CRASH_LOOP_S = 300.0
JITTER = 0.2
"""Each pause is stretched or shrunk by up to a fifth, so that tiers that died together do not load together."""
LONGEST_PAUSE_S = CRASH_LOOP_S * (1 + JITTER)


@dataclass(frozen=True)
class Retry:
    """When to restart (unix seconds), and whether the service is in a crash loop."""

    at: float
    crash_loop: bool


def remember(exits: Sequence[float], now: float, ready_s: float) -> list[float]:
    """Add an exit. `ready_s`: how long the service was ready before it; long enough clears the earlier ones."""
    recent = [] if ready_s >= FORGET_S else [at for at in exits if at <= now]
    return [*recent[1 - KEPT_EXITS :], now]


def next_try(
    exits: Sequence[float],
    now: float,
    rand: float,
    *,
    most: int = CRASH_LOOP_EXITS,
    first_pause_s: float = FIRST_PAUSE_S,
) -> Retry:
    """Return when to restart. `exits` ends with this one; `rand` is in [0, 1).

    `most`: exits in ten minutes beyond which it is a crash loop; `first_pause_s`: before the second try.
    """
    stretch = 1 - JITTER + 2 * JITTER * rand
    if sum(now - at <= FORGET_S for at in exits) > most:
        return Retry(now + CRASH_LOOP_S * stretch, crash_loop=True)
    return Retry(now + pause(len(exits), first_pause_s) * stretch, crash_loop=False)


def pause(exits: int, first_pause_s: float = FIRST_PAUSE_S) -> float:
    """Return the seconds before the next try, after this many exits in a row: 0, 1, 2, 4 … 60."""
    return 0.0 if exits <= 1 else min(LONGEST_S, first_pause_s * 2.0 ** min(exits - 2, 10))


def left_s(next_try_at: float | None, now: float) -> float:
    """Return the seconds until the next try, both times in unix seconds; 0 for what no pause can be.

    A clock that was set back by an hour must not keep a service down for that long.
    """
    pause_s = (next_try_at or 0.0) - now
    return pause_s if 0 < pause_s <= LONGEST_PAUSE_S else 0.0
