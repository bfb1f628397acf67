"""Everything the page and `mlxq top` show, read from the rows at one moment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from catalog.machine import planned
from mlxq import prompt_reuse, status_report
from mlxq.prompt_reuse import PromptReuse
from mlxq.web import labels
from mlxq.web.engine_status import Engines, EngineView
from mlxq.web.labels import Entry, StatusLabel
from state import event, facts, job, on_demand, ports, safe_mode, service, settings, stack
from state.batches import batches
from state.batches.batches import Batch
from state.config.problem import ConfigProblem
from state.db import Database
from state.job import Job
from state.metrics import bench, sample, usage
from state.metrics.bench import Bench
from state.metrics.sample import Sample
from state.on_demand import DiskModel
from state.safe_mode import SafeMode
from state.schedule import schedules
from state.schedule.schedules import Schedule, ScheduleRun
from state.service import Observed, Service
from state.stack import Engine, Tier
from tasks import worker_status
from tasks.batches import control
from tasks.config_problems import ConfigWatch, of_targets
from tasks.plan.request_stats import EngineRequest
from tasks.worker_status import WorkerState

if TYPE_CHECKING:
    from mlxq.web.nodes import NodeView

HOUR_S = 3600
ATTENTION_S = 7 * 86_400
"""Failures older than a week are not shown as needing attention."""
CONFIG = ConfigWatch()
MOST_ATTENTION = 8
MOST_RECORD = 12
MOST_STORY = 24
MOST_ENDED_BATCHES = 3
DAY_S = 86_400
"""Batches that ended longer ago are not shown."""

FAILED = """
SELECT id FROM jobs WHERE state = 'failed' AND coalesce(error_code, '') <> 'upstream' AND finished_at > :since
AND kind <> 'remove_weights'
AND NOT EXISTS (SELECT 1 FROM jobs AS later WHERE later.id > jobs.id
                AND ((later.kind = jobs.kind AND later.args = jobs.args)
                  OR (later.kind = jobs.kind AND later.args ->> 'source' = jobs.args ->> 'source')
                  OR (later.args ->> 'service' = jobs.args ->> 'service')))
AND NOT EXISTS (SELECT 1 FROM events WHERE events.service = jobs.args ->> 'service' AND events.name = 'became_ready'
                AND events.at > jobs.finished_at)
ORDER BY finished_at DESC LIMIT :limit
"""
"""Jobs that failed on their own, and after which nothing was asked of the same weights or the same service.

Nor are those shown whose service serves again by itself.

The options of a job may differ: what a chain pulls has others than `mlxq pull`. `mlxq rm` reports its failures itself.
"""
ENDED = """
SELECT id FROM jobs WHERE state IN ('succeeded', 'failed', 'cancelled') AND kind NOT IN ('batch', 'write_batch_output')
ORDER BY id DESC LIMIT :limit
"""
"""Jobs that ended; those of batches are told with the batches."""


@dataclass(frozen=True)
class ServiceCard:
    """A service with its label, samples and current requests."""

    service: Service
    label: StatusLabel
    tiers: Sequence[Tier]
    """The tiers that the engine serves; none of the gateway, the page, and what left the stack."""
    engine: Engine | None
    """The engine in the stack; None for the gateway, the page, and what left it."""
    now: EngineView | None
    hour: Sequence[Sample]
    last: Sample | None
    """The newest sample with a request; None while it does not serve."""
    safe_mode: SafeMode | None
    """Its safe mode; None if it runs with its normal limits."""
    reuse: PromptReuse = prompt_reuse.UNKNOWN
    """What it does not read again of its prompts."""
    model: str = ""
    """The name of a model that was loaded on demand; empty for the stack."""

    @property
    def tier(self) -> Tier | None:
        """The first tier that the engine serves; None where there is none."""
        return self.tiers[0] if self.tiers else None

    @property
    def title(self) -> str:
        """The tiers that it serves; the model that was loaded on demand; else its own name."""
        return ", ".join(tier.name for tier in self.tiers) or self.model or self.service.name

    @property
    def decode_tps(self) -> float | None:
        """Current tokens/s of all requests together; if idle, tokens/s of a request in the last sample."""
        running = [request.decode_tps for request in self.now.requests if request.decode_tps] if self.now else []
        return sum(running) if running else self.last.decode_tps if self.last else None

    @property
    def fallbacks(self) -> int:
        """Fallbacks to another tier within the hour; only the gateway counts them."""
        return sum(minute.fallbacks for minute in self.hour) if self.service.kind == "gateway" else 0

    @property
    def memory_bytes(self) -> int:
        """Current memory in bytes; 0 if it is not running."""
        return self.service.memory_bytes or 0 if self.service.state in service.ALIVE else 0


@dataclass(frozen=True)
class MemoryUse:
    """The machine's memory, in bytes."""

    total: int
    used: int
    budget: int
    """The memory budget of the stack."""
    wired: int | None
    swap: int

    def share(self, count: float) -> float:
        """Return a share of the machine's memory in percent."""
        return round(min(100.0, 100.0 * count / self.total), 2) if self.total else 0.0


