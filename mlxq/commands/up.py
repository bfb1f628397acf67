"""`mlxq up`."""

from __future__ import annotations

import click

from mlxq import ask, dry, options, watch
from mlxq.commands import status
from state import stack
from state.errors import NotSetUp
from state.job import New
from state.paths import home
from tasks import kinds


@click.command()
@options.tier("Bring up this tier alone.")
@options.timeout
@options.dry_run
def command(tier: str | None, timeout_s: float | None, *, dry_run: bool) -> None:
    """Bring the stack up, or one tier of it.

    What is up and right is left alone.
    """
    place = home()
    with ask.reading(place) as db:
        tiers = [each.name for each in stack.tiers(db)]
        if not tiers:
            raise NotSetUp("There is no stack to bring up.", hint="mlxq setup")
        names = [stack.tier(db, tier).name] if tier else tiers
        if dry_run:
            dry.starts(db, place, names if tier else [*names, "gateway"])
            return
    with ask.writing(place) as db:
        ids = ask.put(db, starts(names, whole=tier is None))
    ask.follow(place, ask.these(ids), watch.view(), timeout_s=timeout_s)
    status.brief(place)


def starts(tiers: list[str], *, whole: bool) -> list[New]:
    """Describe the jobs that bring tiers up; for the whole stack also the gateway, configured anew."""
    if not whole:
        return [start(name) for name in tiers]
    configure = kinds.new("configure")
    return [configure, *(start(name, after=["configure"]) for name in [*tiers, "gateway"])]


def start(name: str, after: list[str] | None = None) -> New:
    """Describe the job that brings one service up."""
    return kinds.new("start", {"service": name}, needs=after or [], label=f"start {name}")
