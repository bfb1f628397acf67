"""The worker's heartbeat: it beats beside the queues, rescues the jobs of dead workers, and notices stuck jobs."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from importlib.metadata import version

from state import ledger
from state.db import Database, open_database
from state.errors import DeadlinePassed, MlxqError, StateDamaged, StateUnavailable
from state.job import Claim, Fenced
from state.worker import beat
from tasks.runtime import log, runtime
from tasks.system import sd_notify
from tasks.system.ballast import lay_ballast
from tasks.worker_status import is_alive

BEAT_S = 5.0
"""How often the worker's row says that it is alive; a hung worker stops saying so."""
OVERRUN_S = 30.0
"""How long past its limit a job may go before its thread counts as stuck."""


class Heartbeat:
    """Looks after one worker and its jobs."""

    def __init__(self, stop: threading.Event) -> None:
        self.problem: MlxqError | None = None
        """Why the worker has to end, when it has to."""
        self._pulse = open_database(runtime.home, checkpoints=True)
        self._pulse.connection.execute("PRAGMA synchronous=NORMAL")  # a beat lost at power loss is no loss
        self._stop = stop
        self._strays: set[tuple[int, int]] = set()

    def run(self) -> None:
        """Look at once, which is what rescues after a crash, and every BEAT_S until the worker stops."""
        while not runtime.stopping.is_set():
            try:
                self.beat()
            except StateUnavailable as problem:
                log.error("not_kept", error=problem.message)  # noqa: TRY400 (a known state)
            except StateDamaged as problem:
                self._end_worker(problem)
            sd_notify.notify(sd_notify.ALIVE)
            runtime.stopping.wait(BEAT_S)

    def beat(self) -> None:
        """Look once."""
        db = runtime.database()
        if rescued := ledger.rescue(db, self._lost(ledger.running(db))):
            log.warning("jobs_rescued", jobs=rescued)
        self._end_overdue(db)
        beat(self._pulse, runtime.owner, os.getpid(), version("mlxq"), time.monotonic())
        lay_ballast(runtime.home)

    def _lost(self, claims: list[Claim]) -> list[Claim]:
        """Choose the claims whose worker is dead, and our own that no thread has had at two looks in a row."""
        mine = {(claim.id, claim.attempt) for claim in claims if claim.owner == runtime.owner}
        strays = mine - runtime.in_hand.keys()
        again, self._strays = strays & self._strays, strays
        return [
            claim
            for claim in claims
            if (claim.id, claim.attempt) in again or not (claim.owner == runtime.owner or is_alive(claim.owner))
        ]

    def _end_overdue(self, db: Database) -> None:
        """Fail what ran far over its limit, and end the worker: a thread cannot be ended alone."""
        for job in list(runtime.in_hand.values()):
            if job.overdue_s > OVERRUN_S and self.problem is None:
                problem = DeadlinePassed(f"Job {job.claim.id} ({job.claim.kind}) did not stop at its time limit.")
                with suppress(Fenced):
                    ledger.fail(db, job.claim, problem)
                self._end_worker(problem)

    def _end_worker(self, problem: MlxqError) -> None:
        log.error("worker_must_end", error=problem.message)
        self.problem = problem
        self._stop.set()

    def hand_back(self) -> None:
        """Release what the queues did not give back in time; its threads are fenced from here on."""
        for job in list(runtime.in_hand.values()):
            with suppress(Fenced, StateUnavailable):  # else the next worker rescues it
                ledger.release(runtime.database(), job.claim)
                log.warning("job_taken_from_its_thread", job=job.claim.id)
