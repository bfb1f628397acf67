"""What the next worker makes of a gateway whose replacement was cut short. The gateways are small real processes."""

import sys
from collections.abc import Callable, Iterator

import pytest

from state import event, service
from state.db import Database
from state.paths import Home
from state.service import Doing, Step
from tasks import upkeep
from tasks.plan.engine import marker
from tasks.world import process
from tasks.world.process import Identity

UP = "print('up', flush=True); import time; time.sleep(600)"
ON_TRIAL = ""
SERVING = """
import os
from state.paths import home
from tasks.world import passing
passing.Door(home(), int(os.environ["MLXQ_GENERATION"]), [], lambda: None).start()
"""
Start = Callable[[str, int], Identity]


@pytest.fixture
def start(home: Home) -> Iterator[Start]:
    """Start a process that bears the marks of the gateway's start of that number, and give it once it is up."""
    begun: list[process.Spawned] = []

    def one(code: str, generation: int) -> Identity:
        marks = {**marker(str(home.root), "gateway", generation), "PYTHONPATH": ":".join(sys.path)}
        log = home.log(f"gateway-{generation}")
        begun.append(process.spawn([sys.executable, "-c", code + UP], marks, log, home.run, "gateway"))
        while "up" not in log.read_text():
            assert not process.wait(begun[-1].engine, 0.01), log.read_text()
        return begun[-1].engine

    yield one
    for each in begun:
        process.stop(each.engine, 0)


@pytest.fixture
def before(db: Database, start: Start) -> Identity:
    """Give the process of a gateway that is ready, the first start; a second one is foreseen."""
    service.ensure(db, "gateway", "gateway", 4000)
    service.want(db, "gateway", "up")
    service.intend(db, "gateway", ["gateway"], "old", 4000)
    found = start(ON_TRIAL, 1)
    service.step(db, "gateway", Step.SPAWNED, identity=process.encode(found))
    service.step(db, "gateway", Step.READIED, ready_at=db.now())
    assert service.foresee(db, "gateway", ["gateway", "changed"], "new", 4444) == 2
    return found


def test_a_start_that_is_foreseen_changes_nothing_yet(db: Database, before: Identity) -> None:
    one = service.get(db, "gateway")

    assert (one.doing, one.fingerprint, one.port, upkeep.identity(one)) == (Doing.READY, "old", 4000, before)


def test_a_successor_on_trial_is_ended(home: Home, db: Database, start: Start, before: Identity) -> None:
    trial = start(ON_TRIAL, 2)

    settled = upkeep.settle(db, home, service.get(db, "gateway"))

    assert not process.alive(trial)
    assert (settled.doing, settled.fingerprint, settled.successor) == (Doing.READY, "old", None)
    assert upkeep.running(settled) == before


def test_a_successor_that_serves_is_the_gateway(home: Home, db: Database, start: Start, before: Identity) -> None:
    successor = start(SERVING, 2)

    settled = upkeep.settle(db, home, service.get(db, "gateway"))

    assert upkeep.running(settled) == successor
    assert (settled.doing, settled.fingerprint, settled.port) == (Doing.READY, "new", 4444)
    assert settled.argv == ["gateway", "changed"]
    assert upkeep.leaving(settled) == [before]


def test_the_end_of_the_one_that_was_replaced_is_no_death(
    home: Home, db: Database, start: Start, before: Identity
) -> None:
    """Also when nobody wrote down before that its successor serves."""
    successor = start(SERVING, 2)
    process.stop(before, 0)

    assert upkeep.bury(db, home, "gateway", before) is None
    assert upkeep.bury(db, home, "gateway", before) is None

    one = service.get(db, "gateway")
    assert (upkeep.running(one), one.exits, one.restarts) == (successor, [], 0)
    assert "died" not in [each.name for each in event.of_service(db, "gateway")]


def test_the_end_of_one_whose_successor_does_not_serve_is_a_death(
    home: Home, db: Database, start: Start, before: Identity
) -> None:
    start(ON_TRIAL, 2)
    process.stop(before, 0)

    assert upkeep.bury(db, home, "gateway", before)
    assert service.get(db, "gateway").doing == Doing.BACKOFF


def test_one_that_was_replaced_may_end_in_its_own_time_until_none_is_wanted(
    home: Home, db: Database, start: Start, before: Identity
) -> None:
    start(SERVING, 2)
    replaced = upkeep.settle(db, home, service.get(db, "gateway"))

    upkeep.take_down(db, home, replaced, 1)
    assert process.alive(before)
    service.want(db, "gateway", "down")
    upkeep.take_down(db, home, service.get(db, "gateway"), 1)
    assert not process.alive(before)
