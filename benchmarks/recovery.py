"""How long mlxq is away when something dies, hangs or lies: `uv run python benchmarks/recovery.py`.

Real worker, engines and gateway; engines stand in (tests/support/fake_engine.py) where the real one cannot be made to
misbehave. The peer's column is mlx-stack 0.3.8 as it was measured on a machine like this one, under its `watch` with
the default poll of 30 s; it is quoted, not run here.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import recovery
from support.mlxq_home import Mlxq, make_tiny

from state import service
from state.paths import Home
from state.service import State

Row = tuple[str, str, str, bool]
"""What was done, the peer's figure, mlxq's, and whether that is what it must be."""


class Bench:
    """Runs each row in a home of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.tiny = make_tiny(folder / "tiny")
        self.count = 0

    @contextmanager
    def mlxq(self, *tiers: str) -> Iterator[Mlxq]:
        """Give a fresh home with these tiers."""
        self.count += 1
        home = Home(self.folder / f"home{self.count}").make()
        os.environ["MLXQ_HOME"] = str(home.root)
        made = Mlxq(home)
        made.serve(self.tiny, *tiers)
        try:
            yield made
        finally:
            made.close()

    def engine(self) -> list[Row]:
        """Kill and freeze a real engine."""
        with self.mlxq("fast") as mlxq:
            mlxq.work()
            mlxq.up()
            killed = recovery.hurt(mlxq, signal.SIGKILL)
            frozen = recovery.hurt(mlxq, signal.SIGSTOP)
        back = f"{killed.ready_s:.2f} s = its own start + {killed.extra_s:.2f} s"
        return [
            ("kill -9 of an engine: restart begun", "13.3 s", f"{killed.begun_s:.3f} s", killed.begun_s <= 0.25),
            ("... serving again", "31.8 s", back, killed.extra_s <= 1),
            ("SIGSTOP of an engine: replaced", "never", f"{frozen.ready_s:.1f} s", frozen.ready_s <= 20),
        ]

    def waiting(self) -> list[Row]:
        """Kill the gateway and a tier while a chain that will start them waits for a pull of ten minutes."""
        with self.mlxq("fast") as mlxq:
            mlxq.work_with_fakes()
            recovery.up_with_gateway(mlxq, self.port)
            recovery.wait_behind_a_pull(mlxq)
            gate = recovery.hurt(mlxq, signal.SIGKILL, "gateway")
            tier = recovery.hurt(mlxq, signal.SIGKILL)
        told = f"{gate.begun_s:.3f} s, a tier {tier.begun_s:.3f} s"
        what = "kill -9 of the gateway while a chain pulls: restart begun"
        return [(what, "not tried", told, max(gate.begun_s, tier.begun_s) <= 0.25)]

    def worker(self) -> list[Row]:
        """Kill the worker over a real engine; the next one must adopt it, and notice its next death."""
        with self.mlxq("fast") as mlxq:
            mlxq.work()
            mlxq.up()
            same, after = recovery.kill_worker_then_engine(mlxq)
        found = f"{'unchanged' if same else 'CHANGED'}; next death: restart begun after {after.begun_s:.3f} s"
        reached = same and after.begun_s <= 0.25
        return [("kill -9 of the worker: engine's pid", "nothing restarts", found, reached)]

    def wedged(self) -> list[Row]:
        """Let an engine take requests and make no token."""
        with self.mlxq("fast") as mlxq:
            mlxq.work_with_fakes()
            mlxq.up()
            before = recovery.patience()
            back = recovery.wedge(mlxq)
        stretch = max(before, recovery.patience())
        told = f"{back.ready_s:.1f} s (patience stretched by {stretch:.1f})"
        return [("wedged engine, health green: replaced", "never", told, back.ready_s <= 30 * stretch)]

    def dying(self) -> list[Row]:
        """Let an engine end at once, every time."""
        with self.mlxq("fast") as mlxq:
            mlxq.work_with_fakes("--exit-after", "0.05", "--exit-code", "9")
            one = recovery.start_dying(mlxq)
            left = (one.next_try_at or 0) - mlxq.db.now()
        told = f"{one.state} after {len(one.exits)} ends, next try in {left:.0f} s"
        return [("engine that dies at once", 'every 10 s, "succeeded"', told, len(one.exits) == 6 and left > 200)]

    def reused(self) -> list[Row]:
        """Let a row name a pid that somebody else has."""
        with self.mlxq("fast") as mlxq:
            mlxq.work_with_fakes()
            mlxq.up()
            mlxq.ended(mlxq.put("stop", service="fast"))
            spared = recovery.forge_reused_pid(mlxq)
        return [("reused pid", "kills the stranger", "never signalled" if spared else "SIGNALLED", spared)]

    def gateway(self) -> list[Row]:
        """Kill a tier under load, then the gateway, then freeze it; then let it rest."""
        with self.mlxq("standard", "fast", "longctx") as mlxq:
            mlxq.work()
            recovery.up_with_gateway(mlxq, self.port)
            load, at = recovery.kill_under_load(mlxq)
            gate = recovery.hurt(mlxq, signal.SIGKILL, "gateway")
            hung = recovery.hurt(mlxq, signal.SIGSTOP, "gateway")
            cpu, memory = recovery.idle(mlxq, 60)
            there = [one for one in service.listing(mlxq.db) if one.state == State.READY]
        flying, later = load.lost(at)
        lost = f"{later} of {len(load.answers)}, beside {flying} in flight"
        again = f"{gate.ready_s:.1f} s = its own start + {gate.extra_s:.2f} s"
        rest = f"{cpu:.2f} CPU s/min, {memory:.0f} MiB (2 s look, {len(there)} services)"
        return [
            ("requests lost through the gateway meanwhile", "all, 500", lost, later == 0),
            ("kill -9 of the gateway: serving again", "polls 120 s", again, gate.extra_s <= 1),
            ("SIGSTOP of the gateway: serving again", "never", f"{hung.ready_s:.1f} s", hung.ready_s <= 10),
            (
                "worker idle",
                "0.12 CPU s/min, 60 MiB (30 s poll)",
                rest,
                cpu <= 0.35 and memory <= 60 and len(there) == 4,
            ),
        ]


def main() -> None:
    """Run the parts that were asked for, and print the table."""
    parts = ("engine", "waiting", "worker", "wedged", "dying", "reused", "gateway")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=parts, action="append", help="this part alone; may be repeated")
    parser.add_argument("--port", type=int, default=9291, help="of the gateway")
    wanted = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="mlxq-recovery-") as folder:
        bench = Bench(Path(folder), wanted.port)
        for name in wanted.only or parts:
            part: Callable[[], list[Row]] = getattr(bench, name)
            rows += part()
    table(
        ["", "mlx-stack 0.3.8 (quoted)", "mlxq", ""],
        [(what, peer, ours, "reached" if reached else "MISSED") for what, peer, ours, reached in rows],
    )
    sys.exit(not all(reached for *_, reached in rows))


if __name__ == "__main__":
    main()
