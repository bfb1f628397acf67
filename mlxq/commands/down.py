"""`mlxq down`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from mlxq import dry_run as dry
from mlxq import job_view, jobs_client, options, render, status_report
from state import ledger, service, stack
from state.db import Database
from state.errors import NotSetUp
from state.job import NewJob
from state.paths import Home, get_home
from state.service import Observed, Service
from tasks import kinds
from tasks.plan.gateway import ANSWER_SECONDS

DRAINS = "SELECT id FROM jobs WHERE kind = 'drain' AND service = ? AND state IN ('blocked', 'queued', 'running')"


@click.command()
@options.services
@click.option("--drain", is_flag=True, help=f"Wait up to {ANSWER_SECONDS // 60} minutes for running requests.")
@options.timeout
@options.dry_run
def command(names: Sequence[str], timeout_s: float | None, *, drain: bool, dry_run: bool) -> None:
    """Stop all services, or one.

    SERVICE is a tier, `gateway` or `page`. Running requests get a few seconds to finish. A worker that a command
    started exits too, once no job is left.

    With --drain a tier refuses new requests and exits after its last response; the gateway is stopped last. Run
    `mlxq down` again to stop waiting.
    """
    home = get_home()
    with jobs_client.reading(home) as db:
        rows = service.listing(db)
        if not rows and not stack.tiers(db):
            _stop_alone(home, dry_run=dry_run)
            return
        options.check_services(db, names)
        running = [row for row in rows if (not names or row.name in names) and not is_down(row)]
        if dry_run:
            dry.stops(db, [row.name for row in running], drain=drain)
            return
    with jobs_client.writing(home) as db:
        ids = begin(db, names, running, drain=drain)
    jobs_client.follow(home, jobs_client.these(ids), job_view.view(), timeout_s=timeout_s)
    if not names:
        jobs_client.stop_idle_worker(home)
    render.say(f"Stopped {', '.join(names)}." if names else "All services are stopped.")
    render.next_step(" ".join(["mlxq up", *names]))


def begin(db: Database, names: Sequence[str], running: Sequence[Service], *, drain: bool) -> list[int]:
    """Request that `names`, or all services, stop, and enqueue the jobs for those that run. Return the jobs' ids.

    The request also concerns services that are not running yet, but are about to be started.
    """
    with db.transaction():
        for name in names or [None]:
            ledger.request_down(db, name)
        for row in running:
            if not drain:
                _cancel_drain(db, row.name)
        return jobs_client.enqueue(db, stops(running, drain=drain))


def _cancel_drain(db: Database, name: str) -> None:
    """Have a drain of the service stop waiting; one that has not begun is dropped."""
    for row in db.rows(DRAINS, (name,)):
        ledger.cancel(db, row["id"])


def stops(running: Sequence[Service], *, drain: bool) -> list[NewJob]:
    """Return the jobs that stop services; with `drain`, the gateway and the page after the tiers."""
    if not drain:
        return [_job("stop", row.name) for row in running]
    drains = [_job("drain", row.name) for row in running if row.kind == "engine"]
    labels = [job.label for job in drains]
    return [*drains, *(_job("stop", row.name, labels) for row in running if row.kind != "engine")]


def _job(kind: str, name: str, after: Sequence[str] = ()) -> NewJob:
    return kinds.new(kind, {"service": name}, after=after, label=f"{kind} {name}")


def _stop_alone(home: Home, *, dry_run: bool) -> None:
    """Have a running setup start nothing, and stop the worker that a command such as `mlxq pull` started.

    Raises NotSetUp when there is neither.
    """
    if not dry_run:
        with jobs_client.writing(home) as db:
            ledger.request_down(db, None)
    if dry_run or not jobs_client.stop_idle_worker(home):
        raise NotSetUp("There is no stack to stop.", hint="mlxq setup")
    render.say("There is no stack; the worker was stopped.")


def is_down(row: Service) -> bool:
    """Return whether a service is neither requested to run nor running."""
    return row.desired == "down" and status_report.check(row).state is Observed.STOPPED
