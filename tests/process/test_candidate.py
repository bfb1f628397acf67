"""A gateway on trial is told the master key; nobody else is."""

from __future__ import annotations

import http.server
import signal
import sys
import threading
from collections.abc import Callable, Iterator
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
    both = [TIER, replace(TIER, name="standard", port=1)]
    stack.replace(db, both)
    for one in both:
        service.ensure(db, one.name, "engine", 1)
        scene.ready(db, one.name)
    return both


@pytest.fixture
def spawn(home: Home) -> Iterator[Spawn]:
    """Give what starts a program as a gateway on trial at a port."""
    begun: list[process.Spawned] = []

    def one(code: str, port: int) -> Candidate:
        begun.append(process.spawn([sys.executable, "-c", code], {}, home.log("gateway"), home.run, "gateway"))
        return Candidate("gateway", begun[-1], port)

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
