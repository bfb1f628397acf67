"""What is true now, as one document: the machine, the worker, every service.

Nothing is called healthy that was not probed. While the worker's heartbeat is fresh, its rows are the truth; otherwise
the process and the port of each service are checked here.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mlxq import prompt_reuse, service_status
from mlxq.prompt_reuse import PromptReuse
from mlxq.service_status import ServiceStatus
from state import facts, files, on_demand, ports, safe_mode, service, settings, stack
from state.classes import dataclass
from state.config.problem import ConfigProblem
from state.db import Database
from state.metrics import cloud_spend, tuning
from state.metrics.tuning import Tuning
from state.paths import Home
from state.service import Observed, Service
from state.stack import Engine, Tier, engines_of, served_by
from state.worker import current
from tasks import config_problems
from tasks.engines import notes
from tasks.upgrade import newer

if TYPE_CHECKING:
    from state.fleet import Node

PROBE_S = 0.5
HEALTH = {"engine": "/health", "gateway": "/health/liveliness", "page": "/", "front": "/health/liveliness"}
MIB = 1024 * 1024
GATEWAY = "gateway"
WAITING_LOADS = "SELECT service, phase FROM jobs WHERE kind = 'load' AND state = 'queued' ORDER BY id"
LIVE_JOBS = (
    "SELECT id, kind, state, phase, source FROM jobs WHERE state IN ('blocked', 'queued', 'running') ORDER BY id"
)


@dataclass(frozen=True)
class WorkerReport:
    """The state of the worker."""

    state: str
    """running, hung, or stopped."""
    pid: int | None
    unwritable: str | None = None
    """Why it cannot write its heartbeat, if that is why it looks hung."""


STOPPED = WorkerReport("stopped", None)


@dataclass(frozen=True, eq=False)
class StatusReport:
    """Everything `mlxq status` shows."""

    machine: dict[str, Any]
    budget_percent: int | None
    """The share of memory that models may use; None for all that is usable."""
    endpoint: str
    worker: WorkerReport
    services: list[dict[str, Any]]
    """With exactly the keys that `status --json` prints."""
    reuse: Mapping[str, PromptReuse]
    """What each tier does not read again of its prompts."""
    tunings: Mapping[str, Tuning]
    """What makes the answers of an engine faster, as it was measured here."""
    troubles: list[tuple[str, str, str | None]]
    """Name, cause and next command of each service that needs an explanation."""
    tiers: list[Tier]
    waiting: list[tuple[str, str]]
    """The engines of models that are asked for and wait for memory, and for what."""
    jobs: list[dict[str, Any]]
    """Id, kind, state, phase and source of the jobs that have not ended, the oldest first."""
    config: list[ConfigProblem]
    """What is wrong with the files that users edit."""
    cloud: dict[str, Any]
    """Whether requests may leave the machine as a last resort, to which model, and what they cost today."""
    nodes: Sequence[Node] = ()
    """The other nodes of the fleet."""

    @property
    def is_set_up(self) -> bool:
        """Whether there is a stack, or anything that was started."""
        return bool(self.tiers or self.services)

    def document(self) -> dict[str, Any]:
        """Return the report as `status --json` prints it."""
        return {
            "hardware": self.machine,
            "endpoint": self.endpoint,
            "worker": {"state": self.worker.state, "pid": self.worker.pid},
            "services": self.services,
            "jobs": self.jobs,
            "config": [problem.document() for problem in self.config],
            "cloud": self.cloud,
            "stack": {"tiers": [self._tier(tier) for tier in self.tiers]},
            "nodes": self._nodes(),
        }

    def _nodes(self) -> list[dict[str, Any]]:
        if not self.nodes:
            return []
        from mlxq.fleet import report

        return [report.document(node) for node in self.nodes]

    def _tier(self, tier: Tier) -> dict[str, Any]:
        """Return one tier of the stack for programs; its state is that of its engine unless the user stopped it."""
        engine, reuse = tier.engine, self.reuse.get(tier.name, prompt_reuse.UNKNOWN)
        return {
            "name": tier.name,
            "service": engine.name,
            "state": self.tier_state(tier),
            "model": engine.model,
            "quant": engine.quant,
            "source": engine.source,
            "port": engine.port,
            "context": engine.context,
            "max_tokens": tier.max_tokens,
            "defaults": {name: value for name, value in asdict(tier.defaults).items() if value is not None},
            "memory_mb": round(engine.memory_bytes / MIB),
            "tuning": asdict(self.tunings[engine.name]) if engine.name in self.tunings else None,
            "cached_share": _rounded(reuse.share),
            "second_turn_cached_share": _rounded(reuse.second_turn),
        }

    def tier_state(self, tier: Tier) -> str:
        """Return one of the five states of a tier."""
        if tier.desired == "down":
            return str(Observed.STOPPED)
        return next(entry["state"] for entry in self.services if entry["name"] == tier.engine.name)


def collect(db: Database) -> StatusReport:
    """Return the report on everything that state.db knows, as it is at one moment."""
    with db.reading():
        return _collect(db)


def _collect(db: Database) -> StatusReport:
    running, chosen, engines = worker(db), settings.load(db.home), stack.engines(db)
    tiers = stack.with_defaults(stack.tiers(db, engines), chosen)
    rows = {row.name: row for row in service.listing(db)}
    numbers = ports.of(chosen, engines, rows.values())
    return StatusReport(
        machine=facts.get(db, "machine"),
        budget_percent=facts.budget_percent(db, chosen["memory-budget-pct"]),
        endpoint=ports.endpoint(numbers),
        worker=running,
        services=_services(rows, _beside(db, engines, rows), tiers, numbers, watched=running.state == "running"),
        reuse=prompt_reuse.of_tiers(db, tiers, rows),
        tunings=_tunings(db, rows, tiers),
        troubles=_troubles(db, rows.values(), tiers),
        tiers=tiers,
        waiting=[(row["service"], row["phase"] or "") for row in db.rows(WAITING_LOADS)],
        jobs=[dict(row) for row in db.rows(LIVE_JOBS)],
        config=[*config_problems.listing(db.home), *config_problems.of_targets(db)],
        cloud=cloud_today(db.home),
        nodes=_other_nodes(db),
    )


def _other_nodes(db: Database) -> Sequence[Node]:
    """Return the other nodes of the fleet; where there is none, which is usual, nothing is imported for it."""
    if not db.value("SELECT count(*) FROM nodes"):
        return ()
    from state import fleet

    return fleet.nodes(db)


def empty(home: Home) -> StatusReport:
    """Return the report on a home that has no state.db."""
    endpoint = f"http://127.0.0.1:{settings.load(home)['litellm-port']}/v1"
    return StatusReport(
        {}, None, endpoint, STOPPED, [], {}, {}, [], [], [], [], config_problems.listing(home), cloud_today(home)
    )


def _services(
    rows: Mapping[str, Service],
    beside: Sequence[Engine],
    tiers: Sequence[Tier],
    numbers: Mapping[str, int],
    *,
    watched: bool,
) -> list[dict[str, Any]]:
    """Return the engines and the gateway, then what else has a row; `numbers`: ports, 0 for a page that is off.

    `beside`: engines without a tier; those on demand only as long as they have a row.
    """
    engines = {engine.name: engine for engine in [*engines_of(tiers), *beside]}
    stacked = [*engines, *([GATEWAY] if tiers else [])]
    return [
        _service(
            name, rows.get(name), engines.get(name), served_by(tiers, name), numbers.get(name) or None, watched=watched
        )
        for name in dict.fromkeys([*stacked, *rows])
    ]


def _tunings(db: Database, rows: Mapping[str, Service], tiers: Sequence[Tier]) -> dict[str, Tuning]:
    """Return what each engine uses, by the release that it runs."""
    running = [(engine, rows[engine.name].release) for engine in engines_of(tiers) if engine.name in rows]
    used = {engine.name: tuning.find(db, release, engine.source) for engine, release in running}
    return {name: row for name, row in used.items() if row}


def _beside(db: Database, engines: Iterable[Engine], running: Collection[str]) -> list[Engine]:
    """Return the engines without a tier: for embeddings and ranking, and those on demand that are loaded."""
    retrieval = [engine for engine in engines if engine.purpose != stack.CHAT]
    return [*retrieval, *(entry.engine for entry in on_demand.models(db) if entry.engine.name in running)]


def _troubles(db: Database, rows: Iterable[Service], tiers: Sequence[Tier]) -> list[tuple[str, str, str | None]]:
    """Return name, cause and next command of what is down, safe mode, tiers that miss an engine, a newer mlxq."""
    down = [(row.name, row.cause, row.hint) for row in rows if row.cause]
    reduced = [(name, mode.sentence, mode.hint) for name, mode in safe_mode.listing(db).items() if mode.level]
    return [*down, *reduced, *notes.listing(db, tiers), *newer.notices(db)]


def cloud_today(home: Home) -> dict[str, Any]:
    """Return the cloud's settings, and today's sums."""
    chosen, spent = settings.load(home), cloud_spend.read(cloud_spend.place(home))
    return {
        "on": bool(chosen["openrouter-key"]),
        "model": chosen["openrouter-model"],
        "requests_today": spent.requests,
        "usd_today": spent.usd,
        "cap_usd": chosen["cloud-cap-usd"],
    }


def worker(db: Database) -> WorkerReport:
    """Return the worker's state, by its identity and its heartbeat."""
    from tasks import worker_status

    state, last = worker_status.read(db), current(db)
    if last is None or state in (worker_status.WorkerState.NONE, worker_status.WorkerState.DEAD):
        return STOPPED
    if state is worker_status.WorkerState.HUNG:
        return WorkerReport("hung", last.pid, files.unwritable(db.home.root))
    return WorkerReport("running", last.pid)


