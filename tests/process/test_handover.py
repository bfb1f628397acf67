"""What the next worker makes of a gateway whose replacement was cut short. The gateways are small real processes."""

import contextlib
import dataclasses
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from support import scene
from support.here import runner
from support.mlxq_home import TIER
from support.suspend import suspend

from state import event, ledger, secrets, service, stack
from state.db import Database, open_database
from state.paths import Home
from state.service import ServiceEvent, State
from tasks import kinds
from tasks.plan.environment import marker
from tasks.queue import Context
from tasks.supervision import exits, handover, lifecycle, services, spec
from tasks.supervision import watchdog as watch
from tasks.supervision.spec import LaunchSpec
from tasks.supervision.watchdog import Watchdog
from tasks.system import process
from tasks.system.process import Identity

UP = "print('up', flush=True); import time; time.sleep(600)"
ON_TRIAL = ""
SERVING = """
import os
from state.paths import get_home
from tasks.supervision import socket_handover
door = socket_handover.HandoverServer(get_home(), int(os.environ["MLXQ_GENERATION"]), lambda: None)
door.take_place([])
door.start()
"""
PROVING = """
import http.server, os, sys, time
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        print("asked", flush=True)
        time.sleep(600)
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["MLXQ_TRIAL_PORT"])), Answers).serve_forever()
"""
"""A gateway on trial that is ready, and gives no answer."""
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
    service.set_desired(db, "gateway", "up")
    service.request_start(db, "gateway", ["gateway"], "old", 4000)
    found = start(ON_TRIAL, 1)
    shim = process.shim(found)
    assert shim
    service.apply(db, "gateway", ServiceEvent.SPAWNED, identity=process.encode(found), shim=process.encode(shim))
    service.apply(db, "gateway", ServiceEvent.BECAME_READY, ready_at=db.now())
    assert service.begin_handover(db, "gateway", ["gateway", "changed"], "new", 4444) == 2
    return found


def test_a_start_that_is_foreseen_changes_nothing_yet(db: Database, before: Identity) -> None:
    one = service.get(db, "gateway")

    assert (one.state, one.spec_hash, one.port, lifecycle.identity(one)) == (State.READY, "old", 4000, before)


def test_a_successor_on_trial_is_ended(home: Home, db: Database, start: Start, before: Identity) -> None:
    trial = start(ON_TRIAL, 2)

    settled = exits.reconcile_row(db, home, service.get(db, "gateway"))

    assert not process.alive(trial)
    assert (settled.state, settled.spec_hash, settled.successor) == (State.READY, "old", None)
    assert lifecycle.running(settled) == before


def test_a_successor_that_serves_is_the_gateway(home: Home, db: Database, start: Start, before: Identity) -> None:
    successor = start(SERVING, 2)

    settled = exits.reconcile_row(db, home, service.get(db, "gateway"))

    assert lifecycle.running(settled) == successor
    assert (settled.state, settled.spec_hash, settled.port) == (State.READY, "new", 4444)
    assert settled.argv == ["gateway", "changed"]
    assert lifecycle.leaving(settled) == [before]


def test_the_end_of_the_one_that_was_replaced_is_no_death(
    home: Home, db: Database, start: Start, before: Identity
) -> None:
    """Also when nobody wrote down before that its successor serves."""
    successor = start(SERVING, 2)
    process.stop(before, 0)

    assert exits.record_exit(db, home, "gateway", before) is None
    assert exits.record_exit(db, home, "gateway", before) is None

    one = service.get(db, "gateway")
    assert (lifecycle.running(one), one.exits, one.restarts) == (successor, [], 0)
    assert "exited" not in [each.name for each in event.of_service(db, "gateway")]


def test_the_end_of_one_whose_successor_does_not_serve_is_a_death(
    home: Home, db: Database, start: Start, before: Identity
) -> None:
    start(ON_TRIAL, 2)
    process.stop(before, 0)

    assert exits.record_exit(db, home, "gateway", before)
    assert service.get(db, "gateway").state == State.BACKOFF


def test_one_that_was_replaced_may_end_in_its_own_time_until_none_is_wanted(
    home: Home, db: Database, start: Start, before: Identity
) -> None:
    start(SERVING, 2)
    replaced = exits.reconcile_row(db, home, service.get(db, "gateway"))

    lifecycle.stop(db, home, replaced, 1)
    assert process.alive(before)
    service.set_desired(db, "gateway", "down")
    lifecycle.stop(db, home, service.get(db, "gateway"), 1)
    assert not process.alive(before)


