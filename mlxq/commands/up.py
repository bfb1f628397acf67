"""`mlxq up`."""

from __future__ import annotations

import click

from mlxq import dry_run as dry
from mlxq import job_view, jobs_client, options
from mlxq.commands import status
from state import stack
from state.errors import NotSetUp
from state.job import NewJob
from state.paths import get_home
from tasks import kinds


@click.command()
@options.service("Bring up this tier alone, or `gateway`, or `page`.")
@options.timeout
@options.dry_run
def command(tier: str | None, timeout_s: float | None, *, dry_run: bool) -> None:
    """Bring the stack up, or one tier of it.

    What is up and right is left alone.
    """
    from tasks import stack_jobs  # it brings the catalog along

    place = get_home()
    with jobs_client.reading(place) as db:
        tiers = [each.name for each in stack.tiers(db)]
        if not tiers:
            raise NotSetUp("There is no stack to bring up.", hint="mlxq setup")
        names = [options.named(db, tier)] if tier else tiers
        if dry_run:
            dry.starts(db, place, names if tier else [*names, *stack_jobs.auxiliary_services(place)])
            return
    with jobs_client.writing(place) as db:
        whole = [*stack_jobs.retire(stack_jobs.leaving(db)), *starts([*names, *stack_jobs.auxiliary_services(place)])]
        ids = jobs_client.enqueue(db, [start(names[0])] if tier else whole)
    jobs_client.follow(place, jobs_client.these(ids), job_view.view(), timeout_s=timeout_s)
    status.brief(place)


def starts(services: list[str]) -> list[NewJob]:
    """Describe the jobs that bring the whole stack up, its gateway configured anew."""
    return [kinds.new("configure"), *(start(name, after=["configure"]) for name in services)]


def start(name: str, after: list[str] | None = None) -> NewJob:
    """Describe the job that brings one service up."""
    return kinds.new("start", {"service": name}, needs=after or [], label=f"start {name}")
