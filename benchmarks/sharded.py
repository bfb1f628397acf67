"""One model in three processes: how it comes back when one is killed, and whether anything is left.

    python benchmarks/sharded.py              three ranks on loopback under a real worker
    python benchmarks/sharded.py --networks   three ranks in network namespaces of their own as well (root, iproute2)

"own start" is what the new start took from its process to its first answer; what mlxq adds is the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from harness import table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import hybrid_model, loopback, recovery
from support.engines import KEY, Engine
from support.mlxq_home import Mlxq
from support.networks import network

from state import settings
from state.paths import Home
from tasks.engines.mlx_lm_sharded import adapter
from tasks.system import process
from tasks.weights import builtin

RANKS = 3
QUESTION = {
    "model": "fast",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 8,
    "temperature": 0,
}
Row = tuple[str, str, str, bool]
"""What was done, what it must be, what it was, and whether that is reached."""
MORE_S, IDLE = 2.0, 0.05
AGAIN = f"own start + {MORE_S:g} s, 0 orphans"


def ranks(leader: int) -> list[psutil.Process]:
    """Return the ranks of an engine."""
    return [child for child in psutil.Process(leader).children() if "rank_program.py" in " ".join(child.cmdline())]


def left(processes: list[psutil.Process]) -> int:
    """Return how many of these still run."""
    return sum(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in processes)


def idle_share(processes: list[psutil.Process], seconds: float = 5.0) -> float:
    """Return the CPU use of these processes together, as a share of one core, while there is no request."""

    def spent() -> float:
        return sum(times.user + times.system for times in (child.cpu_times() for child in processes))

    before, began = spent(), time.monotonic()
    time.sleep(seconds)
    return (spent() - before) / (time.monotonic() - began)


def killed(mlxq: Mlxq, what: str, victim: Callable[[], psutil.Process]) -> Row:
    """Kill a process of an engine that serves, as the first in a row: further restarts wait on purpose."""
    mlxq.db.run("UPDATE services SET exits = '[]'")
    before, earlier, at = ranks(mlxq.identity().pid), mlxq.one(), time.time()
    victim().send_signal(signal.SIGKILL)
    back = recovery.back(mlxq, earlier, at)
    orphans = left(before)
    shown = f"{back.ready_s:.1f} s = own start {back.own_start_s:.1f} s + {back.extra_s:.2f} s, {orphans} orphans"
    return (f"{what} killed -> serving again", AGAIN, shown, back.extra_s <= MORE_S and not orphans)


def supervised(folder: Path, weights: Path) -> list[Row]:
    """Kill each process of an engine that a worker supervises."""
    home = Home(folder / "home").make()
    os.environ["MLXQ_HOME"] = str(home.root)
    settings.write(home, "tier-ranks", {"fast": RANKS})
    mlxq = Mlxq(home)
    mlxq.serve(weights, "fast")
    try:
        mlxq.work()
        mlxq.up()
        share = idle_share(ranks(mlxq.identity().pid))
        return [
            ("three idle ranks, of one core", f"<= {IDLE:.0%}", f"{share:.1%}", share <= IDLE),
            killed(mlxq, "a rank", lambda: ranks(mlxq.identity().pid)[1]),
            killed(mlxq, "rank 0, which leads,", lambda: ranks(mlxq.identity().pid)[0]),
            killed(mlxq, "their program", lambda: psutil.Process(mlxq.identity().pid)),
        ]
    finally:
        mlxq.close()


def apart(folder: Path, weights: Path) -> list[Row]:
    """Ask ranks that reach each other over a network, and kill one of them."""
    with network(*"abc") as net:
        places = [{"address": net.address(name), "through": net.inside(name)} for name in net.names]
        words = ("--places", json.dumps(places))
        engine = Engine(folder / "apart", weights, adapter.installation(), concurrency=1, words=words)
        engine.start()
        try:
            begun = time.monotonic()
            answer = loopback.post(
                f"{engine.url}/v1/chat/completions", json=QUESTION, headers={"Authorization": f"Bearer {KEY}"},
                timeout=240,
            ).json()  # fmt: skip
            took = time.monotonic() - begun
            before, at = ranks(engine.identity.pid), time.monotonic()
            before[-1].send_signal(signal.SIGKILL)
            process.wait(engine.identity, 30)
            ended, count = time.monotonic() - at, left(before)
        finally:
            engine.stop(1)
        said = answer["choices"][0]["message"]["content"]
        return [
            ("three namespaces: the built-in model's answer", "Paris", f"{said!r} in {took:.1f} s", "Paris" in said),
            ("... a rank killed: all ended, ranks left", "0", f"after {ended:.2f} s, {count} left", not count),
        ]


def main() -> int:
    """Print what was reached; return 1 where something was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", action="store_true", help="three network namespaces as well")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = builtin.ensure(folder / "builtin")
        rows = supervised(folder, hybrid_model.make("thirds", folder / "thirds", whole))
        rows += apart(folder, whole) if wanted.networks else []
    table(["", "must be", "is", ""], [[what, must, shown, "met" if ok else "missed"] for what, must, shown, ok in rows])
    return 0 if all(ok for *_, ok in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
