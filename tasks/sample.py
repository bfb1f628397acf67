"""Keep a history: look at every service each ten seconds, write a row each minute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from state import secrets, service, stack
from state.db import Database
from state.errors import EngineFailed
from state.metrics import sample, usage
from state.metrics.sample import MINUTE_S, Sample
from state.paths import Home
from state.service import SERVING, Service
from tasks.plan import request_stats
from tasks.plan.request_stats import EngineSample
from tasks.queue import tick
from tasks.runtime import runtime
from tasks.supervision import own_requests, probe
from tasks.system import memory

EVERY_S = 10.0
"""Often enough to meet most requests while they run; their speed is told only then."""
PATIENCE_S = 1.0


class Recorder:
    """The looks of the minute that runs."""

    def __init__(self) -> None:
        self.minute = 0
        """When it began, in unix seconds."""
        self.looks: dict[str, list[EngineSample]] = {}
        self.before: dict[str, EngineSample] = {}

    def look(self, db: Database, home: Home) -> None:
        """Look at every service; write the last minute when a new one has begun."""
        minute = int(db.now()) // MINUTE_S * MINUTE_S
        if self.looks and minute != self.minute:
            sample.take(db, [*self._samples(), _machine(self.minute)])
            self.before = {name: looks[-1] for name, looks in self.looks.items()}
            self.looks = {}
        self.minute = minute
        key = secrets.read(home.secrets).get(secrets.TIER, "")
        counted = usage.totals(db)
        tiers = stack.tiers(db)
        for row in service.listing(db):
            names = {tier.name for tier in stack.served_by(tiers, row.name)} or {row.name}
            self.looks.setdefault(row.name, []).append(_look(row, names, key, counted))

    def _samples(self) -> list[Sample]:
        return [
            request_stats.fold(name, self.minute, self.before.get(name), looks) for name, looks in self.looks.items()
        ]


def _look(row: Service, tiers: set[str], key: str, counted: Sequence[Mapping[str, Any]]) -> EngineSample:
    """Look at one service. `counted`: the gateway's sums by tier; those of an engine's `tiers` are the engine's."""
    own = [count for count in counted if row.kind == "gateway" or count["tier"] in tiers]
    counts: dict[str, Any] = {name: sum(count[name] for count in own) for name in ("failed", "fallbacks")}
    counts["memory_bytes"] = row.memory_bytes
    serving = row.state in SERVING
    if row.kind != "engine" or not serving:
        return EngineSample(serving, **counts)
    try:
        status, requests = probe.detailed_status(row.port, key, PATIENCE_S, release=row.release)
    except EngineFailed:
        return EngineSample(serving=False, **counts)
    status, requests = own_requests.others(row.port, status, requests)
    return EngineSample(serving, status, requests, own=own_requests.totals(row.port), **counts)


def _machine(minute: int) -> Sample:
    now = memory.memory()
    return Sample(
        sample.MACHINE,
        minute,
        MINUTE_S,
        up=1.0,
        memory_bytes=now.total - now.available,
        wired_bytes=now.wired,
        swap_bytes=now.swap_used,
    )


recorder = Recorder()


@tick("sample", every_s=EVERY_S)
def look() -> None:
    """Take a look."""
    recorder.look(runtime.database(), runtime.home)
