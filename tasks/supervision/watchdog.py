"""The watchdog: compare the desired with the actual state, every two seconds and at every exit.

It decides and enqueues jobs; the jobs act. The exit watcher reports an exit within milliseconds; the tick would
find it too, two seconds later.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from state import event, job, ledger, secrets, service, settings, stack
from state.db import Database
from state.errors import EngineFailed, GatewayFailed, MlxqError, NotFound
from state.service import ROUTED, SERVING, Service, ServiceEvent, State
from tasks.engines import adapters
from tasks.kinds import new
from tasks.plan import gateway, health, leak, page
from tasks.plan.health import EngineStatus, HealthSample, Limits, Track, Verdict
from tasks.plan.leak import Advice, Trend
from tasks.plan.reconcile import Action, decide, escalate
from tasks.queue import tick
from tasks.runtime import log, runtime
from tasks.supervision import exits, lifecycle, probe, repairs, spec
from tasks.system import log_rotation, memory, process
from tasks.system.process import Identity
from tasks.system.sleep_inhibitor import SleepInhibitor

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
        self._next_look = 0.0
        self._begun = False
        self._escalated = False
        self._awake = SleepInhibitor(memory.stay_awake_argv(os.getpid()))

    def tick(self) -> None:
        """Check every service once; return at once when another tick runs or the interval has not passed."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + settings.load(runtime.home)["watch-interval"] - TICK_S / 2
        if not self._busy.acquire(blocking=False):
            return
        try:
            db = runtime.database()
            exits.kills.look()
            if self._wakes.look(memory.asleep_s(), time.monotonic()):
                self._charges.clear()
            services = service.listing(db)
            self._resume_paused_writers(services)
            self._awake.hold(any(one.kind == "engine" and one.state in SERVING for one in services))
            self._escalate(db, services)
            self.kill_overdue(services)
            compared = self._next_to_compare(db, services)
            for one in services:
                self._tend(db, one, compare=one.name == compared)
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

    def _resume_paused_writers(self, services: list[Service]) -> None:
        """Resume processes that an earlier worker paused to rotate their logs; once in this worker's life."""
        if not self._begun:
            self._begun = True
            for found in filter(None, map(lifecycle.running, services)):
                log_rotation.let_go(process.members(found))

    def kill_overdue(self, services: list[Service]) -> None:
        """Kill replaced processes that outlive the longest allowed response."""
        now = time.monotonic()
        there = [found for one in services for found in lifecycle.leaving(one)]
        self._leaving = {found: self._leaving.get(found, now) for found in there}
        for found, since in self._leaving.items():
            if now - since > LEAVE_S:
                log.warning("did_not_leave", pid=found.pid)
                process.send(found, signal.SIGKILL)

    def _tend(self, db: Database, one: Service, *, compare: bool) -> None:
        """Do what this service needs now; `compare` it with what would be started now only where all else serves."""
        found = lifecycle.running(one)
        spec_hash = _desired_spec_hash(db, one) if compare else None
        held = lifecycle.held(one.name)
        need = decide(one, alive=found is not None, now=db.now(), spec_hash=spec_hash, held=held)
        if need == Action.RECORD_EXIT and (dead := lifecycle.identity(one)):
            repairs.handle_exit(one.name, dead)
        elif need == Action.START:
            repairs.request_restart(db, one.name, "gone")
        elif need == Action.REPLACE:
            repairs.request_restart(db, one.name, "changed")
        elif need == Action.STOP:
            ledger.enqueue(db, new("stop", {"service": one.name, "unwanted": True}), source="watchdog")
        elif need == Action.PROBE and found:
            self._probe(db, one, found)

    def _next_to_compare(self, db: Database, services: list[Service]) -> str | None:
        """Choose who is compared with what would be started now, once in the worker's life.

        One at a look, while all serve and none is about to be replaced: what an upgrade changed for every tier is
        replaced one after another, and the others answer. Later changes come through jobs, which compare.
        """
        up = [one for one in services if one.desired == "up"]
        left = [one.name for one in up if one.name not in self._checked]
        if not left or any(one.state != State.READY for one in up) or _restarting(db):
            return None
        self._checked.add(left[0])
        return left[0]

    def _probe(self, db: Database, one: Service, found: Identity) -> None:
        """Look at a running service, and have it replaced when it hangs."""
        charge = self._monitored(one.name, found)
        limits = _limits(db, one)
        now = time.monotonic()
        status = _ask(one)
        answer, charge.answer = charge.answer, None
        frozen = status is None and process.frozen(found)
        charge.track = health.follow(charge.track, HealthSample(now, status, answer, frozen))
        verdict = health.verdict(charge.track, now, limits, woke_at=self._wakes.woke_at)
        if status and one.kind == "engine" and health.canary_due(charge.track, status, now, limits):
            _send_canary(charge, one)
        self._act(db, one, charge, verdict, status)

    def _monitored(self, name: str, found: Identity) -> Monitored:
        """Return what is remembered of the process; a new one is followed from now on."""
        charge = self._charges.get(name)
        if charge is None or charge.identity != found:
            charge = self._charges[name] = Monitored(found, health.begin(time.monotonic()))
            repairs.follow(name, found)
        return charge

    def _act(
        self, db: Database, one: Service, charge: Monitored, verdict: Verdict, status: EngineStatus | None
    ) -> None:
        """Write down what the verdict changes, and have a hung service replaced."""
        if verdict in {Verdict.SILENT, Verdict.STALLED, Verdict.BROKEN}:
            step = ServiceEvent.STALLED if verdict == Verdict.STALLED else ServiceEvent.DEGRADED
            if service.apply(db, one.name, step, fence=one.generation, cause_code=verdict, cause=HUNG[verdict]):
                log.warning("service_hangs", service=one.name, verdict=verdict)
            del self._charges[one.name]
            repairs.request_restart(db, one.name, "hung")
        elif verdict == Verdict.HEALTHY and one.state != State.READY:
            service.apply(db, one.name, ServiceEvent.BECAME_READY, fence=one.generation)
        elif verdict == Verdict.HEALTHY and time.monotonic() - charge.noted_at > NOTE_S:
            charge.noted_at = time.monotonic()
            used = memory.resident(charge.identity)
            service.update(db, one.name, memory_bytes=used)
            if one.kind == "engine" and status:
                self._check_memory(db, one, charge, status, used)

    def _check_memory(self, db: Database, one: Service, charge: Monitored, status: EngineStatus, used: int) -> None:
        """Have an engine whose memory only grows drop its cache, and be replaced when that did not help."""
        charge.trend = leak.add(charge.trend, time.monotonic(), status.metal_bytes or used)
        with suppress(NotFound):
            budget = stack.tier(db, one.name).memory_bytes
            spare = not (status.num_running or status.num_waiting) and _others_serve(db, one)
            short = memory.memory().pressure != memory.Pressure.NORMAL
            advice = leak.advise(charge.trend, budget, short=short, spare=spare)
            told = f"Its memory grows by {leak.rise(charge.trend) * 60 / 2**20:.0f} MB a minute."
            if advice == Advice.PURGE:
                charge.trend = Trend(purged_at=time.monotonic())
                event.record(db, "cache_purged", service=one.name, cause=told)
                threading.Thread(target=_purge, args=(one,), name=f"purge-{one.name}", daemon=True).start()
            elif advice == Advice.RECYCLE and service.apply(
                db, one.name, ServiceEvent.DRAIN_STARTED, fence=one.generation, cause=told
            ):
                repairs.request_restart(db, one.name, "leaks")


