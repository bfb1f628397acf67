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

DRAINS = "SELECT id FROM jobs WHERE kind = 'drain' AND unique_key = ? AND state IN ('blocked', 'queued', 'running')"


@click.command()
@options.service("Put down this tier alone, or `gateway`, or `page`.")
@click.option(
    "--drain", is_flag=True, help=f"Let every request that runs end first, for {ANSWER_SECONDS // 60} minutes at most."
)
@options.timeout
@options.dry_run
def command(tier: str | None, timeout_s: float | None, *, drain: bool, dry_run: bool) -> None:
    """Put the stack down, or one tier of it.

    Requests that run have some seconds to end. A worker that a command started ends too, once nothing is left to do.

    With --drain a tier refuses new requests and goes down after its last answer; the gateway goes last. `mlxq down`
    ends the waiting.
    """
    place = get_home()
    with jobs_client.reading(place) as db:
        rows = service.listing(db)
        if not rows and not stack.tiers(db):
            _without_a_stack(place, dry_run=dry_run)
            return
        name = options.named(db, tier) if tier else None
        up = [each for each in rows if name in (None, each.name) and not is_down(each)]
        if dry_run:
            dry.stops(db, [each.name for each in up], drain=drain)
            return
    with jobs_client.writing(place) as db:
        ids = begin(db, up, drain=drain)
    jobs_client.follow(place, jobs_client.these(ids), job_view.view(), timeout_s=timeout_s)
    if not tier:
        jobs_client.stop_idle_worker(place)
    render.say(f"{tier or 'The stack'} is down.")
    render.next_step(f"mlxq up --tier {tier}" if tier else "mlxq up")


def begin(db: Database, up: Sequence[Service], *, drain: bool) -> list[int]:
    """Write the wish down and put its jobs in, all in one step; give their ids.

    A job of the watchdog that is under way already has no wish of its own.
    """
    with db.transaction():
        for each in up:
            service.set_desired(db, each.name, "down")
            if not drain:
                _cut_short(db, each.name)
        return jobs_client.enqueue(db, ends(up, drain=drain))


def _cut_short(db: Database, name: str) -> None:
    """Tell a drain of the service to wait no longer; one that has not begun is dropped."""
    for row in db.rows(DRAINS, (kinds.new("drain", {"service": name}).unique_key,)):
        ledger.cancel(db, row["id"])


def ends(up: Sequence[Service], *, drain: bool) -> list[NewJob]:
    """Describe the jobs that end services; with `drain`, what brings the tiers their requests goes after them."""
    if not drain:
        return [_end("stop", each.name) for each in up]
    drains = [_end("drain", each.name) for each in up if each.kind == "engine"]
    after = [each.label for each in drains]
    return [*drains, *(_end("stop", each.name, after) for each in up if each.kind != "engine")]


def _end(kind: str, name: str, after: Sequence[str] = ()) -> NewJob:
    return kinds.new(kind, {"service": name}, after=after, label=f"{kind} {name}")


def _without_a_stack(place: Home, *, dry_run: bool) -> None:
    """End the worker that a command such as `mlxq pull` started. Raises NotSetUp when there is none either."""
    if dry_run or not jobs_client.stop_idle_worker(place):
        raise NotSetUp("There is no stack to put down.", hint="mlxq setup")
    render.say("There is no stack; the worker has ended.")


def is_down(row: Service) -> bool:
    """Tell whether a service is neither wanted nor there."""
    return row.desired == "down" and status_report.check(row) is Observed.STOPPED
