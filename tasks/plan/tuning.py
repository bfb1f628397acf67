"""What a tuning of an engine has to prove, and which one is used. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.plan.bench import SLOWER, TimedAnswer, usable

AS_IT_IS = "as it is"
"""The engine without any tuning, which all others are measured against."""
FASTER = 1.10
"""A tuning that makes answers less than this many times as fast is not used."""
REUSE_LOSS = 0.05
"""The share of an earlier turn that may be read again in addition."""
STORY = "Write a long story about a lighthouse keeper who finds a letter. Do not stop early."
EDIT = """Return this file with `total` renamed to `amount`, and nothing else:

def summary(orders):
    total = 0
    for order in orders:
        if order.paid:
            total = total + order.price * order.count
    print("total", total)
    return total


def average(orders):
    total = summary(orders)
    return total / len(orders)
"""
PROMPTS = (STORY, EDIT)
"""An answer that is new, and one that repeats its prompt, as an agent's edits do."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one engine process; speeds in tokens/s."""

    answers: tuple[str, ...]
    """The greedy answer to each prompt, as far as it was asked for."""
    decode_tps: tuple[float, ...]
    """The best of each prompt, asked alone."""
    total_tps: float
    """Several answers at once, all together."""
    reused: float
    """Share of an earlier turn that was not read again."""
    peak_bytes: int


def speed(answers: Sequence[TimedAnswer]) -> float:
    """Return the best tokens/s; 0 where every answer ended too early to be timed."""
    return max((timed.decode_tps for timed in usable(answers)), default=0.0)


def best_of(first: Figures, second: Figures) -> Figures:
    """Return what two measurements of the same tuning come to: what else runs on the machine can only slow one."""
    return Figures(
        answers=first.answers if first.answers == second.answers else (),
        decode_tps=tuple(max(pair) for pair in zip(first.decode_tps, second.decode_tps, strict=True)),
        total_tps=max(first.total_tps, second.total_tps),
        reused=max(first.reused, second.reused),
        peak_bytes=max(first.peak_bytes, second.peak_bytes),
    )


def gain(before: Figures, after: Figures) -> float:
    """Return how many times as fast the same number of tokens of each prompt is written; 0 where none was timed."""
    pairs = [pair for pair in zip(before.decode_tps, after.decode_tps, strict=True) if all(pair)]
    if not pairs:
        return 0.0
    return sum(1 / slow for slow, _ in pairs) / sum(1 / fast for _, fast in pairs)


def objection(before: Figures, after: Figures, memory_bytes: int) -> str | None:
    """Return why a tuning is not used, to follow its name; None for one that is.

    `memory_bytes`: what the engine may take at its peak.
    """
    times, worst = gain(before, after), min(_ratios(before, after), default=0.0)
    more = after.reused < before.reused - REUSE_LOSS
    objections = (
        (not before.answers, "cannot be judged: the engine itself does not repeat its greedy answers"),
        (after.answers != before.answers, "gives other greedy answers"),
        (times < FASTER, f"is {times:.2f} times as fast"),
        (worst < SLOWER, f"is {times:.2f} times as fast on the whole, and {worst:.2f} times with one of the prompts"),
        (after.total_tps < SLOWER * before.total_tps, "makes several answers at once slower"),
        (more, f"reads {before.reused - after.reused:.0%} more of an earlier turn again"),
        (after.peak_bytes > max(before.peak_bytes, memory_bytes), "takes more memory than the engine has"),
    )
    return next((text for applies, text in objections if applies), None)


def _ratios(before: Figures, after: Figures) -> list[float]:
    """Return how many times as fast each prompt that was timed is answered."""
    return [fast / slow for slow, fast in zip(before.decode_tps, after.decode_tps, strict=True) if slow]


def best(measured: Mapping[str, Figures], memory_bytes: int) -> str | None:
    """Return the tuning to use; None where nothing speaks for one. AS_IT_IS must be among those measured."""
    before = measured[AS_IT_IS]
    able = {
        name: gain(before, figures)
        for name, figures in measured.items()
        if name != AS_IT_IS and objection(before, figures, memory_bytes) is None
    }
    return max(able, key=lambda name: able[name], default=None)


def result(measured: Mapping[str, Figures], failed: Mapping[str, str], memory_bytes: int) -> dict[str, Any]:
    """Return {"best": name or None, "tried": [{"tuning", "gain", "decode_tps", "objection"}]}; speeds in tokens/s.

    `failed`: why an engine did not serve with a tuning.
    """
    before = measured[AS_IT_IS]
    rows: list[dict[str, Any]] = [
        {
            "tuning": name,
            "gain": round(gain(before, figures), 2),
            "decode_tps": [round(speed, 1) for speed in figures.decode_tps],
            "objection": None if name == AS_IT_IS else objection(before, figures, memory_bytes),
        }
        for name, figures in measured.items()
    ]
    rows += [
        {"tuning": name, "gain": None, "decode_tps": [], "objection": f"does not serve: {message}"}
        for name, message in failed.items()
    ]
    return {"best": best(measured, memory_bytes), "tried": rows}