def _restarting(db: Database) -> bool:
    return any(one.live for one in job.listing(db, kind="restart", limit=1))


def _desired_spec_hash(db: Database, one: Service) -> str | None:
    """Return the spec_hash of what would be started now; None where nothing could be."""
    with suppress(MlxqError):
        return spec.launch_spec(db, runtime.home, one.name).spec_hash
    return None


HUNG = {
    Verdict.SILENT: "It takes connections and says nothing.",
    Verdict.STALLED: "It has requests and makes no tokens.",
    Verdict.BROKEN: "It answers, and every request fails.",
}

IDLE = health.read_status(None)
"""What a gateway that answers counts as: there, with nothing to do."""


def _ask(one: Service) -> EngineStatus | None:
    """Ask a service how it is; None when it does not say."""
    try:
        if one.kind == "gateway":
            return IDLE if probe.gateway_ready(one.port, PROBE_S) else None
        if one.kind == "page":
            return IDLE if probe.answers(one.port, page.HEALTH, PROBE_S) else None
        return probe.status(one.port, _key(), PROBE_S, release=one.release)
    except (EngineFailed, GatewayFailed):
        return None


def _key() -> str:
    return secrets.read(runtime.home.secrets).get(secrets.TIER, "")


def _others_serve(db: Database, one: Service) -> bool:
    """Return whether requests for a tier would be answered while it is away."""
    return any(it.kind == "engine" and it.name != one.name and it.state in ROUTED for it in service.listing(db))


def _purge(one: Service) -> None:
    with suppress(EngineFailed):
        probe.purge(one.port, _key(), release=one.release)


def _limits(db: Database, one: Service) -> Limits:
    """Return how long a service may be silent on this machine as busy as it is."""
    crowding = memory.crowding()
    if one.kind == "gateway":
        return health.patience(health.GATEWAY, min(crowding, health.MOST_CROWDED_GATEWAY))
    with suppress(NotFound):
        if one.kind == "engine":
            limits = adapters.named(one.release).limits(vision=stack.tier(db, one.name).vision)
            return health.patience(limits, crowding)
    return health.patience(health.TEXT, crowding)


def _send_canary(charge: Monitored, one: Service) -> None:
    """Ask for one token beside the tick, which must not wait for it."""
    if charge.canary and charge.canary.is_alive():
        return

    def sing() -> None:
        try:
            probe.one_token(one.port, _key(), one.name, CANARY_S * min(health.MOST_CROWDED, memory.crowding()))
        except EngineFailed:
            charge.answer = False
        else:
            charge.answer = True

    charge.canary = threading.Thread(target=sing, name=f"canary-{one.name}", daemon=True)
    charge.canary.start()


watch = Watchdog()


@tick("reconcile", TICK_S)
def reconcile() -> None:
    """Look at every service."""
    watch.tick()
