"""Watches the gateway in a thread of its own: a tick of the watchdog may wait for others, and for its interval."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from state import service
from state.errors import MlxqError
from state.service import Service, ServiceEvent
from tasks.plan import gateway_health
from tasks.plan.gateway_health import GatewaySample
from tasks.plan.health import Verdict
from tasks.runtime import log, runtime
from tasks.supervision import probe, repairs
from tasks.system import memory, process
from tasks.system.process import Identity

LOOK_S = 1.5
AGAIN_S = 0.25
"""Between looks at one that did not answer."""
PROBE_S = 0.75
CAUSE = "It takes connections and says nothing."


@dataclass(frozen=True)
class _Watched:
    row: Service
    identity: Identity


class GatewayWatch:
    """Follows one gateway at a time, from its first look on until it is gone, hangs, or another takes its place."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched: _Watched | None = None
        self._thread: threading.Thread | None = None
        self._wakes = memory.SleepClock()
        self.answering = True
        """Whether it answered at the last look."""

    def follow(self, row: Service, identity: Identity) -> None:
        """Watch the process `identity` of the service from now on; does nothing for one that is watched already."""
        with self._changed:
            if self._watched and (self._watched.identity, self._watched.row.state) == (identity, row.state):
                return
            self._watched = _Watched(row, identity)
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="gateway-watch", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not runtime.stopping.is_set():
            with self._changed:
                while self._watched is None:
                    self._changed.wait()
                watched = self._watched
            self._watch(watched)
            with self._changed:
                if self._watched is watched:
                    self._watched = None

    def _watch(self, watched: _Watched) -> None:
        """Look at one process until it is gone, hangs, or another is to be watched."""
        self.answering = True
        track = gateway_health.begin(time.monotonic(), process.cpu_s(watched.identity))
        while self._watched is watched and process.alive(watched.identity):
            sample = look(watched.row.port, watched.identity)
            self._wakes.look(memory.asleep_s(), sample.at)
            track, self.answering = gateway_health.follow(track, sample), sample.answered
            if gateway_health.hangs(track, sample.at, woke_at=self._wakes.woke_at):
                log.warning("gateway_hangs", sample=sample, track=track)
                self._report(watched)
                return
            if runtime.stopping.wait(LOOK_S if sample.answered else AGAIN_S):
                return

    def _report(self, watched: _Watched) -> None:
        """Write down that the gateway hangs, and have it replaced."""
        try:
            db, row = runtime.database(), watched.row
            service.apply(
                db, row.name, ServiceEvent.DEGRADED, fence=row.generation, cause_code=Verdict.SILENT, cause=CAUSE
            )
            repairs.request_restart(db, row.name, "hung")
        except MlxqError as problem:  # the next tick has it watched again
            log.warning("repair_not_queued", service=watched.row.name, cause=problem.message)


def look(port: int, identity: Identity) -> GatewaySample:
    """Ask a gateway whether it takes requests, and see what its process does."""
    stopped = process.frozen(identity)
    answered = not stopped and _answers(port)
    waits, cpu_s = process.waits(identity), process.cpu_s(identity)
    return GatewaySample(time.monotonic(), answered, stopped, waits, cpu_s)


def _answers(port: int) -> bool:
    try:
        return probe.gateway_ready(port, PROBE_S)
    except MlxqError:
        return False
