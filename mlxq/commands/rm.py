"""`mlxq rm`."""

from __future__ import annotations

import sys

import click

from catalog import units
from mlxq import job_view, jobs_client, local_models, options, render
from mlxq.local_models import Installed
from state.errors import Busy, UsageProblem
from state.job import JobState
from state.paths import Home, get_home
from tasks import kinds, recommend


@click.command()
@options.model(here=True)
@click.option("--quant", metavar="NAME", help="Only the weights in this quant.")
@click.option("--force", is_flag=True, help="Also while a tier serves them.")
@click.option("--yes", is_flag=True, help="Ask nothing.")
def command(model: str, *, quant: str | None, force: bool, yes: bool) -> None:
    """Delete the weights of MODEL from this machine."""
    place = get_home()
    known = recommend.known(place)
    with jobs_client.reading(place) as db:
        found = local_models.choose(model, local_models.listing(place, db, known), known, quant)
    if not force:
        _refuse_served(found)
    remove(place, found, force=force, yes=yes)


def _refuse_served(found: list[Installed]) -> None:
    """Refuse, before anything is asked, what the job would refuse. Raises Busy."""
    if served := next((one for one in found if one.used_by), None):
        name = served.folder.name
        raise Busy(f"{name} is served by {' and '.join(served.used_by)}.", hint=f"mlxq rm {name} --force")


def remove(place: Home, found: list[Installed], *, force: bool, yes: bool) -> None:
    """Show what would go, ask, and have it deleted. Raises UsageProblem where nobody can answer, Busy."""
    show(found)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageProblem("This deletes files, and here is nobody to ask.", hint="Add --yes.")
        click.confirm("Delete", abort=True, err=True)
    with jobs_client.writing(place) as db:
        ids = jobs_client.enqueue(db, [_job(one, force=force) for one in found])
    ended = jobs_client.follow(place, jobs_client.these(ids), job_view.view())
    freed = sum(job.result["bytes"] for job in ended if job.state is JobState.SUCCEEDED)
    render.say(f"Deleted; {units.files(freed)} are free again.")


def _job(one: Installed, *, force: bool) -> kinds.NewJob:
    return kinds.new("remove_weights", {"folder": str(one.folder), "force": force}, label=one.folder.name)


def show(found: list[Installed]) -> None:
    """List folders with their sizes."""
    render.table(
        ["SIZE", "STATE", "USED BY", "FOLDER"],
        [[units.files(one.size), one.state, " ".join(one.used_by), one.folder.name] for one in found],
        right=(0,),
    )
