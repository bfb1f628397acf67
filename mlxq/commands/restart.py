"""`mlxq restart`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from mlxq import dry_run as dry
from mlxq import job_view, jobs_client, options
from mlxq.commands import status
from state import service, stack
from state.db import Database
from state.errors import NotRunning, NotSetUp
from state.job import NewJob
from state.paths import get_home
from tasks import kinds


@click.command()
@options.service("Start this tier anew, or `gateway`, or `page`, and no other.")
@click.option("--purge", is_flag=True, help="Delete the old prompts that the engines keep on disk.")
@options.timeout
@options.dry_run
def command(tier: str | None, timeout_s: float | None, *, purge: bool, dry_run: bool) -> None:
    """Start the stack anew, or one tier of it.

    One service after another, so that the others serve meanwhile; the first one that does not come back ends it.
    What is down stays down.
    """
    place = get_home()
    with jobs_client.reading(place) as db:
        names = wanted(db, tier)
        if dry_run:
            dry.stops(db, names)
            dry.starts(db, place, names)
            return
    with jobs_client.writing(place) as db:
        ids = jobs_client.enqueue(db, restarts(names, purge=purge))
    jobs_client.follow(place, jobs_client.these(ids), job_view.view(), timeout_s=timeout_s)
    status.brief(place)


def wanted(db: Database, tier: str | None) -> list[str]:
    """Give the services to start anew. Raises NotSetUp, NotFound, NotRunning."""
    if not stack.tiers(db):
        raise NotSetUp("There is no stack to start anew.", hint="mlxq setup")
    name = options.named(db, tier) if tier else None
    found = [one.name for one in service.listing(db) if one.desired == "up" and name in (None, one.name)]
    if not found:
        raise NotRunning(f"{name or 'The stack'} is down.", hint=f"mlxq up --tier {name}" if name else "mlxq up")
    return found


def restarts(names: Sequence[str], *, purge: bool = False) -> list[NewJob]:
    """Describe the jobs: each waits for the one before."""
    labels = [f"restart {name}" for name in names]
    more = {"purge": True} if purge else {}
    return [
        kinds.new("restart", {"service": name, **more}, needs=labels[:number][-1:], label=labels[number])
        for number, name in enumerate(names)
    ]
