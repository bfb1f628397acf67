"""A fleet of three nodes behind two fronts: what a user notices of a death, a cut cable, a partition, a newcomer.

    python benchmarks/fleet.py                    all rows, five minutes
    python benchmarks/fleet.py --only cable,redis  some rows

Each node is a real mlxq (worker, gateway over TLS, engine) in a network namespace of its own; two of them are fronts,
which share a real redis-server in another namespace. The engine is tests/support/scripted_engine.py: it works at SLOTS
requests side by side, for as long as they order, so that what is measured is the fleet and not this machine's model.
Needs root, iproute2 and redis-server.
"""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
from harness import table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.fleet_network import FleetNetwork, fleet_network
from support.front_load import Load, ask, converse, lost, median_s, ordered
from support.mlxq_home import until

SLOTS = 4
CLIENTS, WORK = 5, {"wait_s": 0.4}
"""Twelve requests/s: what one front and its clients do on half a core beside three nodes."""


@dataclass(frozen=True)
class Row:
    """What was reached of one line of the table."""

    what: str
    bound: str
    reached: str
    met: bool


def throughput(fleet: FleetNetwork) -> Iterator[Row]:
    """Compare one node with two, each busy without a gap."""
    rates: list[float] = []
    for nodes in (("a",), ("a", "b")):
        with fleet.only(*nodes), Load([fleet.entrance("a")], fleet.key, 4 * SLOTS, {"wait_s": 1.0}) as load:
            load.await_more(3 * SLOTS)
            began, before = time.monotonic(), len(load.answers)
            load.run(20)
            took = time.monotonic() - began
            good = [answer for answer in load.answers[before:] if answer.status == httpx.codes.OK]
            rates.append(len(good) / took)
    share = rates[1] / rates[0]
    yield Row(
        "two nodes against one, requests/s",
        ">= 1.9 x",
        f"{rates[0]:.2f} -> {rates[1]:.2f} = {share:.2f} x",
        share >= 1.9,
    )


def affinity(fleet: FleetNetwork) -> Iterator[Row]:
    """Ask conversations of several turns, at two fronts in turn, while others ask too."""
    conversations, turns = 24, 6
    entrances = [fleet.entrance("a"), fleet.entrance("b")]
    with Load([fleet.entrance("a")], fleet.key, 4, {"wait_s": 0.2}) as load, ThreadPoolExecutor(8) as pool:
        nodes = list(pool.map(lambda _: converse(entrances, fleet.key, turns), range(conversations)))
    kept = sum(node == first for first, *rest in nodes for node in rest)
    share = kept / (conversations * (turns - 1))
    spread = ", ".join(f"{name}: {[first for first, *_ in nodes].count(name)}" for name in fleet.machines)
    yield Row(
        "a conversation stays on its node (both fronts, under load)",
        ">= 95 %",
        f"{share:.1%} of {conversations * (turns - 1)} turns; begun on {spread}; {len(lost(load.answers, 0))} lost",
        share >= 0.95,
    )


def killed(fleet: FleetNetwork) -> Iterator[Row]:
    """Kill a node's processes under load."""
    with Load([fleet.entrance("a")], fleet.key, CLIENTS, WORK) as load:
        load.await_more(60)
        before = load.answers[-50:]
        usual, worst = median_s(before), max(answer.took_s for answer in before)
        at = fleet.kill("c")
        load.run(5)
    flying = [answer for answer in load.answers if answer.began < at < answer.ended]
    after = [answer for answer in load.answers if answer.began >= at]
    gone = lost(load.answers, at)
    late = sorted((answer.took_s - usual for answer in after), reverse=True)
    yield Row(
        "a node killed under load: lost beside those in flight",
        "0",
        f"{len(gone)} of {len(after)} (in flight: {sum(answer.status != httpx.codes.OK for answer in flying)} of"
        f" {len(flying)})",
        not gone,
    )
    slow = sum(seconds > 0.15 for seconds in late)
    yield Row(
        "... added to others' latency at most",
        "<= 150 ms once",
        f"{1000 * late[0]:.0f}, {1000 * late[1]:.0f}, {1000 * late[2]:.0f} ms; {slow} above"
        f" (usual {1000 * usual:.0f} ms, {1000 * (worst - usual):.0f} ms more at most before)",
        slow == 0,
    )
    fleet.revive("c")


def cable(fleet: FleetNetwork) -> Iterator[Row]:
    """Drop all packets of a node under load."""
    with Load([fleet.entrance("a")], fleet.key, CLIENTS, WORK) as load:
        load.await_more(60)
        usual, at = median_s(load.answers[-60:]), time.monotonic()
        fleet.network.cut("c")
        load.run(12)
    fleet.network.plug("c")
    touched = [answer for answer in load.answers if answer.ended > at]
    gone = [answer for answer in touched if answer.status != httpx.codes.OK]
    late = [answer for answer in touched if answer.took_s - usual > 0.3]
    worst = max(answer.took_s - usual for answer in touched)
    last = max((answer.ended - at for answer in late), default=0.0)
    again = [answer for answer in late if answer.began > at + 2.0]
    yield Row(
        "a node's cable cut: added latency",
        "<= 2 s once, then 0",
        f"{worst:.2f} s, {len(late)} requests late, the last at {last:.1f} s, {len(again)} late after 2 s,"
        f" {len(gone)} lost",
        worst <= 2.0 and not again and not gone,
    )
    fleet.await_serving("c")


