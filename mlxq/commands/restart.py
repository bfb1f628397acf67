"""`mlxq restart`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from mlxq import dry_run as dry
from mlxq import job_view, jobs_client, options, render
from mlxq.commands import status
from state import service, stack
from state.db import Database
from state.errors import NotRunning
from state.paths import get_home
from state.stack import Tier


@click.command()
@options.services
@click.option("--purge", is_flag=True, help="Also clear the on-disk prompt cache.")
@options.timeout
@options.dry_run
def command(names: Sequence[str], timeout_s: float | None, *, purge: bool, dry_run: bool) -> None:
    """Restart all services, one at a time, or only those named.

    SERVICE is a tier, `gateway`, `page` or `front`. Tiers that share an engine restart together. The others keep
    serving meanwhile; the first service that does not become ready ends the command. Stopped services stay stopped.
    """
    from tasks import stack_jobs  # it brings the catalog along

    home = get_home()
    with jobs_client.reading(home) as db:
        services = requested(db, names)
        _say_shared(stack.tiers(db), names)
        if dry_run:
            dry.stops(db, services)
            dry.starts(db, home, services)
            return
    with jobs_client.writing(home) as db:
        ids = jobs_client.enqueue(db, stack_jobs.restart_in_turn(services, purge=purge))
    jobs_client.follow(home, jobs_client.these(ids), job_view.view(), timeout_s=timeout_s)
    status.brief(home)


def requested(db: Database, names: Sequence[str] = ()) -> list[str]:
    """Return the services to restart: those that are requested to run. Raises NotSetUp, NotFound, NotRunning."""
    tiers = stack.require(db)
    options.check_services(db, names)
    running = [row.name for row in service.listing(db) if row.desired == "up"]
    if not running:
        raise NotRunning("All services are stopped.", hint=" ".join(["mlxq up", *names]))
    stopped = {tier.name for tier in tiers if tier.desired == "down"}
    for name in names:
        if name in stopped or stack.services(tiers, [name])[0] not in running:
            raise NotRunning(f"{name} is stopped.", hint=f"mlxq up {name}")
    services = stack.services(tiers, names)
    return [name for name in running if not names or name in services]


def _say_shared(tiers: Sequence[Tier], names: Sequence[str]) -> None:
    """Say which tiers restart although they were not named."""
    engines = {tier.engine.name for tier in tiers if tier.name in names}
    sharing = [tier.name for tier in tiers if tier.engine.name in engines and tier.name not in names]
    if sharing:
        render.say(f"Restarts with the same engine: {', '.join(sharing)}.")
