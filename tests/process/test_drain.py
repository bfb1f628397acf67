"""An engine that is drained: told once, left alone until its last answer, and down without a fault."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from state import event, service
from state.db import Database
from state.paths import Home
from state.service import Service, ServiceEvent, State
from tasks.supervision import exits, lifecycle
from tasks.system import process
from tasks.system.process import Identity

ENGINE = """
import signal, sys, threading
told = threading.Event()
if {code} is not None: signal.signal(signal.SIGUSR2, lambda *_: told.set())
print("up", file=sys.stderr, flush=True)
while not told.wait(0.01): pass
sys.exit({code})
"""
"""Ends as soon as it is told to drain, with code None by the signal itself; an adapter's program does so with code 0
after its last answer."""
Serve = Callable[[int | None], Service]


@pytest.fixture
def serve(home: Home, db: Database) -> Iterator[Serve]:
    """Give what starts a process that serves as tier fast, and ends with a code when it is told to drain."""

    def start(code: int | None) -> Service:
        argv = [sys.executable, "-c", ENGINE.format(code=code)]
        service.ensure(db, "fast", "engine", 1)
        service.set_desired(db, "fast", "up")
        service.request_start(db, "fast", argv, "f", 1)
        spawned = process.spawn(argv, {}, home.log("fast"), home.run, "fast")
        while "up" not in home.log("fast").read_text():
            assert process.alive(spawned.engine)
        marks = {"identity": process.encode(spawned.engine), "shim": process.encode(spawned.shim)}
        service.apply(db, "fast", ServiceEvent.SPAWNED, **marks)
        service.apply(db, "fast", ServiceEvent.BECAME_READY)
        return service.get(db, "fast")

    yield start
    if found := lifecycle.running(service.get(db, "fast")):
        process.stop(found, 1)


@pytest.mark.parametrize("code", [0, None])
def test_an_engine_that_ends_when_drained_is_stopped_and_not_dead(code: int | None, serve: Serve, db: Database):
    serving = serve(code)
    service.set_desired(db, "fast", "down")
    found = lifecycle.drain(db, serving)
    assert found is not None
    assert service.get(db, "fast").state is State.DRAINING
    assert process.wait(found, 10)

    assert exits.record_exit(db, db.home, "fast", found) is None
    lifecycle.stop(db, db.home, service.get(db, "fast"))
    one = service.get(db, "fast")
    assert (one.state, one.restarts, one.exits, one.identity) == (State.STOPPED, 0, [], None)
    assert [each.name for each in event.of_service(db, "fast")][-3:] == ["stop_requested", "drain_started", "stopped"]


def test_an_engine_that_dies_while_it_drains_is_dead(serve: Serve, db: Database):
    found = lifecycle.drain(db, serve(9))
    assert found is not None
    assert process.wait(found, 10)

    assert exits.record_exit(db, db.home, "fast", found) is not None
    assert service.get(db, "fast").exit_code == 9


def test_a_stop_that_comes_while_the_exit_code_is_waited_for_is_no_fault(
    serve: Serve, db: Database, monkeypatch: pytest.MonkeyPatch
):
    found = lifecycle.drain(db, serve(9))
    assert found is not None
    assert process.wait(found, 10)
    read = exits._exit_code

    def late(home: Home, row: Service, dead: Identity) -> int | None:
        service.apply(db, "fast", ServiceEvent.STOPPING)
        return read(home, row, dead)

    monkeypatch.setattr(exits, "_exit_code", late)
    assert exits.record_exit(db, db.home, "fast", found) is None
    one = service.get(db, "fast")
    assert (one.state, one.restarts, one.exits) == (State.STOPPING, 0, [])


def test_a_drain_that_is_asked_again_goes_on(serve: Serve, db: Database):
    """The worker may die between the step and the signal; the next one asks anew."""
    serving = serve(0)
    service.apply(db, "fast", ServiceEvent.DRAIN_STARTED)
    found = lifecycle.drain(db, serving)
    assert found is not None
    assert process.wait(found, 10)


def test_only_an_engine_that_serves_is_drained(db: Database):
    service.ensure(db, "fast", "engine", 1)
    service.ensure(db, "gateway", "gateway", 2)
    for name in ("fast", "gateway"):
        assert lifecycle.drain(db, service.get(db, name)) is None
        assert service.get(db, name).state is State.STOPPED
