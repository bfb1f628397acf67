"""Draw series as SVG paths of small charts, with round scales and the times of their slots. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from state.metrics.sample import Sample, Slot

WIDTH, HEIGHT = 240, 60
Point = tuple[float, float]
Values = Sequence[float | None]
ROUND = (1.0, 2.0, 4.0, 6.0, 8.0, 10.0)
"""First digits of a scale; half of each is round too."""


@dataclass(frozen=True)
class Range:
    """How far back a chart reaches."""

    name: str
    slot_s: int
    slots: int
    ticks: str
    """How page.js writes the times below it: `time` or `day`."""

    def since(self, now: float) -> int:
        """Return when the first slot begins, in unix seconds; the last slot is the one of `now`."""
        return (int(now) // self.slot_s - self.slots + 1) * self.slot_s

    def times(self, now: float) -> list[int]:
        """Return the unix seconds of the beginning, of one and two thirds, and of the end."""
        first = self.since(now)
        return [first + self.slots * self.slot_s * third // 3 for third in range(4)]


RANGES: Mapping[str, Range] = {
    "hour": Range("hour", 60, 60, "time"),
    "day": Range("day", 900, 96, "time"),
    "week": Range("week", 3600, 168, "day"),
}


@dataclass(frozen=True)
class Chart:
    """One line from left to right."""

    values: Values
    line: str
    """An SVG path; empty if there are no values."""
    dots: str
    """A path with a dot at each value, for series with few values."""
    area: str
    peak: float
    top: float
    """The value at the upper edge, a round number."""
    last: float

    @property
    def csv(self) -> str:
        """The values for the reader's pointer, separated by commas; nothing between two stands for none."""
        return ",".join("" if value is None else f"{value:.4g}" for value in self.values)


def minutes(samples: Sequence[Sample], now: float) -> list[float | None]:
    """Return tokens/s in each minute of the last hour; None for minutes without a sample."""
    rates = {sample.at: sample.tokens_per_s for sample in samples}
    return spread(RANGES["hour"], rates, now)


def series(slots: Mapping[int, Slot], span: Range, now: float, value: Callable[[Slot], float | None]) -> Values:
    """Return one figure of each slot of a range; None where nothing was measured."""
    return spread(span, {at: value(slot) for at, slot in slots.items()}, now)


def spread(span: Range, values: Mapping[int, float | None], now: float) -> list[float | None]:
    """Return a value for each slot of a range, by the time at which the slot begins."""
    first = span.since(now)
    return [values.get(first + number * span.slot_s) for number in range(span.slots)]


def scale(peak: float) -> float:
    """Return the round number at or above `peak` that a chart reaches up to; 1 for nothing."""
    if peak <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(peak))
    return next(unit * digit for digit in ROUND if unit * digit >= peak * (1 - 1e-9))


def draw(values: Values, top: float | None = None) -> Chart:
    """Draw values from left to right, up to `top`, else to a round number above the highest; None leaves a gap."""
    numbers = [value for value in values if value is not None]
    peak = max(numbers, default=0.0)
    limit = top or scale(peak)
    runs = _runs(values, limit)
    return Chart(
        values=values,
        line="".join(_line(run) for run in runs),
        dots="".join(_line([point]) for run in runs for point in run),
        area="".join(f"M{run[0][0]:.1f} {HEIGHT}L{_joined(run)}L{run[-1][0]:.1f} {HEIGHT}Z" for run in runs),
        peak=peak,
        top=limit,
        last=numbers[-1] if numbers else 0.0,
    )


def _runs(values: Values, top: float) -> list[list[Point]]:
    """Return the points of each run without a gap."""
    step = WIDTH / max(1, len(values) - 1)
    runs: list[list[Point]] = [[]]
    for index, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((index * step, HEIGHT - 1 - (HEIGHT - 2) * value / top))
    return [run for run in runs if run]


def _line(run: Sequence[Point]) -> str:
    """Return the path of a run; a single point is a dot."""
    return f"M{_joined(run)}" + ("" if len(run) > 1 else "h.1")


def _joined(run: Sequence[Point]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in run)
