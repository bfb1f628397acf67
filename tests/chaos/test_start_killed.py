"""The worker is killed at every step of a start and in the midst of restarts: one engine in the end, none forgotten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.mlxq_home import DYING, LIMIT_S, Mlxq, until

from state.service import Service, State
from tasks.system import ports, process

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
EACH = 2 if os.environ.get("CRASH_POINTS") == "1" else 1
"""How many of each two points are taken."""
STARTING = {
    "the intent is written": "tasks.supervision.lifecycle:_free_port",
    "the process is started": "tasks.supervision.lifecycle:_record",
    "it loads": "tasks.supervision.lifecycle:ready",
    "it is ready": "tasks.supervision.repairs:follow",
}
ENDING = {
    "the old one drains": "tasks.system.process:wait",
    "the old one is gone": "tasks.supervision.services:_await_turn",
}


@pytest.mark.parametrize("first", [1, 1 + 2 // EACH])
def test_a_start_ends_with_one_engine_wherever_it_is_cut(tmp_path: Path, empty_database: Path, first: int) -> None:
    """Before each statement that writes and each line that starts a process; some are adopted, some started again.

    Two halves, so that two processes can do it side by side: every fourth point each, every second with CRASH_POINTS=1.
    """
    every = 4 // EACH
    argv = [sys.executable, "-m", "support.spawnpoints", empty_database, tmp_path, str(first), str(every)]
    told = subprocess.run(argv, cwd=TESTS, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout[-3000:] + told.stderr
    found = json.loads(told.stdout.splitlines()[-1])
    print(found)

    right = {"doing": "ready", "jobs": ["succeeded"], "engines": 1, "the recorded one": True, "on its port": True}
    assert found["outcomes"] == [right]
    assert found["points"] > 15 * EACH
    assert set(found["ways"]) == {"generation 1", "adopted", "generation 2"}


def await_killed(mlxq: Mlxq) -> None:
    """Wait until the worker met its end."""
    assert mlxq.worker
    assert mlxq.worker.wait(LIMIT_S) == -9


def assert_one_engine(mlxq: Mlxq) -> Service:
    """Hold what is against what the row says."""
    one = mlxq.await_doing(State.READY)
    holder = ports.holder(one.port)
    assert holder
    assert list(process.find_orphans(str(mlxq.home.root), "fast")) == [holder.identity]
    assert one.identity == process.encode(holder.identity)
    until(lambda: len(process.find_shims(mlxq.home.run, "fast")) <= 1)
    return one


@pytest.mark.parametrize("moment", ["the process is started", "it loads"])
def test_a_real_engine_is_started_once_when_the_worker_dies_as(mlxq: Mlxq, moment: str) -> None:
    """At the other two moments there is no engine yet, or one that is like any other that is ready."""
    mlxq.work_dying_at(STARTING[moment])
    start = mlxq.put("start", service="fast")
    await_killed(mlxq)
    mlxq.work()

    assert mlxq.ended(start).state == "succeeded"
    assert assert_one_engine(mlxq).generation == 1


@pytest.mark.parametrize("moment", ENDING | STARTING)
def test_a_restart_is_finished_by_the_next_worker_when_its_own_dies_as(mlxq: Mlxq, moment: str) -> None:
    """A new engine that is on its way already is kept: the long load does not begin again."""
    mlxq.work_with_fakes()
    before = mlxq.up()
    mlxq.kill_worker()
    mlxq.work_with_fakes(prelude=DYING, DIES_AT=(ENDING | STARTING)[moment])
    restart = mlxq.put("restart", service="fast")
    await_killed(mlxq)
    mlxq.work_with_fakes()

    assert mlxq.ended(restart).state == "succeeded"
    one = assert_one_engine(mlxq)
    assert one.identity != before.identity
    assert one.generation == before.generation + (2 if moment == "the intent is written" else 1)
    assert one.restarts == 0
