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
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psutil
from harness import table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import hybrid_model, loopback, recovery
from support.engines import KEY, Engine
from support.mlxq_home import Mlxq

from state import settings
from state.paths import Home
from tasks.engines.mlx_lm_sharded import adapter
from tasks.system import process
from tasks.weights import builtin

RANKS = 3
NETWORK = "10.231.7"
QUESTION = {
    "model": "fast",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 8,
    "temperature": 0,
}
Row = tuple[str, str, str]


def ranks(leader: int) -> list[psutil.Process]:
    """Return the ranks of an engine."""
    return [child for child in psutil.Process(leader).children() if "rank_program.py" in " ".join(child.cmdline())]


def left(processes: list[psutil.Process]) -> int:
    """Return how many of these still run."""
    return sum(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in processes)


def supervised(folder: Path, weights: Path) -> list[Row]:
    """Kill a rank of an engine that a worker supervises."""
    home = Home(folder / "home").make()
    os.environ["MLXQ_HOME"] = str(home.root)
    settings.write(home, "tier-ranks", {"fast": RANKS})
    mlxq = Mlxq(home)
    mlxq.serve(weights, "fast")
    try:
        mlxq.work()
        mlxq.up()
        before, earlier, at = ranks(mlxq.identity().pid), mlxq.one(), time.time()
        before[1].send_signal(signal.SIGKILL)
        back = recovery.back(mlxq, earlier, at)
        orphans = left(before)
        told = f"{back.ready_s:.1f} s = own start {back.own_start_s:.1f} s + {back.extra_s:.2f} s, {orphans} orphans"
        killed = ranks(mlxq.identity().pid)
        process.send(mlxq.identity(), signal.SIGKILL)
        psutil.wait_procs(killed, timeout=10)
        return [
            ("a rank killed -> serving again", "own start + 2 s, 0 orphans", told),
            ("the engine killed: ranks left", "0", str(left(killed))),
        ]
    finally:
        mlxq.close()


def run(*words: str) -> None:
    subprocess.run(words, check=True)


@contextmanager
def networks() -> Generator[list[dict[str, object]]]:
    """Make a network namespace for each rank on one bridge; yield where each rank is started."""
    names = [f"mlxq-rank{number}-{os.getpid()}" for number in range(RANKS)]
    bridge = f"mlxqb{os.getpid() % 100_000}"
    try:
        run("ip", "link", "add", bridge, "type", "bridge")
        run("ip", "link", "set", bridge, "up")
        for number, name in enumerate(names):
            here, there = f"mq{os.getpid() % 10_000}h{number}", f"mq{os.getpid() % 10_000}t{number}"
            run("ip", "netns", "add", name)
            run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
            run("ip", "link", "set", here, "master", bridge, "up")
            run("ip", "-n", name, "addr", "add", f"{NETWORK}.{number + 1}/24", "dev", there)
            run("ip", "-n", name, "link", "set", there, "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        yield [
            {"address": f"{NETWORK}.{number + 1}", "through": ["ip", "netns", "exec", name]}
            for number, name in enumerate(names)
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)
        subprocess.run(["ip", "link", "delete", bridge], check=False)


class Apart(Engine):
    """An engine whose ranks are in networks of their own."""

    places: str = "[]"

    def spawn(self) -> None:
        launch = self.launch()
        self.home.mkdir(exist_ok=True)
        argv = [*launch.argv, "--places", self.places]
        self.spawned = process.spawn(argv, launch.environment(1), self.log, self.home, self.name)


def apart(folder: Path, weights: Path) -> list[Row]:
    """Ask ranks that reach each other over a network, and kill one of them."""
    with networks() as places:
        engine = Apart(folder / "apart", weights, adapter.installation(), concurrency=1)
        engine.places = json.dumps(places)
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
            ended = time.monotonic() - at
        finally:
            engine.stop(1)
        said = answer["choices"][0]["message"]["content"]
        return [
            ("three namespaces: the built-in model's answer", "Paris", f"{said!r} in {took:.1f} s"),
            ("... a rank killed: all ended, ranks left", "0", f"after {ended:.2f} s, {left(before)} left"),
        ]


def main() -> None:
    """Print what was reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", action="store_true", help="three network namespaces as well")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = builtin.ensure(folder / "builtin")
        rows = supervised(folder, hybrid_model.make("thirds", folder / "thirds", whole, hybrid_model.WHOLE))
        rows += apart(folder, whole) if wanted.networks else []
    table(["", "must be", "is"], [[*row] for row in rows])


if __name__ == "__main__":
    main()
