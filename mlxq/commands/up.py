"""`mlxq up`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from catalog import units
from mlxq import dry_run as dry
from mlxq import job_view, jobs_client, options, render
from mlxq.commands import status
from state import safe_mode, stack
from state.db import Database
from state.paths import Home, get_home
from state.safe_mode import SafeMode
from tasks.gateway.admission import poison_requests


@click.command()
@options.services
@options.timeout
@options.dry_run
def command(names: Sequence[str], timeout_s: float | None, *, dry_run: bool) -> None:
    """Start all services, or only those named.

    SERVICE is a tier, `gateway`, `page` or `front`. Running services are left alone. Also ends the safe mode of these
    services, allows requests that crashed them before, and says so.
    """
    from tasks import stack_jobs  # it brings the catalog along

    home = get_home()
    with jobs_client.reading(home) as db:
        tiers = stack.require(db)
        options.check_services(db, names)
        everything = stack_jobs.everything(db)
        if dry_run:
            dry.starts(db, home, stack.services(tiers, names or everything), configures=not names)
            return
    with jobs_client.writing(home) as db:
        before = safe_mode.listing(db)
        ids = begin(db, names, everything)
        _say_lifted(home, before, safe_mode.listing(db))
    jobs_client.follow(home, jobs_client.these(ids), job_view.view(), timeout_s=timeout_s)
    status.brief(home)


def begin(db: Database, names: Sequence[str], everything: Sequence[str]) -> list[int]:
    """Record that `names`, or `everything`, should be served, and enqueue the jobs; return their ids."""
    from tasks import stack_jobs

    with db.transaction():
        if not names:
            return jobs_client.enqueue(db, stack_jobs.start_all(db, everything))
        return jobs_client.enqueue(db, stack_jobs.start_named(db, names))


def _say_lifted(home: Home, before: Mapping[str, SafeMode], now: Mapping[str, SafeMode]) -> None:
    """Lift the refusals of requests, and say what was lifted."""
    for name, mode in before.items():
        if mode.level and name not in now:
            render.say(f"Lifted the safe mode of {name}: {mode.sentence}")
    for tiers in poison_requests.lift(home):
        render.say(f"Lifted the refusal of a request during which {units.listed(tiers)} crashed.")
