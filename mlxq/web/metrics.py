"""Metrics for Prometheus, read from the rows. Names and units follow prometheus.io/docs/practices/naming."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mlxq import service_status
from state import fleet, service, settings, stack
from state.db import Database
from state.errors import MlxqError
from state.metrics import cloud_spend, sample
from state.metrics.sample import MACHINE
from state.paths import Home
from state.service import Observed, ServiceEvent
from tasks import worker_status
from tasks.plan import notices
from tasks.plan.fleet import is_lost
from tasks.system import bounded, free_space
from tasks.worker_status import WorkerState

CONTENT_TYPE = CONTENT_TYPE_LATEST
Values = Iterable[tuple[tuple[str, ...], float | None]]
"""Label values and the value; None is omitted."""

JOBS = "SELECT kind, state, count(*) FROM jobs GROUP BY kind, state"
DURATIONS = "SELECT kind, mean_s, longest_s FROM job_durations"
DEATHS = f"""
SELECT service, coalesce(json_extract(data, '$.cause'), 'unknown'), count(*) FROM events
WHERE service IS NOT NULL
  AND name IN ('{ServiceEvent.EXITED}', '{ServiceEvent.CRASH_LOOPED}', '{ServiceEvent.FAILED}')
GROUP BY 1, 2
"""  # noqa: S608 (constants)
LAST = """
SELECT name, max(at) FROM events WHERE name IN (SELECT value FROM json_each(?))
  AND coalesce(json_extract(data, '$.cause'), '') != ? GROUP BY name
"""
DISK_S = 2.0
"""Seconds after which a disk that does not answer has no value."""
COUNTERS = {
    "requests": "Finished requests.",
    "errors": "Failed requests.",
    "fallbacks": "Requests answered by another tier.",
    "prompt_tokens": "Prompt tokens processed.",
    "cached_tokens": "Prompt tokens that were not read again.",
    "completion_tokens": "Tokens generated.",
}


def text(db: Database) -> str:
    """Return all metrics in the Prometheus text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Rows(db))
    return generate_latest(registry).decode()


