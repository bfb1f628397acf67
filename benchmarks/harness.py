"""What the benchmarks share: programs timed in turns, and a table at the end."""

from __future__ import annotations

import os
import resource
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
    at_most: float | None = None
    """Multiple of `python -c pass` to reach."""


NOTHING = Case("python -c pass", [sys.executable, "-c", "pass"])


@dataclass(frozen=True)
class Taken:
    """What a program took, in seconds."""

    wall: float
    cpu: float
    """User and system time of its process: its own time, whatever else the machine does."""


def time_program(argv: Sequence[str], env: Mapping[str, str]) -> Taken:
    """Run a program once and return what it took. Raises CalledProcessError."""
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, env=dict(env), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Taken(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def first_line_s(argv: Sequence[str], env: Mapping[str, str]) -> float:
    """Give the time until a program says its first word, on either stream; let it end by itself."""
    begun = time.perf_counter()
    with subprocess.Popen(argv, env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as program:
        assert program.stdout
        program.stdout.read(1)
        said = time.perf_counter() - begun
        program.stdout.read()
    return said


def in_turns(cases: Sequence[Case], rounds: int, env: Mapping[str, str] = os.environ) -> dict[str, Taken]:
    """Time each case once a round, so that a busy moment hits all of them; return medians.

    The first round warms the caches and does not count.
    """
    taken: dict[str, list[Taken]] = {case.name: [] for case in cases}
    for turn in range(rounds + 1):
        for case in cases:
            sample = time_program(case.argv, env)
            if turn:
                taken[case.name].append(sample)
    return {
        name: Taken(
            statistics.median(sample.wall for sample in samples), statistics.median(sample.cpu for sample in samples)
        )
        for name, samples in taken.items()
    }


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    for row in (headers, ["---"] * len(headers), *rows):
        print("| " + " | ".join(row) + " |")
