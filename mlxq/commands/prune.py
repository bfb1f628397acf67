"""`mlxq prune`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from mlxq import jobs_client, local_models, render
from mlxq.commands import rm
from mlxq.local_models import Installed
from state.paths import get_home
from tasks import recommend
from tasks.weights import staging


@click.command()
@click.option("--unused", is_flag=True, help="Also whole weights that no tier serves.")
@click.option("--dry-run", is_flag=True, help="Show what would go, delete nothing.")
@click.option("--yes", is_flag=True, help="Ask nothing.")
def command(*, unused: bool, dry_run: bool, yes: bool) -> None:
    """Delete weights that are of no use: torn, damaged, or of an older revision."""
    place = get_home()
    with jobs_client.reading(place) as db:
        there = local_models.listing(place, db, recommend.known(place))
    found = leavings(there, unused=unused)
    if not found:
        render.say("Nothing is left over.")
    elif dry_run:
        rm.show(found)
    else:
        rm.remove(place, found, force=False, yes=yes)


def leavings(there: Sequence[Installed], *, unused: bool) -> list[Installed]:
    """Give what no tier serves and nobody fetches: partial, damaged, an older revision of weights that are here anew.

    `unused`: also whole weights. What a person put there by hand is theirs to delete.
    """
    return [one for one in there if _free(one) and (unused or _useless(one, there))]


def _free(one: Installed) -> bool:
    """Tell whether a folder may go: mlxq made it, no tier serves it and no fetch is at it."""
    return bool(one.source or one.state == "partial") and not one.used_by and not _in_the_making(one)


def _useless(one: Installed, there: Sequence[Installed]) -> bool:
    return one.state in {"partial", "damaged"} or _older(one, there)


def _in_the_making(one: Installed) -> bool:
    return one.state == "partial" and staging.held(one.folder.with_name(one.folder.name.removesuffix(staging.SUFFIX)))


def _older(one: Installed, there: Sequence[Installed]) -> bool:
    """Tell whether the same source is here in a newer revision."""
    return bool(one.source) and any(
        other.source == one.source and other.pulled > one.pulled and other.state in {"valid", "loadable"}
        for other in there
    )
