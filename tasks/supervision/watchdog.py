"""The watchdog: compare the desired with the actual state, every two seconds and at every exit.

It decides and enqueues jobs; the jobs act. The exit watcher reports an exit within milliseconds; the tick would
find it too, two seconds later.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field

from state import event, job, ledger, secrets, service, settings, stack
from state.db import Database, open_database
from state.errors import EngineFailed, MlxqError, NotFound
from state.service import ROUTED, SERVING, Service, ServiceEvent, State
from tasks.config_problems import ConfigWatch
from tasks.engines import adapters
from tasks.kinds import new
from tasks.plan import gateway, gateway_health, health, leak
from tasks.plan.health import EngineStatus, HealthSample, Limits, Track, Verdict
from tasks.plan.leak import Advice, Trend
from tasks.plan.reconcile import Action, decide, escalate
from tasks.queue import tick
from tasks.runtime import log, runtime
from tasks.supervision import exits, lifecycle, probe, repairs, spec
from tasks.supervision.disk_watch import DiskWatch
from tasks.supervision.gateway_watch import GatewayWatch
from tasks.system import log_rotation, memory, process
from tasks.system.process import Identity
from tasks.system.sleep_inhibitor import SleepInhibitor
from tasks.upgrade import record as records
from tasks.weights import model_dir

TICK_S = 2.0
PROBE_S = 1.5
CANARY_S = 10.0
NOTE_S = 30.0
"""How often what was seen is written down while all is well."""
LEAVE_S = gateway.LEAVE_SECONDS + lifecycle.GRACE_S
"""How long one that was replaced may take to end by itself."""


@dataclass
class Monitored:
    """What is remembered of one running process between looks."""

    identity: Identity
    track: Track
    noted_at: float = 0.0
    canary: threading.Thread | None = None
    answer: bool | None = None
    """How the last canary went, until it is counted."""
    trend: Trend = field(default_factory=Trend)


class Watchdog:
    """The state of the watchdog between ticks; it lives as long as the worker."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._charges: dict[str, Monitored] = {}
        self._checked: set[str] = set()
        self._leaving: dict[Identity, float] = {}
        """Since when each was seen to leave, in monotonic seconds."""
        self._wakes = memory.SleepClock()
        self._gateway = GatewayWatch()
        self._next_look = 0.0
        self._begun = False
        self._escalated = False
        self._config = ConfigWatch()
        self._awake = SleepInhibitor(memory.stay_awake_argv(os.getpid()))
        self._disks = DiskWatch()
        self._comparison: Comparison | None = None

    def tick(self) -> None:
        """Check every service once; return at once when another tick runs or the interval has not passed."""
        now = time.monotonic()
        if now < self._next_look:
            return
        interval_s: int = settings.load(runtime.home)["watch-interval"]
        self._next_look = now + interval_s - TICK_S / 2
        if not self._busy.acquire(blocking=False):
            return
        try:
            for problem in self._config.fresh(runtime.home):
                log.warning("configuration", problem=problem.message, done=problem.done, cure=problem.hint)
            db = runtime.database()
            exits.kills.look()
            if self._wakes.look(memory.asleep_s(), time.monotonic(), interval_s):
                self._charges.clear()
            services = service.listing(db)
            self._take_over(db, services)
            self._awake.hold(any(row.kind == "engine" and row.state in SERVING for row in services))
            self._escalate(db, services)
            self.kill_overdue(services)
            self._start_where_disks_returned(db, services)
            hashes = self._compared(db, services)
            for row in services:
                self._tend(db, row, hashes.get(row.name))
        finally:
            self._busy.release()

    def _escalate(self, db: Database, services: list[Service]) -> None:
        """Restart the gateway, which all tiers share, when each is in a crash loop; once, until one serves again."""
        if not escalate(services):
            self._escalated = False
        elif not self._escalated:
            self._escalated = True
            event.record(db, "escalated", service=gateway.SERVICE, cause="Every tier is in a crash loop.")
            repairs.request_restart(db, gateway.SERVICE, "escalated")

    def _take_over(self, db: Database, services: list[Service]) -> None:
        """Take over from an earlier worker; once in this worker's life.

        Processes that it paused to rotate their logs are resumed, engines that outlived their login session replaced.
        """
        if self._begun:
            return
        self._begun = True
        threading.Thread(target=_mark_models, name="mark-models", daemon=True).start()
        for row in services:
            if identity := lifecycle.running(row):
                log_rotation.let_go(process.members(identity))
                if row.kind == "engine" and process.outlived_session(identity):
                    event.record(db, "logged_out", service=row.name)
                    repairs.request_restart(db, row.name, "logged_out")

    def kill_overdue(self, services: list[Service]) -> None:
        """Kill replaced processes that outlive the longest allowed response."""
        now = time.monotonic()
        leaving = [identity for row in services for identity in lifecycle.leaving(row)]
        self._leaving = {identity: self._leaving.get(identity, now) for identity in leaving}
        for identity, since in self._leaving.items():
            if now - since > LEAVE_S:
                log.warning("did_not_leave", pid=identity.pid)
                process.send(identity, signal.SIGKILL)

    def _start_where_disks_returned(self, db: Database, services: list[Service]) -> None:
        """Start what waits for the folder of its weights, when that can be read again."""
        waiting = [row.name for row in services if (row.state, row.desired) == (State.DISK_UNAVAILABLE, "up")]
        for name in self._disks.returned(db, waiting):
            repairs.request_restart(db, name, "gone")

    def _tend(self, db: Database, row: Service, spec_hash: str | None) -> None:
        """Do what this service needs now. `spec_hash`: of what would be started now, where that was found out."""
        identity = lifecycle.running(row)
        locked = lifecycle.held(row.name)
        need = decide(row, alive=identity is not None, now=db.now(), spec_hash=spec_hash, locked=locked)
        if need == Action.RECORD_EXIT and (dead := lifecycle.identity(row)):
            repairs.handle_exit(row.name, dead)
        elif need == Action.START:
            repairs.request_restart(db, row.name, "gone")
        elif need == Action.REPLACE:
            repairs.request_restart(db, row.name, "upgraded")
        elif need == Action.STOP:
            ledger.enqueue(db, new("stop", {"service": row.name, "unwanted": True}), source="watchdog")
        elif need == Action.PROBE and identity:
            if row.kind == "gateway":
                self._gateway.follow(row, identity)
            self._probe(db, row, identity)

    def _compared(self, db: Database, services: list[Service]) -> dict[str, str]:
        """Return the hash of what would be started now, by name, where that has just been found out.

        It is found out in a thread, as it reads the weights' folder.
        """
        comparison = self._comparison
        if comparison is None:
            if name := self._next_to_compare(db, services):
                self._comparison = Comparison(name)
                self._comparison.start()
            return {}
        if comparison.is_alive():
            return {}
        self._comparison = None
        if not self._are_steady(db, services):
            self._checked.discard(comparison.service)
            return {}
        return {comparison.service: comparison.spec_hash} if comparison.spec_hash else {}

    def _next_to_compare(self, db: Database, services: list[Service]) -> str | None:
        """Choose who is compared with what would be started now, once in the worker's life.

        One at a look, while all serve and none is about to be replaced: what an upgrade changed for every tier is
        replaced one after another, and the others answer. Later changes come through jobs, which compare; so does an
        upgrade that is under way, after its gateway, as one of another version may not be able to read state.db.
        """
        if (upgrade := records.read(runtime.home)) and upgrade.unsettled:
            return None
        up = [row for row in services if row.desired == "up"]
        unchecked = [row.name for row in up if row.name not in self._checked]
        if not unchecked or not self._are_steady(db, services):
            return None
        self._checked.add(unchecked[0])
        return unchecked[0]

    def _are_steady(self, db: Database, services: list[Service]) -> bool:
        """Return whether all services that should run serve, and none is about to be replaced."""
        return all(row.state == State.READY for row in services if row.desired == "up") and not _restarting(db)

    def _probe(self, db: Database, row: Service, identity: Identity) -> None:
        """Look at a running service, and have it replaced when it hangs."""
        charge = self._monitored(row.name, identity)
        limits = _limits(db, row)
        now = time.monotonic()
        status = (IDLE if self._gateway.answering else None) if row.kind == "gateway" else _ask(row)
        answer, charge.answer = charge.answer, None
        frozen = status is None and process.frozen(identity)
        charge.track = health.follow(charge.track, HealthSample(now, status, answer, frozen))
        verdict = health.verdict(charge.track, now, limits, woke_at=self._wakes.woke_at)
        if status and row.kind == "engine" and health.canary_due(charge.track, status, now, limits):
            _send_canary(charge, row)
        self._act(db, row, charge, verdict, status)

    def _monitored(self, name: str, identity: Identity) -> Monitored:
        """Return what is remembered of the process; a new one is followed from now on."""
        charge = self._charges.get(name)
        if charge is None or charge.identity != identity:
            charge = self._charges[name] = Monitored(identity, health.begin(time.monotonic()))
            repairs.follow(name, identity)
        return charge

    def _act(
        self, db: Database, row: Service, charge: Monitored, verdict: Verdict, status: EngineStatus | None
    ) -> None:
        """Write down what the verdict changes, and have a hung service replaced."""
        if verdict in {Verdict.SILENT, Verdict.STALLED, Verdict.BROKEN}:
            step = ServiceEvent.STALLED if verdict == Verdict.STALLED else ServiceEvent.DEGRADED
            if service.apply(db, row.name, step, fence=row.generation, cause_code=verdict, cause=HUNG[verdict]):
                log.warning("service_hangs", service=row.name, verdict=verdict)
            del self._charges[row.name]
            repairs.request_restart(db, row.name, "hung")
        elif verdict == Verdict.HEALTHY and row.state != State.READY:
            service.apply(db, row.name, ServiceEvent.BECAME_READY, fence=row.generation)
        elif verdict == Verdict.HEALTHY and time.monotonic() - charge.noted_at > NOTE_S:
            charge.noted_at = time.monotonic()
            used = memory.resident(charge.identity)
            service.update(db, row.name, memory_bytes=used)
            if row.kind == "engine" and status:
                self._check_memory(db, row, charge, status, used)

    def _check_memory(self, db: Database, row: Service, charge: Monitored, status: EngineStatus, used: int) -> None:
        """Have an engine whose memory only grows drop its cache, and be replaced when that did not help."""
        charge.trend = leak.add(charge.trend, time.monotonic(), status.metal_bytes or used)
        with suppress(NotFound):
            budget = stack.engine(db, row.name).memory_bytes
            spare = not status.has_requests and _others_serve(db, row)
            short = memory.memory().pressure != memory.Pressure.NORMAL
            advice = leak.advise(charge.trend, budget, short=short, spare=spare)
            cause = f"Its memory grows by {leak.rise(charge.trend) * 60 / 2**20:.0f} MB a minute."
            if advice == Advice.PURGE:
                charge.trend = Trend(purged_at=time.monotonic())
                event.record(db, "cache_purged", service=row.name, cause=cause)
                threading.Thread(target=_purge, args=(row,), name=f"purge-{row.name}", daemon=True).start()
            elif advice == Advice.RECYCLE and service.apply(
                db, row.name, ServiceEvent.DRAIN_STARTED, fence=row.generation, cause=cause
            ):
                repairs.request_restart(db, row.name, "leaks")


