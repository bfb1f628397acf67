"""What is true now, as one document: the machine, the worker, every service.

Nothing is called healthy that nobody probed. While the worker beats, its watchdog's rows are the truth; otherwise this
looks by itself: is that very process alive, and does its port answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from state import cloud_spend, facts, ports, safe_mode, service, settings, stack
from state.db import Database
from state.paths import Home
from state.service import Observed, Service
from state.stack import Tier
from state.worker import current

PROBE_S = 0.5
HEALTH = {"engine": "/health", "gateway": "/health/liveliness", "page": "/"}
MIB = 1024 * 1024
GATEWAY = "gateway"


@dataclass(frozen=True)
class WorkerReport:
    """The worker as it is."""

    state: str
    """running, hung, or stopped."""
    pid: int | None


@dataclass(frozen=True)
class StatusReport:
    """Everything `mlxq status` tells."""

    machine: dict[str, Any]
    endpoint: str
    worker: WorkerReport
    services: list[dict[str, Any]]
    """With exactly the keys that `status --json` prints."""
    troubles: list[tuple[str, str, str | None]]
    """Name, cause and next command of each service that is not as it should be."""
    tiers: list[Tier]
    jobs: list[int]
    """Ids of the jobs that have not ended."""
    cloud: dict[str, Any]
    """Whether requests may leave the machine as a last resort, to which model, and what they cost today."""

    def document(self) -> dict[str, Any]:
        """Give it as it is printed for programs."""
        return {
            "hardware": self.machine,
            "endpoint": self.endpoint,
            "worker": {"state": self.worker.state, "pid": self.worker.pid},
            "services": self.services,
            "cloud": self.cloud,
            "stack": {"tiers": [_wanted(tier) for tier in self.tiers]},
        }


def collect(db: Database) -> StatusReport:
    """Look, and give what is true."""
    seen, tiers = worker(db), stack.tiers(db)
    rows, at = {row.name: row for row in service.listing(db)}, ports.listing(db)
    live = db.rows("SELECT id FROM jobs WHERE state IN ('blocked', 'queued', 'running') ORDER BY id")
    return StatusReport(
        machine=facts.get(db, "machine"),
        endpoint=ports.endpoint(at),
        worker=seen,
        services=_services(rows, tiers, at, watched=seen.state == "running"),
        troubles=_troubles(db, rows.values()),
        tiers=tiers,
        jobs=[row["id"] for row in live],
        cloud=cloud_today(db.home),
    )


def _services(
    rows: Mapping[str, Service], tiers: Sequence[Tier], at: Mapping[str, int], *, watched: bool
) -> list[dict[str, Any]]:
    """Give the tiers and the gateway, then what else has a row; `at`: their ports, 0 for a page that is off."""
    wanted: dict[str, Tier | None] = {tier.name: tier for tier in tiers} | ({GATEWAY: None} if tiers else {})
    names = wanted | {name: wanted.get(name) for name in rows}
    return [_service(name, rows.get(name), tier, at.get(name) or None, watched=watched) for name, tier in names.items()]


def _troubles(db: Database, rows: Iterable[Service]) -> list[tuple[str, str, str | None]]:
    """Give name, cause and next command of what is down, and of what is held back."""
    down = [(row.name, row.cause, row.hint) for row in rows if row.cause]
    held = [(name, held.sentence, held.hint) for name, held in safe_mode.listing(db).items() if held.level]
    return [*down, *held]


def cloud_today(home: Home) -> dict[str, Any]:
    """Give what of the cloud is set, and today's sums."""
    found, spent = settings.load(home), cloud_spend.read(cloud_spend.place(home))
    return {
        "on": bool(found["openrouter-key"]),
        "model": found["openrouter-model"],
        "requests_today": spent.requests,
        "usd_today": spent.usd,
        "cap_usd": found["cloud-cap-usd"],
    }


def worker(db: Database) -> WorkerReport:
    """Tell how the worker is, by its identity and its beat."""
    from tasks import worker_status

    felt, last = worker_status.read(db), current(db)
    if last is None or felt in (worker_status.WorkerState.NONE, worker_status.WorkerState.DEAD):
        return WorkerReport("stopped", None)
    return WorkerReport("hung" if felt is worker_status.WorkerState.HUNG else "running", last.pid)


def _service(name: str, row: Service | None, tier: Tier | None, port: int | None, *, watched: bool) -> dict[str, Any]:
    """Give one service with the keys of `status --json`."""
    state = Observed.STOPPED if row is None else row.observed if watched else check(row)
    told: dict[str, Any] = {
        "name": name,
        "kind": "engine" if tier else GATEWAY,
        "state": str(state),
        "phase": "stopped",
        "pid": None,
        "port": port,
        "model": tier.model if tier else None,
        "quant": tier.quant if tier else None,
        "restarts": 0,
        "uptime_s": None,
        "memory_mb": None,
    }
    if row:
        told |= {"kind": row.kind, "phase": str(row.state), "restarts": row.restarts}
    if row and state in {Observed.HEALTHY, Observed.DEGRADED, Observed.DOWN}:
        told |= _process(row)
    return told


def _process(row: Service) -> dict[str, Any]:
    """Give what is true of a service only while its process lives."""
    return {
        "pid": row.pid,
        "uptime_s": round(time.time() - row.started_at, 1) if row.started_at else None,
        "memory_mb": round(row.memory_bytes / MIB) if row.memory_bytes else None,
    }


def check(row: Service) -> Observed:
    """Look at one service without the watchdog's help."""
    from tasks.system import process

    if row.identity is None or not process.alive(process.decode(row.identity)):
        return Observed.CRASHED if row.desired == "up" else Observed.STOPPED
    return Observed.HEALTHY if _answers(row) else Observed.DOWN


def _answers(row: Service) -> bool:
    """Tell whether the service's port speaks HTTP and does not call itself ill."""
    from http.client import HTTPConnection, HTTPException

    connection = HTTPConnection("127.0.0.1", row.port, timeout=PROBE_S)
    try:
        connection.request("GET", HEALTH[row.kind])
        return connection.getresponse().status < 500  # noqa: PLR2004 (HTTP's server errors)
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _wanted(tier: Tier) -> dict[str, Any]:
    """Give one tier of the stack for programs."""
    return {
        "name": tier.name,
        "model": tier.model,
        "quant": tier.quant,
        "source": tier.source,
        "port": tier.port,
        "context": tier.context,
        "memory_mb": round(tier.memory_bytes / MIB),
    }
