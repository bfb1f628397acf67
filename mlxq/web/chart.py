"""Series become the paths of small SVG charts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from state.sample import MINUTE_S, Sample

WIDTH, HEIGHT = 240, 40
SLOTS = 60
"""Minutes shown."""


@dataclass(frozen=True)
class Chart:
    """One line over the last hour."""

    line: str
    """An SVG path; empty when there is nothing to draw."""
    dots: str
    """A path that is a dot at each value; for lines of few values."""
    area: str
    top: float
    """The value at the upper edge."""
    last: float


def hour(samples: Sequence[Sample], now: float) -> Chart:
    """Draw tokens/s of the last hour; minutes without a sample leave a gap."""
    first = int(now) // MINUTE_S - SLOTS + 1
    values: list[float | None] = [None] * SLOTS
    for each in samples:
        slot = each.at // MINUTE_S - first
        if 0 <= slot < SLOTS:
            values[slot] = each.tokens_per_s
    return draw(values)


def draw(values: Sequence[float | None], width: float = WIDTH, height: float = HEIGHT) -> Chart:
    """Draw values from left to right, scaled to their highest; None leaves a gap."""
    top = max((value for value in values if value is not None), default=0.0)
    step = width / max(1, len(values) - 1)
    runs: list[list[str]] = [[]]
    ends: list[tuple[float, float]] = []
    for index, value in enumerate(values):
        if value is None:
            runs.append([])
            continue
        if not runs[-1]:
            ends.append((index * step, index * step))
        ends[-1] = (ends[-1][0], index * step)
        y = height - 1 - (height - 2) * (value / top if top else 0.0)
        runs[-1].append(f"{index * step:.1f} {y:.1f}")
    drawn = [run for run in runs if run]
    return Chart(
        line="".join(f"M{'L'.join(run)}" if len(run) > 1 else f"M{run[0]}h.1" for run in drawn),
        dots="".join(f"M{dot}h.1" for run in drawn for dot in run),
        area="".join(
            f"M{left:.1f} {height}L{'L'.join(run)}L{right:.1f} {height}Z"
            for run, (left, right) in zip(drawn, ends, strict=True)
        ),
        top=top,
        last=next((value for value in reversed(values) if value is not None), 0.0),
    )
