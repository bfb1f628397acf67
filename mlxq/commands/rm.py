"""`mlxq rm`."""

from __future__ import annotations

import shlex

import click

from catalog import units
from mlxq import confirm, job_view, jobs_client, local_models, options, render
from mlxq.local_models import Installed
from state.errors import Busy
from state.job import JobState
from state.paths import Home, get_home
from tasks import kinds, recommend


@click.command()
@options.model(installed=True)
@click.option("--quant", metavar="NAME", help="Only the weights in this quant.")
@click.option("--force", is_flag=True, help="Delete even if in use.")
@options.dry_run
@options.yes
def command(model: str, *, quant: str | None, force: bool, dry_run: bool, yes: bool) -> None:
    """Delete a model."""
    home = get_home()
    local_models.require_writable(home)
    models = recommend.all_models(home)
    with jobs_client.reading(home) as db:
        chosen = local_models.choose(model, local_models.listing(home, db, models), models, quant)
    if not force:
        _refuse_served(chosen)
    if dry_run:
        show(chosen)
        return
    remove(home, chosen, force=force, yes=yes)


def _refuse_served(chosen: list[Installed]) -> None:
    """Refuse, before the confirmation, what the job would refuse. Raises Busy."""
    if served := next((row for row in chosen if row.used_by), None):
        name, tiers = served.folder.name, units.listed(served.used_by)
        raise Busy(
            f"{name} is served by {tiers}.",
            done=f"Nothing was deleted. Without it, {tiers} could not start again until `mlxq setup`.",
            hint=f"mlxq rm {shlex.quote(name)} --force",
        )


def remove(home: Home, chosen: list[Installed], *, force: bool, yes: bool, listed: bool = True) -> None:
    """Show what would be deleted, ask, and delete it. Raises UsageProblem where stdin is no terminal, Busy.

    `listed`: False where the caller prints the list itself.
    """
    if listed:
        show(chosen)
    confirm.deletion(yes=yes)
    with jobs_client.writing(home) as db:
        ids = jobs_client.enqueue(db, [_job(row, force=force) for row in chosen])
    ended = jobs_client.follow(home, jobs_client.these(ids), job_view.view())
    freed = sum(job.result["bytes"] for job in ended if job.state is JobState.SUCCEEDED)
    render.say(f"Deleted {units.files(freed)}.")


def _job(row: Installed, *, force: bool) -> kinds.NewJob:
    return kinds.new("remove_weights", {"folder": str(row.folder), "force": force}, label=row.folder.name)


def show(chosen: list[Installed]) -> None:
    """List folders with their sizes."""
    render.table(
        ["SIZE", "STATE", "USED BY", "FOLDER"],
        [[units.files(row.size), row.state, " ".join(row.used_by), row.folder.name] for row in chosen],
        right=(0,),
    )
