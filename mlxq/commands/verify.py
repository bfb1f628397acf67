"""`mlxq verify`."""

from __future__ import annotations

import click

from mlxq import job_view, jobs_client, local_models, options
from mlxq.local_models import Installed
from state.errors import NotFound
from state.job import Job
from state.paths import get_home
from tasks import kinds, recommend


@click.command()
@options.model(here=True, required=False)
@options.timeout
@options.as_json
def command(model: str | None, *, timeout_s: float | None, as_json: bool) -> None:
    """Hash the weights of MODEL, or all, again; what is damaged is fetched anew."""
    place = get_home()
    known = recommend.known(place)
    with jobs_client.reading(place) as db:
        there = local_models.listing(place, db, known)
    found = [one for one in (local_models.choose(model, there, known) if model else there) if one.source]
    if not found:
        raise NotFound(_nothing(model, there), hint="mlxq pull MODEL")
    with jobs_client.writing(place) as db:
        ids = jobs_client.enqueue(
            db, [kinds.new("verify_weights", {"folder": str(one.folder)}, label=one.folder.name) for one in found]
        )
    ended = jobs_client.follow(place, jobs_client.with_chains(ids), job_view.view(as_json=as_json), timeout_s=timeout_s)
    if not as_json:
        _tell(found, [job for job in ended if job.id in ids])


def _nothing(model: str | None, there: list[Installed]) -> str:
    """Say why there is nothing to hash."""
    if there:
        return f"{model or 'What is here'} was put there by hand: there are no hashes to compare with."
    return "No weights are here."


def _tell(found: list[Installed], checks: list[Job]) -> None:
    damaged = [job for job in checks if job.result and job.result["damaged"]]
    for job in damaged:
        click.echo(f"{job.args['folder']}: damaged and fetched again: {', '.join(job.result['damaged'])}")
    whole = len(found) - len(damaged)
    click.echo(f"{whole} of {len(found)} {'folder is' if whole == 1 else 'folders are'} right in every byte.")