def _service(
    name: str, row: Service | None, engine: Engine | None, tiers: Sequence[Tier], port: int | None, *, watched: bool
) -> dict[str, Any]:
    """Return one service with the keys of `status --json`. `engine`: of the stack; `tiers`: those that it serves."""
    status = ServiceStatus(Observed.STOPPED) if row is None else service_status.of_row(row) if watched else check(row)
    document: dict[str, Any] = {
        "name": name,
        "kind": "engine" if engine else GATEWAY,
        "tiers": [tier.name for tier in tiers],
        "state": str(status.state),
        "reason": status.reason or None,
        "next_try_at": status.next_try_at,
        "phase": "stopped",
        "pid": None,
        "port": port,
        "model": engine.model if engine else None,
        "quant": engine.quant if engine else None,
        "engine": None,
        "restarts": 0,
        "uptime_s": None,
        "memory_mb": None,
    }
    if row:
        document |= {"kind": row.kind, "phase": str(row.state), "restarts": row.restarts, "engine": row.release or None}
    if row and status.state in {Observed.HEALTHY, Observed.DEGRADED, Observed.DOWN}:
        document |= _process(row)
    return document


def _process(row: Service) -> dict[str, Any]:
    """Return what is true of a service only while its process lives."""
    return {
        "pid": row.pid,
        "uptime_s": round(time.time() - row.started_at, 1) if row.started_at else None,
        "memory_mb": round(row.memory_bytes / MIB) if row.memory_bytes else None,
    }


def check(row: Service) -> ServiceStatus:
    """Check the process and the port of one service, without the worker's help."""
    from tasks.system import process

    alive = row.identity is not None and process.alive(process.decode(row.identity))
    return service_status.unwatched(row, alive=alive, answers=alive and _answers(row))


def _answers(row: Service) -> bool:
    """Return whether the service's port speaks HTTP and reports no error of the server."""
    from http.client import HTTPConnection, HTTPException

    connection = HTTPConnection("127.0.0.1", row.port, timeout=PROBE_S)
    try:
        connection.request("GET", HEALTH[row.kind])
        return connection.getresponse().status < 500  # noqa: PLR2004 (HTTP's server errors)
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 3)
