"""`mlxq down`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from mlxq import dry_run as dry
from mlxq import job_view, jobs_client, options, render, status_report
from state import ledger, service, stack
from state.db import Database
from state.errors import not_set_up
from state.job import NewJob
from state.paths import Home, get_home
from state.service import Observed, Service
from state.stack import Tier
from tasks import kinds, tier_requests
from tasks.plan.gateway import ANSWER_SECONDS


@click.command()
@options.services
@click.option("--drain", is_flag=True, help=f"Wait up to {ANSWER_SECONDS // 60} minutes for running requests.")
@options.timeout
@options.dry_run
def command(names: Sequence[str], timeout_s: float | None, *, drain: bool, dry_run: bool) -> None:
    """Stop all services, or only those named.

    SERVICE is a tier, `gateway`, `page` or `front`. Running requests get a few seconds to finish. A tier that shares
    its engine is taken out of routing while the engine keeps running for the others. A worker that was started by a
    command exits once no job is left.

    With --drain a tier refuses new requests and stops after its last response; the gateway stops last. Run `mlxq down`
    again to stop waiting.
    """
    home = get_home()
    with jobs_client.reading(home) as db:
        rows = service.listing(db)
        if not rows and not stack.tiers(db):
            _stop_alone(home, dry_run=dry_run)
            return
        options.check_services(db, names)
        running = [row for row in rows if not is_down(row)]
        if dry_run:
            _show(db, names, running, drain=drain)
            return
    with jobs_client.writing(home) as db:
        ids = begin(db, names, running, drain=drain)
    jobs_client.follow(home, jobs_client.these(ids), job_view.view(), timeout_s=timeout_s)
    if not names:
        jobs_client.stop_idle_worker(home)
    with jobs_client.reading(home) as db:
        _say(stack.tiers(db), names)
    render.next_step(" ".join(["mlxq up", *names]))


def _show(db: Database, names: Sequence[str], running: Sequence[Service], *, drain: bool) -> None:
    """Print what would be done."""
    tiers = stack.tiers(db)
    effects = tier_requests.stops(tiers, names or everything(tiers, running))
    dry.stops(db, [row.name for row in running if row.name in effects.services], drain=drain)
    for tier in tiers:
        if tier.name in names and tier.engine.name not in effects.services:
            click.echo(f"# take {tier.name} out of routing; its engine runs on")


def _say(tiers: Sequence[Tier], names: Sequence[str]) -> None:
    """Say what was stopped, and who is still served by the engine of a tier that was."""
    shared = {tier.engine.name for tier in tiers if tier.name in names}
    sharing = [tier.name for tier in tiers if tier.engine.name in shared and tier.desired == "up"]
    running = f" The engine runs on for {', '.join(sharing)}." if sharing else ""
    render.say(f"Stopped {', '.join(names)}.{running}" if names else "All services are stopped.")


def everything(tiers: Sequence[Tier], rows: Sequence[Service]) -> list[str]:
    """Return the names of all tiers and services."""
    return list(dict.fromkeys([*(tier.name for tier in tiers), *(row.name for row in rows)]))


def begin(db: Database, names: Sequence[str], running: Sequence[Service], *, drain: bool) -> list[int]:
    """Request that `names`, or all services, stop, and enqueue the jobs for those that run. Return the jobs' ids.

    The request also concerns services that are not running yet, but are about to be started. An engine stays while a
    tier is left that it should serve; then the gateway is told.
    """
    with db.transaction():
        effects = tier_requests.stop(db, names or everything(stack.tiers(db), running))
        for name in effects.services if names else [None]:
            ledger.request_down(db, name)
        stopped = [row for row in running if row.name in effects.services]
        for row in stopped:
            if not drain:
                tier_requests.cancel_drain(db, row.name)
        jobs = stops(stopped, drain=drain)
        return jobs_client.enqueue(db, [*jobs, *(tier_requests.reroute(db) if effects.reroutes else [])])


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
        raise not_set_up(home.root)
    render.say("Nothing is set up; the worker was stopped.")


def is_down(row: Service) -> bool:
    """Return whether a service is neither requested to run nor running."""
    return row.desired == "down" and status_report.check(row).state is Observed.STOPPED
