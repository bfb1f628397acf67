"""The rows as Prometheus text. Names and units follow prometheus.io/docs/practices/naming."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import asdict

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from state import sample, service, stack
from state.db import Database
from state.sample import MACHINE
from state.service import Observed, ServiceEvent, State
from tasks import worker_status
from tasks.worker_status import WorkerState

CONTENT_TYPE = CONTENT_TYPE_LATEST
Values = Iterable[tuple[tuple[str, ...], float | None]]
"""Label values, and the figure; one that is None is left out."""

JOBS = "SELECT kind, state, count(*) FROM jobs GROUP BY kind, state"
DURATIONS = "SELECT kind, mean_s, longest_s FROM job_durations"
DEATHS = f"""
SELECT service, coalesce(json_extract(data, '$.cause'), 'unknown'), count(*) FROM events
WHERE service IS NOT NULL
  AND name IN ('{ServiceEvent.EXITED}', '{ServiceEvent.CRASH_LOOPED}', '{ServiceEvent.FAILED}')
GROUP BY 1, 2
"""  # noqa: S608 (our own words)
COUNTERS = {
    "requests": "Requests that ended.",
    "errors": "Requests that failed.",
    "fallbacks": "Requests that another tier answered.",
    "prompt_tokens": "Prompt tokens read.",
    "completion_tokens": "Tokens made.",
}


def text(db: Database) -> str:
    """Give every figure as Prometheus reads it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Rows(db))
    return generate_latest(registry).decode()


class Rows(Collector):
    """Reads the rows when it is asked."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def collect(self) -> Iterable[Metric]:
        """Give every figure."""
        yield from _jobs(self._db)
        yield from _services(self._db)
        yield from _traffic(self._db)
        yield from _machine(self._db)


def _jobs(db: Database) -> Generator[Metric]:
    counted = [((row[0], row[1]), row[2]) for row in db.rows(JOBS)]
    took = db.rows(DURATIONS)
    alive = worker_status.read(db) is WorkerState.ALIVE
    yield _gauge("mlxq_worker_up", "Whether the worker lives and beats.", [((), alive)])
    yield _gauge("mlxq_jobs", "Jobs in the ledger.", counted, "kind", "state")
    yield _gauge(
        "mlxq_job_duration_mean_seconds", "Of the jobs in the ledger.", [((row[0],), row[1]) for row in took], "kind"
    )
    yield _gauge(
        "mlxq_job_duration_max_seconds", "Of the jobs in the ledger.", [((row[0],), row[2]) for row in took], "kind"
    )


def _services(db: Database) -> Generator[Metric]:
    rows = service.listing(db)
    states = [((row.name, str(doing)), row.state == doing) for row in rows for doing in State]
    healthy = [((row.name,), row.observed == Observed.HEALTHY) for row in rows]
    wanted = [((row.name,), row.desired == "up") for row in rows]
    memory = [((row.name,), row.memory_bytes) for row in rows]
    started = [((row.name,), row.started_at) for row in rows]
    context = [((tier.name,), tier.context) for tier in stack.tiers(db)]
    yield _gauge("mlxq_service_up", "Whether it serves.", healthy, "service")
    yield _gauge("mlxq_service_wanted", "Whether it shall serve.", wanted, "service")
    yield _gauge("mlxq_service_state", "1 for what mlxq is doing about it, else 0.", states, "service", "state")
    yield _gauge("mlxq_service_memory_bytes", "Memory that its processes take.", memory, "service")
    yield _gauge("mlxq_service_start_time_seconds", "When it was started, in unix time.", started, "service")
    yield _gauge("mlxq_tier_context_tokens", "Tokens that one request may use.", context, "tier")
    deaths = CounterMetricFamily("mlxq_service_deaths", "Ends that nobody asked for.", labels=["service", "cause"])
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
    last = [each for total in totals if (each := sample.latest(db, total.service))]
    running = [((each.service,), each.running) for each in last]
    waiting = [((each.service,), each.waiting) for each in last]
    ttft = [((each.service,), each.ttft_s) for each in last]
    decode = [((each.service,), each.decode_tps) for each in last]
    yield _gauge("mlxq_requests_running", "Requests under way, mean of the last minute.", running, "service")
    yield _gauge("mlxq_requests_waiting", "Requests that wait, mean of the last minute.", waiting, "service")
    yield _gauge("mlxq_time_to_first_token_seconds", "Mean of the last minute.", ttft, "service")
    yield _gauge("mlxq_decode_tokens_per_second", "Of one request, mean of the last minute.", decode, "service")


def _machine(db: Database) -> Generator[Metric]:
    last = sample.latest(db, MACHINE)
    if last is None:
        return
    yield _gauge("mlxq_machine_memory_used_bytes", "Memory in use.", [((), last.memory_bytes)])
    yield _gauge("mlxq_machine_memory_wired_bytes", "Memory that cannot be moved.", [((), last.wired_bytes)])
    yield _gauge("mlxq_machine_swap_used_bytes", "Swap in use.", [((), last.swap_bytes)])


def _gauge(name: str, meaning: str, values: Values, *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for names, value in values:
        if value is not None:
            family.add_metric(names, float(value))
    return family
