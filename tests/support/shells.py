"""Several shells, and workers that die at any SQL statement, upon one home; what was asked last is written down.

The database, the ledger, the tasks and the watchdog are the real ones, each worker is a fork that dies by SIGKILL, and
each service is a process (`sleep`). A request is made as a command makes it, between the jobs or in the midst of one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from support.crashpoints import in_a_fork
from support.mlxq_home import TIER

from mlxq.commands import down, restart
from state import ledger, secrets, service, settings, stack
from state.db import Database, open_database
from state.errors import NotRunning
from state.paths import Home
from state.service import ALIVE, State
from tasks import assign, configure, kinds, stack_jobs
from tasks.engines import serving
from tasks.executor import perform
from tasks.kinds import KINDS
from tasks.plan import gateway
from tasks.runtime import runtime
from tasks.supervision import lifecycle, services, watchdog
from tasks.system import ports, process
from tasks.worker_status import is_alive

TASKS = {
    "start": services.start,
    "restart": services.restart,
    "stop": services.stop,
    "drain": services.drain,
    "configure": configure.configure,
    "retire": assign.retire,
}
TIERS = ("fast", "standard")
SERVICES = (*TIERS, gateway.SERVICE)
LIVE = "SELECT count(*) FROM jobs WHERE state IN ('blocked', 'queued', 'running')"
IDLE = ["/bin/sleep", "1000"]
LIMIT_S = 60.0


@dataclass(frozen=True)
class Asked:
    """One request: a command, the services it names (none: all), and its flag."""

    command: str
    names: tuple[str, ...] = ()
    flag: bool = False
    """--drain of down, --purge of restart."""


@dataclass(frozen=True)
class Shift:
    """The life of one worker: it dies at its `dies_at`-th SQL statement, or of old age when there is nothing to do."""

    dies_at: int = 0
    meanwhile: tuple[tuple[int, Asked], ...] = ()
    """Requests, each made at the worker's n-th SQL statement."""