class Rows(Collector):
    """Reads the rows on every scrape."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def collect(self) -> Iterable[Metric]:
        """Yield all metrics."""
        yield from _jobs(self._db)
        yield from _services(self._db)
        yield from _traffic(self._db)
        yield from _machine(self._db)
        yield from _events(self._db)
        yield from _disks(self._db.home)
        yield from _cloud(self._db.home)
        yield from _nodes(self._db)


def _jobs(db: Database) -> Generator[Metric]:
    counted = [((row[0], row[1]), row[2]) for row in db.rows(JOBS)]
    durations = db.rows(DURATIONS)
    alive = worker_status.read(db) is WorkerState.ALIVE
    yield _gauge("mlxq_worker_up", "Whether the worker is alive.", [((), alive)])
    yield _gauge("mlxq_jobs", "Jobs in the database.", counted, "kind", "state")
    yield _gauge(
        "mlxq_job_duration_mean_seconds",
        "Mean duration of the jobs in the database.",
        [((row[0],), row[1]) for row in durations],
        "kind",
    )
    yield _gauge(
        "mlxq_job_duration_max_seconds",
        "Longest duration of the jobs in the database.",
        [((row[0],), row[2]) for row in durations],
        "kind",
    )


def _services(db: Database) -> Generator[Metric]:
    rows = service.listing(db)
    statuses = {row.name: service_status.of_row(row) for row in rows}
    states = [((name, str(state)), status.state == state) for name, status in statuses.items() for state in Observed]
    reasons = [((name, status.reason), 1.0) for name, status in statuses.items() if status.reason]
    healthy = [((row.name,), row.observed == Observed.HEALTHY) for row in rows]
    desired = [((row.name,), row.desired == "up") for row in rows]
    memory = [((row.name,), row.memory_bytes) for row in rows]
    started = [((row.name,), row.started_at) for row in rows]
    tiers = stack.tiers(db)
    context = [((tier.name,), tier.context) for tier in tiers]
    engines = [((tier.name, tier.engine.name), 1.0) for tier in tiers]
    served = {row.name for row in rows if row.observed == Observed.HEALTHY}
    serving = [((tier.name,), tier.desired == "up" and tier.engine.name in served) for tier in tiers]
    yield _gauge("mlxq_service_up", "Whether the service is healthy.", healthy, "service")
    yield _gauge("mlxq_service_wanted", "Whether the service should be running.", desired, "service")
    yield _gauge("mlxq_service_state", "1 for the current state, else 0.", states, "service", "state")
    yield _gauge("mlxq_service_reason", "1 for the reason of the current state.", reasons, "service", "reason")
    yield _gauge("mlxq_service_memory_bytes", "Memory of the service's processes.", memory, "service")
    yield _gauge("mlxq_service_start_time_seconds", "Start time in unix seconds.", started, "service")
    yield _gauge("mlxq_tier_context_tokens", "Context length of one request.", context, "tier")
    yield _gauge("mlxq_tier_up", "Whether the tier is served.", serving, "tier")
    yield _gauge("mlxq_tier_engine", "1 for the engine, a service, that serves the tier.", engines, "tier", "service")
    deaths = CounterMetricFamily("mlxq_service_deaths", "Unexpected exits.", labels=["service", "cause"])
    for name, cause, count in db.rows(DEATHS):
        deaths.add_metric([name, cause], count)
    yield deaths


def _traffic(db: Database) -> Generator[Metric]:
    totals = sample.totals(db)
    for column, meaning in COUNTERS.items():
        counter = CounterMetricFamily(f"mlxq_{column}", meaning, labels=["service"])
        for total in totals:
            counter.add_metric([total.service], asdict(total)[column])
        yield counter
    last = [row for total in totals if (row := sample.latest(db, total.service))]
    running = [((row.service,), row.running) for row in last]
    waiting = [((row.service,), row.waiting) for row in last]
    ttft = [((row.service,), row.ttft_s) for row in last]
    decode = [((row.service,), row.decode_tps) for row in last]
    yield _gauge("mlxq_requests_running", "Running requests, mean of the last minute.", running, "service")
    yield _gauge("mlxq_requests_waiting", "Waiting requests, mean of the last minute.", waiting, "service")
    yield _gauge("mlxq_time_to_first_token_seconds", "Time to first token, mean of the last minute.", ttft, "service")
    yield _gauge(
        "mlxq_decode_tokens_per_second", "Decode speed of one request, mean of the last minute.", decode, "service"
    )


def _machine(db: Database) -> Generator[Metric]:
    last = sample.latest(db, MACHINE)
    yield _gauge("mlxq_machine_memory_used_bytes", "Memory in use.", [((), last and last.memory_bytes)])
    yield _gauge("mlxq_machine_memory_wired_bytes", "Wired memory.", [((), last and last.wired_bytes)])
    yield _gauge("mlxq_machine_swap_used_bytes", "Swap in use.", [((), last and last.swap_bytes)])


def _events(db: Database) -> Generator[Metric]:
    names = json.dumps(sorted(notices.SINGLE))
    last = [((notices.SINGLE[row[0]][0],), row[1]) for row in db.rows(LAST, (names, notices.BY_USER))]
    yield _gauge("mlxq_event_last_timestamp_seconds", "Unix seconds of the latest such event.", last, "event")


def _disks(home: Home) -> Generator[Metric]:
    free: list[tuple[tuple[str, ...], float]] = []
    for name, folder in (("home", home.root), ("models", settings.load(home).models(home))):
        with suppress(OSError, MlxqError, bounded.Hangs):
            free.append(((name,), bounded.call(str(folder), _free(folder), DISK_S)))
    yield _gauge("mlxq_disk_free_bytes", "Free space on the disk of the folder.", free, "folder")


def _free(folder: Path) -> Callable[[], int]:
    return lambda: free_space.available(folder)


def _cloud(home: Home) -> Generator[Metric]:
    values = settings.load(home)
    usd = cloud_spend.read(cloud_spend.place(home)).usd if values["openrouter-key"] else None
    cap = values["cloud-cap-usd"] if values["openrouter-key"] else None
    yield _gauge("mlxq_cloud_spent_usd", "Cost of the cloud fallback today (UTC).", [((), usd)])
    yield _gauge("mlxq_cloud_cap_usd", "Most that it may cost in a day (UTC).", [((), cap)])


def _nodes(db: Database) -> Generator[Metric]:
    answering = [((node.name,), not is_lost(node)) for node in fleet.nodes(db)]
    yield _gauge("mlxq_node_up", "Whether the node of the fleet answers.", answering, "node")


def _gauge(name: str, meaning: str, values: Values, *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for names, value in values:
        if value is not None:
            family.add_metric(names, float(value))
    return family
