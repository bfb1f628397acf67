"""A gateway on trial is told a key that opens it alone; another program on its port is told none."""

from __future__ import annotations

import http.server
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, cast

import pytest
from support import scene
from support.here import runner
from support.mlxq_home import TIER
from support.ports import free_port

from state import secrets, service, stack
from state.db import Database
from state.job import Job
from state.paths import Home
from tasks.queue import Context
from tasks.supervision import candidate
from tasks.supervision.candidate import Candidate
from tasks.system import process

Spawn = Callable[[str, int], Candidate]
TRIAL_KEY = "a key for this trial"
SLEEPS = "import time; time.sleep(600)"
ANSWERS_ONCE = """
import http.server, os, sys
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        self.server.socket.close()
        self.send_response(200)
        self.send_header("x-mlxq-tier", "fast")
        self.end_headers()
        self.wfile.flush()
        os._exit(0)
http.server.HTTPServer(("127.0.0.1", {port}), Answers).serve_forever()
"""


@pytest.fixture
def tiers(home: Home, db: Database) -> list[stack.Tier]:
    """Give two tiers that are up."""
    secrets.ensure(home.secrets)
    both = stack.as_tiers([replace(TIER, name=name, port=free_port()) for name in ("fast", "standard")])
    stack.replace(db, both)
    for one in both:
        service.ensure(db, one.name, "engine", one.engine.port)
        scene.ready(db, one.name)
    return both


@pytest.fixture
def spawn(home: Home) -> Iterator[Spawn]:
    """Give what starts a program as a gateway on trial at a port."""
    begun: list[process.Spawned] = []

    def one(code: str, port: int) -> Candidate:
        begun.append(process.spawn([sys.executable, "-c", code], {}, home.log("gateway"), home.run, "gateway"))
        return Candidate("gateway", begun[-1], port, TRIAL_KEY)

    yield one
    for each in begun:
        process.stop(each.engine, 0)


@pytest.fixture
def prove(
    home: Home, db: Database, tiers: list[stack.Tier], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Candidate], Job]:
    """Give what proves a trial within a job."""

    def one(trial: Candidate) -> Job:
        def task(context: Context, **_: Any) -> int:
            return candidate.check(context, trial, tiers, context.check)

        return runner(db, home, {"restart": task}, monkeypatch)("restart", service="gateway")

    return one


class Stranger(http.server.ThreadingHTTPServer):
    """Answers whatever is asked on a port, and keeps the keys it was told; the second question ends a trial."""

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Ears)
        self.keys: list[str] = []
        self.asked = 0
        self.trial: Candidate | None = None
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Ears(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        stranger = cast("Stranger", self.server)
        stranger.asked += 1
        if stranger.asked == 2 and stranger.trial:
            process.send(stranger.trial.spawned.engine, signal.SIGKILL)
        self.do_POST()

    def do_POST(self) -> None:
        cast("Stranger", self.server).keys += self.headers.get_all("Authorization", [])
        self.send_response(200)
        self.end_headers()


def test_whoever_took_the_port_before_is_told_no_key(spawn: Spawn, prove: Callable[[Candidate], Job]) -> None:
    port = free_port()
    with Stranger(port) as stranger:
        stranger.trial = spawn(SLEEPS, port)
        failed = prove(stranger.trial)
        stranger.shutdown()

    assert failed.error
    assert "does not start: Killed by SIGKILL." in failed.error
    assert stranger.keys == []


def test_one_that_goes_in_the_midst_of_its_proof_has_not_proven_fit(
    spawn: Spawn, prove: Callable[[Candidate], Job]
) -> None:
    port = free_port()

    failed = prove(spawn(ANSWERS_ONCE.format(port=port), port))

    assert failed.error
    assert "With the new configuration: The candidate gateway has exited." in failed.error


class Engine(http.server.ThreadingHTTPServer):
    """An engine that says how many requests it has."""

    def __init__(self, port: int, running: int) -> None:
        super().__init__(("127.0.0.1", port), Status)
        self.running = running
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Status(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        running = cast("Engine", self.server).running
        self.wfile.write(b'{"num_running": %d, "num_waiting": 0, "steps_executed": 1}' % running)


SILENT = """
import http.server, time
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        time.sleep(600)
http.server.ThreadingHTTPServer(("127.0.0.1", {port}), Answers).serve_forever()
"""


@pytest.mark.parametrize("running", [0, 1])
def test_a_proof_ends_in_its_time_and_a_busy_tier_is_no_fault_of_the_configuration(
    spawn: Spawn,
    prove: Callable[[Candidate], Job],
    tiers: list[stack.Tier],
    monkeypatch: pytest.MonkeyPatch,
    running: int,
) -> None:
    monkeypatch.setattr(candidate, "ANSWERS_S", 1.0)
    port = free_port()
    with ExitStack() as both:
        engines = [both.enter_context(Engine(tier.engine.port, running)) for tier in tiers]
        done = prove(spawn(SILENT.format(port=port), port))
        for engine in engines:
            engine.shutdown()

    if running:
        assert done.state == "succeeded", done.error
    else:
        assert done.error
        assert "gave no answer within 1 s" in done.error


def test_an_engine_that_still_is_where_the_stack_before_had_it_is_not_asked(
    spawn: Spawn, prove: Callable[[Candidate], Job], db: Database
) -> None:
    port = free_port()
    db.run("UPDATE services SET port = 1")
    done = prove(spawn(SILENT.format(port=port), port))

    assert (done.state, done.result) == ("succeeded", 0), done.error


def test_a_proof_tells_the_candidate_alone_and_the_master_key_to_none(
    spawn: Spawn, prove: Callable[[Candidate], Job], home: Home
) -> None:
    """Another program may take the port at any moment, also between a look and a question."""
    port = free_port()
    heard = home.root / "heard"
    prove(spawn(TELLS.format(port=port, heard=heard), port))

    told = heard.read_text()
    assert TRIAL_KEY in told
    assert secrets.read(home.secrets)[secrets.MASTER] not in told


TELLS = """
import http.server
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        with open("{heard}", "a") as heard:
            print(self.headers, file=heard)
        self.send_response(500)
        self.end_headers()
http.server.ThreadingHTTPServer(("127.0.0.1", {port}), Answers).serve_forever()
"""
