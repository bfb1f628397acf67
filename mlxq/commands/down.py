"""`mlxq down`."""

from __future__ import annotations

import click

from mlxq import ask, dry, options, render, report, watch
from state import service, stack
from state.errors import NotSetUp
from state.paths import Home, home
from state.service import Observed, Service
from tasks import kinds


@click.command()
@options.tier("Put down this tier alone.")
@options.timeout
@options.dry_run
def command(tier: str | None, timeout_s: float | None, *, dry_run: bool) -> None:
    """Put the stack down, or one tier of it.

    Requests that run may end first. A worker that a command started ends too, once nothing is left to do.
    """
    place = home()
    with ask.reading(place) as db:
        rows = service.listing(db)
        if not rows and not stack.tiers(db):
            _without_a_stack(place, dry_run=dry_run)
            return
        name = stack.tier(db, tier).name if tier else None
        names = [each.name for each in rows if name in (None, each.name) and not is_down(each)]
        if dry_run:
            dry.stops(db, names)
            return
    with ask.writing(place) as db:
        ids = ask.put(db, [kinds.new("stop", {"service": name}, label=f"stop {name}") for name in names])
    ask.follow(place, ask.these(ids), watch.view(), timeout_s=timeout_s)
    if not tier:
        ask.stop_idle_worker(place)
    render.say(f"{tier or 'The stack'} is down.")
    render.next_step(f"mlxq up --tier {tier}" if tier else "mlxq up")


def _without_a_stack(place: Home, *, dry_run: bool) -> None:
    """End the worker that a command such as `mlxq pull` started. Raises NotSetUp when there is none either."""
    if dry_run or not ask.stop_idle_worker(place):
        raise NotSetUp("There is no stack to put down.", hint="mlxq setup")
    render.say("There is no stack; the worker has ended.")


def is_down(row: Service) -> bool:
    """Tell whether a service is neither wanted nor there."""
    return row.wanted == "down" and report.check(row) is Observed.STOPPED
