"""The jobs that start and stop a tier. Small real processes stand in for its engines."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support import strangers
from support.here import Run, runner
from support.ports import free_port

from state import ledger, service, stack
from state.db import Database
from state.job import JobState
from state.paths import Home
from state.service import Service, ServiceEvent, State
from state.stack import Engine
from tasks import runtime
from tasks.engines.base import Installation, Served
from tasks.kinds import new
from tasks.supervision import lifecycle, repairs, services, watchdog
from tasks.system import ports, process, prompt_cache

FAKE = Path(__file__).parents[1] / "support" / "fake_engine.py"
FAST = Engine("fast", "m", "int4", "file:/m", 0, 2048, 2**30, cache_bytes=0, concurrency=1)
TASKS = {"start": services.start, "restart": services.restart, "stop": services.stop, "drain": services.drain}


def fake(served: Served, at: Installation) -> list[str]:
    """Give the command line of an engine that goes on when it is told to drain, as one with an answer to make does."""
    command = [at.python, "-I", "-S", str(FAKE), "--port", str(served.engine.port), "--name", served.engine.name]
    return ["/bin/sh", "-c", 'trap "" USR2; exec "$@"', "sh", *command]


@pytest.fixture
def run(home: Home, db: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """Put one job in, run it here as the worker does, and give its row."""
    monkeypatch.setattr("tasks.engines.serving.argv", fake)
    aside = runtime.Runtime()  # what the watchdog asks for at an end must meet nobody
    aside.home = Home(tmp_path / "aside").make()
    monkeypatch.setattr(repairs, "runtime", aside)
    monkeypatch.setattr(watchdog, "runtime", aside)
    yield runner(db, home, TASKS, monkeypatch)
    for left in process.find_orphans(str(home.root), "fast"):
        process.stop(left, 0)


def shall_listen(db: Database, port: int) -> None:
    stack.replace(db, [replace(FAST, port=port, weights=str(db.home.root))])


@pytest.fixture
def serving(db: Database, run: Run) -> Service:
    """Give the row of the tier fast, which serves."""
    shall_listen(db, free_port())
    assert run("start", service="fast").state is JobState.SUCCEEDED
    return service.get(db, "fast")


@pytest.mark.parametrize("kind", ["start", "restart"])
def test_a_service_moves_to_a_new_port_with_its_next_start(
    home: Home, db: Database, run: Run, serving: Service, kind: str
) -> None:
    moved = free_port()
    shall_listen(db, moved)

    assert run(kind, service="fast").state is JobState.SUCCEEDED

    one = service.get(db, "fast")
    assert (one.port, one.generation) == (moved, serving.generation + 1)
    assert lifecycle.ready(home, one)
    assert ports.free(serving.port)


def test_a_service_whose_new_port_is_taken_goes_on_where_it_is(
    home: Home, db: Database, run: Run, serving: Service
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        shall_listen(db, stranger.getsockname()[1])
        failed = run("restart", service="fast")

    assert failed.error_code == "port_taken"
    assert failed.error
    assert f"(pid {os.getpid()})" in failed.error
    assert failed.error.endswith(f"fast stays on port {serving.port}.")
    one = service.get(db, "fast")
    assert (one.identity, one.port, one.state) == (serving.identity, serving.port, State.READY)
    assert lifecycle.ready(home, one)


def test_a_program_that_was_quicker_at_the_port_is_sent_no_key(
    db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It binds the port after the port was seen to be free, and before the engine, which takes seconds to load."""
    monkeypatch.setattr(lifecycle, "_free_port", lambda _row: None)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        shall_listen(db, stranger.getsockname()[1])
        failed = run("start", service="fast")
        heard = strangers.heard(stranger)

    assert heard
    assert not any(heard)
    assert failed.error
    assert "is taken by" in failed.error or "Another program is using its port" in failed.error


def test_a_service_that_is_wanted_again_is_not_stopped_for_an_old_look(
    db: Database, run: Run, serving: Service
) -> None:
    """The watchdog saw that nobody wanted it; a person's `up` was quicker than the watchdog's job."""
    assert run("stop", service="fast", unwanted=True).state is JobState.SUCCEEDED

    one = service.get(db, "fast")
    assert (one.desired, one.state, one.identity) == ("up", State.READY, serving.identity)


def test_the_watchdog_has_stopped_what_nobody_wants(db: Database, run: Run, serving: Service) -> None:
    service.set_desired(db, "fast", "down")
    watchdog.Watchdog()._tend(db, service.get(db, "fast"), spec_hash=None)
    asked = db.row("SELECT kind, args FROM jobs WHERE source = 'watchdog'")
    assert asked
    assert tuple(asked) == ("stop", '{"service": "fast", "unwanted": true}')
    db.run("DELETE FROM jobs WHERE source = 'watchdog'")

    run("stop", service="fast", unwanted=True)

    assert service.get(db, "fast").state is State.STOPPED
    assert ports.free(serving.port)


def test_an_engine_that_was_drained_for_a_new_start_gets_one(db: Database, run: Run, serving: Service) -> None:
    """The worker died before it had put that start in."""
    service.apply(db, "fast", ServiceEvent.DRAIN_STARTED)

    assert run("start", service="fast").state is JobState.SUCCEEDED

    one = service.get(db, "fast")
    assert (one.state, one.generation, one.restarts) == (State.READY, serving.generation + 1, 0)


def test_a_purge_is_done_also_when_it_attaches_to_a_plain_restart(
    home: Home, db: Database, run: Run, serving: Service
) -> None:
    old = prompt_cache.folder(home, "fast") / "entry" / "tokens.bin"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"x" * 4096)
    plain, _ = ledger.enqueue(db, new("restart", {"service": "fast"}))

    purging = run("restart", service="fast", purge=True)

    assert (purging.id, purging.state) == (plain, JobState.SUCCEEDED)
    assert not old.exists()
    assert service.get(db, "fast").generation == serving.generation + 1


def test_a_drain_that_is_cancelled_stops_what_is_left(
    db: Database, run: Run, serving: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lifecycle.drain

    def drain_and_be_cancelled(db: Database, one: Service) -> process.Identity | None:
        ledger.cancel(db, db.value("SELECT id FROM jobs WHERE kind = 'drain'"))
        return real(db, one)

    monkeypatch.setattr(lifecycle, "drain", drain_and_be_cancelled)

    assert run("drain", service="fast").state is JobState.SUCCEEDED
    assert service.get(db, "fast").state is State.STOPPED
    assert ports.free(serving.port)
