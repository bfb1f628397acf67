"""A fleet is upgraded by one command while apps ask it: one machine after another, and none after one that fails.

Three real installations in network namespaces, two of them fronts; the engine is scripted, and the libraries are lent
(tests/support/release.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import networks, release
from support.fleet import proxy_environment
from support.front_load import Entrance, Load, lost
from support.mlxq_home import until
from support.networks import network
from support.package_index import PackageIndex, running
from support.release import User

from tasks.front import proxy as front_proxy
from tasks.upgrade.record import Phase

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), networks.needed]
OLD, NEW, WORSE = "0.1.0", "0.2.0", "0.3.0"
NODES, FRONTS = ("a", "b", "c"), ("a", "b")
FAILS = """from __future__ import annotations

import os
import sys

if os.path.exists(os.path.join(os.environ.get("MLXQ_HOME", ""), "fails")):
    sys.exit("it does not serve here")
"""
"""Of a gateway: it ends at once in a home that has a file `fails`."""


def offer(index: PackageIndex, folder: Path) -> None:
    """Add the versions to an index."""
    built = release.build(folder / "dist")
    edits = dict(release.PASSES_OVER_FIRST_LIGHT)
    worse = edits | {
        "tasks/gateway/__main__.py": lambda text: text.replace("from __future__ import annotations\n", FAILS, 1)
    }
    index.add_hashed(
        release.release(built, folder, OLD, edits),
        release.release(built, folder, NEW, edits, newer_schema=True),
        release.release(built, folder, WORSE, worse, newer_schema=True),
        release.lent(folder),
    )


class Fleet:
    """Three machines, of which `a` upgrades the others."""

    def __init__(self, machines: dict[str, User], addresses: dict[str, str], proxy: Path) -> None:
        self.machines, self.addresses = machines, addresses
        with ThreadPoolExecutor(len(machines)) as pool:
            list(pool.map(self._set_up, machines))
        for front in FRONTS:
            for name in NODES:
                if name != front:
                    token = json.loads(machines[front].run("node", "invite", "--yes", "--json").stdout)["token"]
                    machines[name].run("node", "join", "-", "--yes", text=token)
        self.key = machines["a"].run("keys", "create", "app").stdout.split()[0]
        machines["b"].run("keys", "create", "app", "--key", "-", text=self.key)
        for user in (machines[name] for name in FRONTS):
            user.home.front.mkdir(exist_ok=True)
            front_proxy.folder(user.home).symlink_to(proxy)
            for setting, value in (("front", "true"), ("front-host", "0.0.0.0")):
                user.run("config", "set", setting, value)
            user.run("up", "front")

    def _set_up(self, name: str) -> None:
        user = self.machines[name]
        user.install(OLD, "--compile-bytecode")
        for setting, value in (("node-name", name), ("node-addresses", self.addresses[name])):
            user.run("config", "set", setting, value)
        user.set_up()
        (user.home.root / "proven").touch()

    def load(self) -> Load:
        """Return two apps, each of which asks one front and no other."""
        entrances = [Entrance.of(f"https://{self.addresses[name]}:4100", self.machines[name].home) for name in FRONTS]
        return Load(entrances, self.key, 2)

    def fronts(self) -> dict[str, int]:
        """Return the process of each front."""
        reports = {name: json.loads(self.machines[name].run("status", "--json").stdout) for name in FRONTS}
        return {
            name: row["pid"] for name, report in reports.items() for row in report["services"] if row["name"] == "front"
        }

    def versions(self) -> dict[str, str]:
        return {name: user.version() for name, user in self.machines.items()}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path, builtin_model: Path) -> Iterator[Fleet]:
    proxy = proxy_environment(shared_folder)
    with network(*NODES) as net:
        index = PackageIndex(host=net.own_address)
        offer(index, tmp_path_factory.mktemp("wheels"))
        with running(index):
            folder = tmp_path_factory.mktemp("machines")
            machines = {
                name: User(folder / name, index, builtin_model.parent, prefix=net.inside(name)) for name in NODES
            }
            for user in machines.values():
                user.folder.mkdir()
            try:
                yield Fleet(machines, {name: net.address(name) for name in NODES}, proxy)
            finally:
                for user in machines.values():
                    user.close()


def upgraded_jobs(user: User) -> list[tuple[str, str]]:
    """Return the node and the state of each job that upgraded a node, in the order in which they ended."""
    jobs = [job for job in user.jobs("upgrade_node") if job["state"] != "cancelled"]
    return [(job["args"]["node"], job["state"]) for job in sorted(jobs, key=lambda job: job["finished_at"])]


def test_a_fleet_is_upgraded_under_load_and_no_request_is_lost(fleet: Fleet) -> None:
    fronts = fleet.fronts()
    with fleet.load() as load:
        load.await_more(20)
        fleet.machines["a"].run("fleet", "upgrade", "--yes", "--to", NEW)
        load.await_more(20)
    assert fleet.versions() == dict.fromkeys(NODES, NEW)
    assert {name: user.worker() for name, user in fleet.machines.items()} == dict.fromkeys(NODES, NEW)
    assert upgraded_jobs(fleet.machines["a"]) == [("b", "succeeded"), ("c", "succeeded")], "this one last"
    assert lost(load.answers, 0) == []
    assert fleet.fronts() == fronts, "nothing of them changed"


def test_a_machine_on_which_it_fails_is_taken_back_and_the_rest_is_not_touched(fleet: Fleet) -> None:
    (fleet.machines["b"].home.root / "fails").touch()
    with fleet.load() as load:
        load.await_more(20)
        ran = fleet.machines["a"].run("fleet", "upgrade", "--yes", "--to", WORSE, check=False)
        load.await_more(20)
    assert ran.returncode != 0
    assert f"b: mlxq {WORSE} was taken back" in ran.stderr
    until(lambda: fleet.machines["b"].settled() == Phase.TAKEN_BACK)
    assert fleet.versions() == dict.fromkeys(NODES, NEW)
    assert {name: user.worker() for name, user in fleet.machines.items()} == dict.fromkeys(NODES, NEW)
    assert not [
        job
        for name in ("a", "c")
        for job in fleet.machines[name].jobs("upgrade")
        if WORSE in str(job["args"]) and job["state"] != "cancelled"
    ]
    assert lost(load.answers, 0) == []
    assert {answer.node for answer in load.answers} == set(NODES), "it is offered again"