class Shells:
    """One home, upon which requests and workers come."""

    def __init__(self, template: Path, folder: Path) -> None:
        self.home = Home(folder).make()
        shutil.copyfile(template, self.home.database)
        self.said = folder / "said.jsonl"
        self.said.touch()
        self.hours = 0
        secrets.ensure(self.home.secrets)
        settings.write(self.home, "page-port", 0)
        settings.write(self.home, "litellm-port", ports.spare())
        db = open_database(self.home)
        stack.replace(db, [replace(TIER, name=name, port=ports.spare(), weights=str(self.home.root)) for name in TIERS])
        db.close()

    def ask(self, asked: Asked) -> None:
        db = self._open()
        try:
            self._ask(db, asked)
        finally:
            db.close()

    def _open(self) -> Database:
        """Open the database; the clock runs an hour ahead for each worker, so that nothing waits for its time."""
        ahead = self.hours * 3600.0
        return open_database(self.home, clock=lambda: time.time() + ahead)

    def _ask(self, db: Database, asked: Asked) -> None:
        before = {row.name: row.identity for row in service.listing(db) if row.state in ALIVE}
        try:
            names = COMMANDS[asked.command](db, asked)
        except NotRunning:
            return
        line = {"command": asked.command, "names": names, "before": before}
        with self.said.open("a") as said:
            said.write(json.dumps(line) + "\n")

    # ------------------------------------------------------------ the workers

    def work(self, shift: Shift) -> None:
        """Let a worker live until it dies or has nothing to do."""
        self.hours += 1
        status = in_a_fork(lambda: self._work(shift))
        assert os.WIFSIGNALED(status) or status == 0, "the worker met an error"

    def _work(self, shift: Shift) -> None:
        db = self._become_worker()
        other, step = self._open(), 0

        def on_statement(_sql: str) -> None:
            nonlocal step
            step += 1
            if step == shift.dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            for at, asked in shift.meanwhile:
                if step == at and not db.inside:
                    self._ask(other, asked)

        db.connection.set_trace_callback(on_statement)
        ledger.rescue(db, [claim for claim in ledger.running(db) if not is_alive(claim.owner)])
        while held := ledger.claim(db, "ops", set(TASKS), runtime.owner):
            perform(KINDS[held.kind], TASKS[held.kind], held)
        watchdog.watch._next_look = 0.0
        watchdog.watch.tick()
        db.connection.set_trace_callback(None)

    def _become_worker(self) -> Database:
        """Let this fork be the worker of the home; each of its services is ready as soon as it lives."""
        me = process.identify(os.getpid())
        assert me
        runtime.home, runtime.owner = self.home, process.encode(me)
        serving.argv = lambda *_: IDLE
        gateway.argv = lambda *_, **__: IDLE
        lifecycle.ready = lambda _home, row: lifecycle.running(row) is not None
        watchdog._ask = lambda _row: watchdog.IDLE
        watchdog._send_canary = lambda *_: None
        services.LOOK_S = 0.005
        runtime._local.database = self._open()
        return runtime.database()

    def settle(self) -> None:
        """Let workers live until nothing is left to do."""
        until = time.monotonic() + LIMIT_S
        looks = 0
        while looks < 3:
            self.work(Shift())
            looks = 0 if self._busy() else looks + 1
            assert time.monotonic() < until, self.account()

    def _busy(self) -> bool:
        db = self._open()
        try:
            return bool(db.value(LIVE))
        finally:
            db.close()

    # ------------------------------------------------------------ what came of it

    def wanted(self) -> Mapping[str, str]:
        """Give what was asked for last of each service, "up" or "down"."""
        last: dict[str, str] = {}
        for line in self._said():
            if line["command"] in {"up", "down"}:
                last |= dict.fromkeys(line["names"], line["command"])
        return last

    def _said(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.said.read_text().splitlines()]

    def replaced(self) -> Mapping[str, set[str]]:
        """Give the processes, by service, that ran when a restart was asked for: none may be left."""
        gone: dict[str, set[str]] = {name: set() for name in SERVICES}
        for line in self._said():
            if line["command"] == "restart":
                for name in line["names"]:
                    gone[name] |= {line["before"][name]} - {None} if name in line["before"] else set()
        return gone

    def faults(self) -> list[str]:
        """Say where what is there is not what was asked for last."""
        db = self._open()
        told: list[str] = []
        for name, wanted in self.wanted().items():
            row = service.find(db, name)
            alive = [process.encode(one) for one in process.find_orphans(str(self.home.root), name)]
            if wanted == "up" and (row is None or row.state != State.READY or alive != [row.identity]):
                told.append(f"{name} should run: {row and (row.desired, row.state, row.identity)}, alive {alive}")
            if wanted == "down" and (alive or (row and (row.desired, row.state) != ("down", State.STOPPED))):
                told.append(f"{name} should not run: {row and (row.desired, row.state)}, alive {alive}")
            told += [f"{name} was not restarted" for _ in self.replaced()[name] & set(alive)]
        db.close()
        return told

    def account(self) -> str:
        """Say what was asked, and what the jobs came to."""
        db = self._open()
        jobs = [
            f"{row['id']} {row['kind']} {row['args']} {row['state']} {row['error']}"
            for row in db.rows("SELECT * FROM jobs")
        ]
        db.close()
        return "\n".join(["", self.said.read_text(), *jobs])

    def close(self) -> None:
        for name in SERVICES:
            for left in process.find_orphans(str(self.home.root), name):
                process.stop(left, 0)


def _up(db: Database, asked: Asked) -> Sequence[str]:
    everything = [*TIERS, *stack_jobs.auxiliary_services(db.home)]
    whole = [*stack_jobs.retire(stack_jobs.leaving(db)), *stack_jobs.starts(everything)]
    ledger.enqueue_all(db, [new for name in asked.names for new in stack_jobs.start(name)] or whole)
    return asked.names or SERVICES


def _down(db: Database, asked: Asked) -> Sequence[str]:
    rows = [row for row in service.listing(db) if not asked.names or row.name in asked.names]
    running: Sequence[service.Service] = [row for row in rows if not down.is_down(row)]
    down.begin(db, list(asked.names), running, drain=asked.flag)
    return asked.names or SERVICES


def _restart(db: Database, asked: Asked) -> Sequence[str]:
    """Restart services; where none is named, those that should run: one that is being stopped is none of them."""
    names = restart.requested(db, asked.names)
    ledger.enqueue_all(db, stack_jobs.restart_in_turn(names, purge=asked.flag))
    return names


def _stop_on_the_page(db: Database, asked: Asked) -> None:
    for name in asked.names or SERVICES:
        if service.find(db, name):
            ledger.enqueue(db, kinds.new("stop", {"service": name}))


COMMANDS = {"up": _up, "down": _down, "restart": _restart}