def test_one_that_does_not_leave_in_its_time_is_ended(
    home: Home, db: Database, start: Start, before: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LEAVE_S", 0)
    successor = start(SERVING, 2)
    replaced = exits.reconcile_row(db, home, service.get(db, "gateway"))
    watchdog = Watchdog()

    watchdog.kill_overdue([replaced])
    assert process.alive(before)
    watchdog.kill_overdue([replaced])

    assert process.wait(before, 30)
    assert process.alive(successor)


def test_a_successor_whose_worker_was_killed_keeps_its_cause(
    home: Home, db: Database, start: Start, before: Identity
) -> None:
    """The next worker finds the shim, which keeps the exit code, and the boot of a service that died."""
    successor = start(SERVING, 2)
    assert exits.reconcile_row(db, home, service.get(db, "gateway")).shim

    process.send(successor, signal.SIGKILL)
    assert process.wait(successor, 30)
    exits.record_exit(db, home, "gateway", successor)

    one = service.get(db, "gateway")
    assert (one.state, one.exit_code, one.cause_code) == (State.BACKOFF, 137, "killed")
    assert one.shim
    assert lifecycle.this_boot(one)
    assert not lifecycle.this_boot(dataclasses.replace(one, shim=f"before/{one.shim.partition('/')[2]}"))


def test_a_restart_that_was_cut_short_after_the_take_over_is_not_done_again(
    home: Home, db: Database, start: Start, before: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.gateway_config.write_text("tiers: {}")
    plan = spec.launch_spec(db, home, "gateway")
    service.update(
        db, "gateway", successor={"argv": plan.argv, "spec_hash": plan.spec_hash, "port": plan.port, "restarted": 2}
    )
    ledger.enqueue(db, kinds.new("restart", {"service": "gateway"}))
    cut_short = ledger.claim(db, "ops", {"restart"}, "the worker that was killed")
    assert cut_short
    ledger.rescue(db, [cut_short])
    successor = start(SERVING, 2)

    done = runner(db, home, {"restart": services.restart}, monkeypatch)("restart", service="gateway")

    assert done.result == {"service": "gateway", "state": "ready", "pid": successor.pid}
    assert service.get(db, "gateway").generation == 2


def freeze(home: Home, one: Identity) -> None:
    """Do as whoever stops a process, and as the watchdog does then."""
    suspend(one)
    with contextlib.closing(open_database(home)) as watchdogs:
        assert service.apply(watchdogs, "gateway", ServiceEvent.DEGRADED)


def kill(_: Home, one: Identity) -> None:
    process.send(one, signal.SIGKILL)


AFTER = {kill: (State.BACKOFF, "killed"), freeze: (State.STOPPED, None)}
"""What the row says of one that was harmed so."""


@pytest.mark.parametrize("harm", AFTER)
def test_one_that_dies_or_freezes_while_its_successor_is_proven_is_started_at_once(
    home: Home,
    db: Database,
    before: Identity,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Home, Identity], None],
) -> None:
    """An answer may take minutes, and nobody serves meanwhile: so the trial ends, and the row asks for a start."""
    service.update(db, "gateway", successor=None)
    secrets.ensure(home.secrets)
    stack.replace(db, [dataclasses.replace(TIER, port=1)])
    service.ensure(db, "fast", "engine", 1)
    scene.ready(db, "fast")

    def environment(generation: int) -> dict[str, str]:
        return marker(str(home.root), "gateway", generation)

    plan = LaunchSpec([sys.executable, "-c", PROVING], environment, "newer", 4000, 1)

    def replace(context: Context, **_: str) -> bool:
        handover.replace(context, service.get(context.db, "gateway"), plan)
        return not process.alive(before)

    def die() -> None:
        while "asked" not in exits.log_tail(home.log("gateway")):
            assert not over.wait(0.01)
        harm(home, before)

    over = threading.Event()
    killer = threading.Thread(target=die)
    killer.start()
    done = runner(db, home, {"restart": replace}, monkeypatch)("restart", service="gateway")
    over.set()
    killer.join()

    assert done.result is True, done.error
    one = service.get(db, "gateway")
    assert (one.state, one.cause_code) == AFTER[harm]
    assert (one.desired, one.successor) == ("up", None)
    assert process.find_orphans(str(home.root), "gateway") == {}