@dataclass(frozen=True)
class SpeedTrend:
    """The benchmarks of one model on this machine, oldest first, with one request at a time."""

    benches: Sequence[Bench]

    @property
    def last(self) -> Bench:
        """The newest benchmark."""
        return self.benches[-1]

    @property
    def change(self) -> float | None:
        """Change of speed from the benchmark before, in percent; None for the first."""
        before = self.benches[-2].decode_tps if len(self.benches) > 1 else 0.0
        return 100.0 * (self.last.decode_tps / before - 1) if before else None


@dataclass(frozen=True)
class Snapshot:
    """Everything the page shows, at one moment."""

    at: float
    label: StatusLabel
    worker: WorkerState
    endpoint: str
    machine: dict[str, Any]
    memory: MemoryUse
    cards: Sequence[ServiceCard]
    """The engines, in the order of the stack."""
    others: Sequence[ServiceCard]
    """The gateway and the page."""
    sleeping: Sequence[DiskModel]
    """The models on this disk that a request would load."""
    requests: Sequence[tuple[str, EngineRequest]]
    """(tier, request)."""
    fallbacks: int
    """Fallbacks to another tier within the hour."""
    chains: Sequence[Sequence[Job]]
    attention: Sequence[Job]
    record: Sequence[Job]
    story: Sequence[Entry]
    trends: Sequence[SpeedTrend]
    batches: Sequence[tuple[Batch, Job | None]]
    """Those that have not ended, and the newest that ended today, with the job of each."""
    schedules: Sequence[tuple[Schedule, ScheduleRun | None]]
    """Each with its latest run."""
    usage: Sequence[dict[str, Any]]
    """Usage by tier in the last seven days, as `usage.totals` returns it."""
    cloud: dict[str, Any]
    """As in `mlxq status --json`."""
    config: Sequence[ConfigProblem]
    """What is wrong with the files that users edit."""
    nodes: Sequence[NodeView]
    """The other nodes of the fleet; none where there is no fleet."""

    @property
    def startable(self) -> bool:
        """Whether there is a stack and all of it is stopped."""
        return self.label.word == Observed.STOPPED


def take(db: Database, engines: Engines) -> Snapshot:
    """Read the rows in one transaction."""
    with db.reading():
        return _take(db, engines)


def _take(db: Database, engines: Engines) -> Snapshot:
    now, worker, wanted = db.now(), worker_status.read(db), settings.load(db.home)
    tiers = stack.with_defaults(stack.tiers(db), wanted)
    cards = _cards(db, tiers, engines)
    machine = facts.get(db, "machine")
    return Snapshot(
        at=now,
        label=labels.of_all([card.service for card in cards], worker, chosen=bool(tiers)),
        worker=worker,
        endpoint=ports.endpoint(ports.listing(db)),
        machine=machine,
        memory=_memory(db, machine, cards),
        cards=[card for card in cards if card.service.kind == "engine"],
        others=[card for card in cards if card.service.kind != "engine"],
        sleeping=_sleeping(db),
        requests=_requests(cards),
        fallbacks=sum(card.fallbacks for card in cards),
        chains=_chains(db),
        attention=_jobs(db, FAILED, {"since": now - ATTENTION_S, "limit": MOST_ATTENTION}),
        record=_jobs(db, ENDED, {"limit": MOST_RECORD}),
        story=labels.timeline(event.of_service(db, None, limit=MOST_STORY)),
        trends=_trends(db, str(machine.get("chip", ""))),
        batches=[(batch, control.job_of(db, batch)) for batch in _batches(db)],
        schedules=[(schedule, schedules.last_run(db, schedule.name)) for schedule in schedules.listing(db)],
        usage=usage.totals(db, "tier", time.strftime("%Y-%m-%d", time.gmtime(now - prompt_reuse.WEEK_S))),
        cloud=status_report.cloud_today(db.home),
        nodes=_nodes(db),
        config=[*CONFIG.listing(db.home), *of_targets(db)],
    )