def learns(fleet: FleetNetwork) -> Iterator[Row]:
    """Kill a node, have one front notice it, and ask the other one, which has asked nothing meanwhile."""
    with fleet.entrance("a").client(fleet.key) as one, fleet.entrance("b").client(fleet.key) as two:
        fleet.kill("c")
        until(lambda: ask(one, ordered()).retries > 0, 10)
        noticed = time.monotonic()
        time.sleep(1.5)  # the bound itself
        answers = [ask(two, ordered()) for _ in range(12)]
    tried = sum(answer.retries > 0 for answer in answers)
    span = answers[-1].ended - noticed
    yield Row(
        "second front learns of a dead node",
        "<= 1.5 s",
        f"{tried} of 12 requests asked it, 1.5 to {span:.1f} s after the first front noticed",
        not tried and all(answer.status == httpx.codes.OK for answer in answers),
    )
    fleet.revive("c")


def redis(fleet: FleetNetwork) -> Iterator[Row]:
    """Kill Redis under load at two fronts, and start it again."""
    entrances = [fleet.entrance("a"), fleet.entrance("b")]
    for name, down, up in (
        ("Redis killed and back: the slowest request", fleet.redis.kill, fleet.redis.start),
        ("Redis' cable cut and back: the slowest request", fleet.cut_redis, fleet.plug_redis),
    ):
        with Load(entrances, fleet.key, CLIENTS, WORK) as load:
            load.await_more(40)
            at = time.monotonic()
            down()
            load.run(5)
            up()
            load.run(5)
        touched = [answer for answer in load.answers if answer.ended > at]
        worst = max(answer.took_s for answer in touched)
        gone = [answer for answer in touched if answer.status != httpx.codes.OK]
        yield Row(
            name,
            "< 1 s",
            f"{worst:.2f} s of {len(touched)}, {len(gone)} lost",
            worst < 1.0 and not gone,
        )


def join(fleet: FleetNetwork) -> Iterator[Row]:
    """Have a machine join while its own users and those of the front ask."""
    fleet.leave("c")
    pid = fleet.machines["a"].mlxq.identity("front").pid
    text = fleet.token("a")
    with fleet.local_load("c") as local, Load([fleet.entrance("a")], fleet.key, 3) as load:
        load.await_more(10)
        began = time.monotonic()
        fleet.machines["c"].run("node", "join", "-", "--yes", text=text)
        until(lambda: any(answer.node == "c" for answer in load.answers[-40:]), 30)
        took = time.monotonic() - began
        load.await_more(10)
    gone, refused = lost(load.answers, 0), [status for status in local.statuses() if status != httpx.codes.OK]
    same = fleet.machines["a"].mlxq.identity("front").pid == pid
    yield Row(
        "join: token -> node serves in the fleet",
        "<= 10 s, no restart, none refused",
        f"{took:.1f} s, front {'not restarted' if same else 'RESTARTED'}, {len(gone)} of {len(load.answers)} refused"
        f" at the front, {len(refused)} of {len(local.statuses())} at the node",
        took <= 10 and same and not gone and not refused,
    )
    fleet.join("c", "b")


def attacker(fleet: FleetNetwork) -> Iterator[Row]:
    """Ask every route of every open port of every node, without a key and with a wrong one."""
    open_ports = {name: sorted(fleet.network.listeners(name)) for name in fleet.machines}
    reached, asked = fleet.attack(open_ports)
    ports = "; ".join(f"{name}: {', '.join(map(str, ports))}" for name, ports in open_ports.items())
    yield Row(
        "an attacker without the token: routes, keys, jobs reached",
        "none",
        f"{len(reached)} of {asked} requests ({ports}) {reached[:3] or ''}",
        not reached,
    )
    told, connections = fleet.impersonate("c")
    yield Row(
        "an impostor at a node's address is told",
        "nothing",
        f"{len(told)} requests in {connections} connections of the fronts {told[:1] or ''}",
        not told and connections > 0,
    )
    fleet.await_serving("c")


ROWS: Mapping[str, Callable[[FleetNetwork], Iterator[Row]]] = {
    "join": join,
    "throughput": throughput,
    "affinity": affinity,
    "killed": killed,
    "cable": cable,
    "learns": learns,
    "redis": redis,
    "attacker": attacker,
}


def main() -> None:
    """Print what was reached; exit with 1 where a bound was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="ROW,…", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--proxy", type=Path, help="folder in which LiteLLM's proxy is, or is installed and kept")
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # what it started ends with it
    names = wanted.only.split(",") if wanted.only else list(ROWS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        began = time.monotonic()
        with fleet_network(Path(name), proxy=wanted.proxy or Path(name), slots=SLOTS) as fleet:
            print(f"three nodes, two fronts: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
            for row in (row for name in names for row in ROWS[name](fleet)):
                rows.append(row)
                print(f"{'met' if row.met else 'MISSED'}: {row.what}: {row.reached}", file=sys.stderr, flush=True)
    table(
        ["", "must be", "is", ""],
        [[row.what, row.bound, row.reached, "met" if row.met else "**missed**"] for row in rows],
    )
    sys.exit(not all(row.met for row in rows))


if __name__ == "__main__":
    main()