def _restarting(db: Database) -> bool:
    return any(restart.live for restart in job.listing(db, kind="restart", limit=1))


def _mark_models() -> None:
    """Mark the folder that an older mlxq downloaded weights to, while they are in it."""
    with suppress(MlxqError), closing(open_database(runtime.home)) as db:
        path = settings.load(runtime.home).models(runtime.home)
        folder = model_dir.recorded(db, path)
        if folder.identity is None and folder.names:
            model_dir.claim(db, path)


class Comparison(threading.Thread):
    """Finds out what would be started now as a service."""

    def __init__(self, service: str) -> None:
        super().__init__(name=f"compare-{service}", daemon=True)
        self.service = service
        self.spec_hash: str | None = None
        """Once the thread has ended; None where nothing could be started."""

    def run(self) -> None:
        """Find out, and close this thread's connection."""
        with suppress(MlxqError), closing(open_database(runtime.home)) as db:
            self.spec_hash = spec.launch_spec(db, runtime.home, self.service).spec_hash


HUNG = {
    Verdict.SILENT: "It takes connections and says nothing.",
    Verdict.STALLED: "It has requests and makes no tokens.",
    Verdict.BROKEN: "It answers, and every request fails.",
}

GATEWAY = Limits(silent_s=2 * gateway_health.STARVED_S, frozen_s=2 * gateway_health.STARVED_S)
"""A net: `GatewayWatch` sees it long before."""
IDLE = health.read_status(None)
"""What a gateway that answers counts as: there, with nothing to do."""


