"""The keeper: whose jobs are lost, which threads are stuck, and how a worker is judged."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from state import ledger
from state.db import Database
from state.errors import DeadlinePassed
from state.job import Claim, Fenced, JobState, NewJob, get
from state.paths import Home
from state.worker import Worker
from tasks import worker_status
from tasks.heartbeat import OVERRUN_S, Heartbeat
from tasks.runtime import runtime
from tasks.system import ballast, process
from tasks.worker_status import HUNG_S, WorkerState, classify

DEAD = "no-such-boot/1/1"


@pytest.fixture
def keeper(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Heartbeat]:
    """Give the keeper of a worker that is this process."""
    me = process.identify(os.getpid())
    assert me
    monkeypatch.setattr(runtime, "home", home)
    monkeypatch.setattr(runtime, "_local", threading.local())
    monkeypatch.setattr(runtime, "owner", process.encode(me))
    monkeypatch.setattr(ballast, "BALLAST_BYTES", 4096)
    yield Heartbeat(threading.Event())
    runtime.in_hand.clear()


def running(db: Database, owner: str) -> Claim:
    ledger.enqueue(db, NewJob("a"))
    claim = ledger.claim(db, "ops", {"a"}, owner)
    assert claim
    return claim


def test_a_dead_owners_job_is_rescued_at_the_first_look(keeper: Heartbeat, db: Database) -> None:
    claim = running(db, DEAD)
    keeper.beat()
    assert get(db, claim.id).state is JobState.QUEUED


def test_a_living_owners_job_is_left_alone_whoever_it_is(keeper: Heartbeat, db: Database) -> None:
    """Deleting run/worker.lock lets a second worker start; it must not take what the first one does."""
    parent = process.identify(os.getppid())
    assert parent
    claim = running(db, process.encode(parent))
    keeper.beat()
    keeper.beat()
    assert get(db, claim.id).state is JobState.RUNNING


def test_a_claim_of_our_own_that_no_thread_has_is_rescued_at_the_second_look(keeper: Heartbeat, db: Database) -> None:
    """At the first it may be on its way from the ledger to its thread."""
    claim = running(db, runtime.owner)
    keeper.beat()
    assert get(db, claim.id).state is JobState.RUNNING
    keeper.beat()
    assert get(db, claim.id).state is JobState.QUEUED


def test_a_job_in_hand_is_nobodys_stray(keeper: Heartbeat, db: Database) -> None:
    claim = running(db, runtime.owner)
    with runtime.having(claim, 60):
        keeper.beat()
        keeper.beat()
    assert get(db, claim.id).state is JobState.RUNNING


def test_a_job_far_over_its_limit_fails_and_ends_the_worker(keeper: Heartbeat, db: Database) -> None:
    """A thread cannot be killed, so its worker is."""
    claim = running(db, runtime.owner)
    with runtime.having(claim, -OVERRUN_S - 1):
        keeper.beat()
    assert (get(db, claim.id).error_code, type(keeper.problem)) == ("deadline", DeadlinePassed)


def test_what_the_lanes_did_not_give_back_is_taken_from_them(keeper: Heartbeat, db: Database) -> None:
    claim = running(db, runtime.owner)
    with runtime.having(claim, 60):
        keeper.hand_back()
    assert (get(db, claim.id).state, get(db, claim.id).rescues) == (JobState.QUEUED, 0)
    with pytest.raises(Fenced):
        ledger.succeed(db, claim, None)


def test_the_reserve_is_laid_again_when_there_is_room(keeper: Heartbeat, home: Home) -> None:
    keeper.beat()
    home.ballast.unlink()
    keeper.beat()
    assert home.ballast.stat().st_size == 4096


def test_a_home_that_cannot_be_reached_costs_no_more_than_the_reserve(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    ballast.lay_ballast(Home(tmp_path / "loop"))


def test_a_worker_whose_keeper_died_ends_so_that_a_fresh_one_is_started(home: Home) -> None:
    """Else it would look hung for ever, hold the lock, and rescue nothing."""
    code = (
        "from state.paths import get_home; from tasks import worker; from tasks.heartbeat import Heartbeat;"
        "worker.HEALTH_S = 0.1; Heartbeat.beat = lambda self: 1 / 0; worker.run(get_home())"
    )
    env = os.environ | {"MLXQ_HOME": str(home.root)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=60
    )

    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].endswith("The worker's heartbeat stopped because of a fault.")


def test_a_hung_worker_is_told_apart_from_a_dead_one() -> None:
    row = Worker("boot/1/1", 1, "0.1.0", 0.0, 0.0, beat_clock=100.0)
    assert classify(None, alive=False, clock=0.0) is WorkerState.NONE
    assert classify(row, alive=False, clock=101.0) is WorkerState.DEAD
    assert classify(row, alive=True, clock=101.0) is WorkerState.ALIVE
    assert classify(row, alive=True, clock=101.0 + HUNG_S) is WorkerState.HUNG


def test_an_owner_that_names_no_process_is_dead() -> None:
    assert not worker_status.is_alive("")
    assert not worker_status.is_alive(DEAD)
