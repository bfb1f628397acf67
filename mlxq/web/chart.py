"""Draw series as SVG paths of small charts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from state.metrics.sample import MINUTE_S, Sample

WIDTH, HEIGHT = 240, 40
SLOTS = 60
"""Minutes shown."""
Point = tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """One line over the last hour."""

    line: str
    """An SVG path; empty if there are no values."""
    dots: str
    """A path with a dot at each value, for series with few values."""
    area: str
    top: float
    """The value at the upper edge."""
    last: float


def hour(samples: Sequence[Sample], now: float) -> Chart:
    """Draw tokens/s of the last hour; minutes without a sample leave a gap."""
    first = int(now) // MINUTE_S - SLOTS + 1
    values: list[float | None] = [None] * SLOTS
    for sample in samples:
        slot = sample.at // MINUTE_S - first
        if 0 <= slot < SLOTS:
            values[slot] = sample.tokens_per_s
    return draw(values)


def draw(values: Sequence[float | None], width: float = WIDTH, height: float = HEIGHT) -> Chart:
    """Draw values from left to right, scaled to their highest; None leaves a gap."""
    numbers = [value for value in values if value is not None]
    top = max(numbers, default=0.0)
    runs = _runs(values, width, height, top)
    return Chart(
        line="".join(_line(run) for run in runs),
        dots="".join(_line([point]) for run in runs for point in run),
        area="".join(f"M{run[0][0]:.1f} {height}L{_joined(run)}L{run[-1][0]:.1f} {height}Z" for run in runs),
        top=top,
        last=numbers[-1] if numbers else 0.0,
    )


def _runs(values: Sequence[float | None], width: float, height: float, top: float) -> list[list[Point]]:
    """Return the points of each run without a gap."""
    step = width / max(1, len(values) - 1)
    runs: list[list[Point]] = [[]]
    for index, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((index * step, height - 1 - (height - 2) * (value / top if top else 0.0)))
    return [run for run in runs if run]


def _line(run: Sequence[Point]) -> str:
    """Return the path of a run; a single point is a dot."""
    return f"M{_joined(run)}" + ("" if len(run) > 1 else "h.1")


def _joined(run: Sequence[Point]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in run)