def _batches(db: Database) -> list[Batch]:
    ended = [batch for batch in batches.listing(db) if db.now() - (batch.ended_at or 0.0) < DAY_S]
    return [*batches.unfinished(db), *ended[:MOST_ENDED_BATCHES]]


def _cards(db: Database, stacked: Sequence[Tier], engines: Engines) -> list[ServiceCard]:
    """Return a card of each service, the tiers first and in the order of the stack."""
    order = {engine.name: number for number, engine in enumerate(stack.engines_of(stacked))}
    models = {entry.engine.name: entry for entry in on_demand.models(db)}
    engines_by_name = {engine.name: engine for engine in stack.engines(db)}
    engines_by_name |= {name: entry.engine for name, entry in models.items()}
    modes = {name: mode for name, mode in safe_mode.listing(db).items() if mode.level}
    cards = [
        replace(
            _card(db, row, stack.served_by(stacked, row.name), engines.get(row.name), modes.get(row.name)),
            engine=engines_by_name.get(row.name),
            model=models[row.name].model if row.name in models else "",
        )
        for row in sorted(service.listing(db), key=lambda row: order.get(row.name, len(order)))
        if row.active or row.name not in models
    ]
    return [replace(card, reuse=prompt_reuse.of_engine(db, card.service, card.tiers)) for card in cards]


def _nodes(db: Database) -> Sequence[NodeView]:
    """Return the other nodes of the fleet."""
    if not db.value("SELECT count(*) FROM nodes"):
        return ()
    from mlxq.web import nodes  # it brings the fleet along, which most machines do without

    return nodes.listing(db)


def _sleeping(db: Database) -> list[DiskModel]:
    """Return the models on this disk that neither serve nor are a tier's."""
    active = {row.name for row in service.listing(db) if row.active}
    stacked = {engine.weights for engine in stack.engines(db)}
    return [
        entry
        for entry in on_demand.models(db)
        if entry.engine.name not in active and entry.engine.weights not in stacked
    ]


def _requests(cards: Sequence[ServiceCard]) -> list[tuple[str, EngineRequest]]:
    return [(card.title, request) for card in cards if card.now for request in card.now.requests]


def _jobs(db: Database, query: str, values: dict[str, float]) -> list[Job]:
    return [job.get(db, row["id"]) for row in db.rows(query, values)]


def _card(
    db: Database, row: Service, tiers: Sequence[Tier], engine: EngineView | None, mode: SafeMode | None
) -> ServiceCard:
    hour = sample.history(db, row.name, db.now() - HOUR_S)
    busy = [minute for minute in hour if minute.ttft_s is not None]
    serves = row.state in service.SERVING
    last = busy[-1] if busy and serves else None
    return ServiceCard(row, labels.of_service(row), tiers, None, engine if serves else None, hour, last, mode)


def _memory(db: Database, machine: dict[str, Any], cards: Sequence[ServiceCard]) -> MemoryUse:
    """Return the machine's memory; before the first sample only that of the services is known."""
    last = sample.latest(db, sample.MACHINE)
    used, wired, swap = (last.memory_bytes or 0, last.wired_bytes, last.swap_bytes or 0) if last else (0, None, 0)
    total = int(machine.get("memory_bytes", 0))
    percent = facts.budget_percent(db, settings.load(db.home)["memory-budget-pct"])
    budget = planned(int(machine.get("usable_bytes", total)), total, percent)
    return MemoryUse(total, max(used, sum(card.memory_bytes for card in cards)), int(budget), wired, swap)


def _trends(db: Database, chip: str) -> list[SpeedTrend]:
    return [
        SpeedTrend(
            [run for run in bench.history(db, new.model, chip) if run.quant == new.quant and run.concurrency == 1]
        )
        for new in bench.latest(db, chip)
    ]


def _chains(db: Database) -> list[list[Job]]:
    """Return the chains with live jobs, newest first; those of batches are told with the batches."""
    rows = db.rows(
        "SELECT DISTINCT chain FROM jobs WHERE state IN ('blocked', 'queued', 'running')"
        " AND kind NOT IN ('batch', 'write_batch_output') ORDER BY chain DESC"
    )
    return [job.of_chain(db, row["chain"]) for row in rows]
