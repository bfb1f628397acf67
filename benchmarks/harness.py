"""What the benchmarks share: programs timed in turns, and a table at the end."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One program to be timed."""

    name: str
    argv: Sequence[str]
    at_most_s: float | None = None
    """Wall time to reach."""
    at_most_ratio: float | None = None
    """Multiple of `python -c pass` to reach; steadier than seconds on a busy machine."""


NOTHING = Case("python -c pass", [sys.executable, "-c", "pass"])


def wall_s(argv: Sequence[str], env: Mapping[str, str]) -> float:
    """Run a program once and give its wall time. Raises CalledProcessError."""
    begun = time.perf_counter()
    subprocess.run(argv, env=dict(env), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


def first_line_s(argv: Sequence[str], env: Mapping[str, str]) -> float:
    """Give the time until a program says its first word, on either stream; let it end by itself."""
    begun = time.perf_counter()
    with subprocess.Popen(argv, env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as program:
        assert program.stdout
        program.stdout.read(1)
        said = time.perf_counter() - begun
        program.stdout.read()
    return said


def in_turns(cases: Sequence[Case], rounds: int, env: Mapping[str, str] = os.environ) -> dict[str, float]:
    """Time each case once a round, so that a busy moment hits all of them; give medians in seconds.

    The first round warms the caches and does not count.
    """
    taken: dict[str, list[float]] = {case.name: [] for case in cases}
    for turn in range(rounds + 1):
        for case in cases:
            seconds = wall_s(case.argv, env)
            if turn:
                taken[case.name].append(seconds)
    return {name: statistics.median(each) for name, each in taken.items()}


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    for row in (headers, ["---"] * len(headers), *rows):
        print("| " + " | ".join(row) + " |")


def verdict(case: Case, seconds: float, nothing_s: float) -> str:
    """Say whether a case reached what it must; either figure will do, as the machine may be slow or busy."""
    reached: list[bool] = []
    if case.at_most_s is not None:
        reached.append(seconds <= case.at_most_s)
    if case.at_most_ratio is not None:
        reached.append(seconds / nothing_s <= case.at_most_ratio)
    return "" if not reached else "reached" if any(reached) else "MISSED"