def _ask(row: Service) -> EngineStatus | None:
    """Ask a service how it is; None when it does not say."""
    try:
        if row.kind in lifecycle.HEALTH:
            return IDLE if probe.answers(row.port, lifecycle.HEALTH[row.kind], PROBE_S) else None
        return probe.status(row.port, _key(), PROBE_S, release=row.release)
    except EngineFailed:
        return None


def _key() -> str:
    return secrets.read(runtime.home.secrets).get(secrets.TIER, "")


def _others_serve(db: Database, row: Service) -> bool:
    """Return whether requests would be answered while an engine is away, or never will be: it is the only one."""
    engines = [other for other in service.listing(db) if other.kind == "engine" and other.name != row.name]
    return any(engine.state in ROUTED for engine in engines) or not any(engine.desired == "up" for engine in engines)


def _purge(row: Service) -> None:
    with suppress(EngineFailed):
        probe.purge(row.port, _key(), release=row.release)


def _limits(db: Database, row: Service) -> Limits:
    """Return how long a service may be silent on this machine as busy as it is."""
    crowding = memory.crowding()
    if row.kind == "gateway":
        return GATEWAY
    with suppress(NotFound):
        if row.kind == "engine":
            limits = adapters.named(row.release).limits(vision=stack.engine(db, row.name).vision)
            return health.patience(limits, crowding)
    return health.patience(health.TEXT, crowding)


def _send_canary(charge: Monitored, row: Service) -> None:
    """Ask for one token beside the tick, which must not wait for it."""
    if charge.canary and charge.canary.is_alive():
        return

    def sing() -> None:
        try:
            limit_s = CANARY_S * min(health.MOST_CROWDED, memory.crowding())
            probe.one_answer(row.port, _key(), row.name, limit_s, release=row.release)
        except EngineFailed:
            charge.answer = False
        else:
            charge.answer = True

    charge.canary = threading.Thread(target=sing, name=f"canary-{row.name}", daemon=True)
    charge.canary.start()


watch = Watchdog()


@tick("reconcile", TICK_S)
def reconcile() -> None:
    """Look at every service."""
    watch.tick()
