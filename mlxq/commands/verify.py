"""`mlxq verify`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from mlxq import job_view, jobs_client, local_models, options
from mlxq.local_models import Installed
from state.errors import NotFound
from state.job import Job
from state.paths import get_home
from tasks import kinds, recommend


@click.command()
@options.model(installed=True, required=False)
@options.timeout
@options.as_json
def command(model: str | None, *, timeout_s: float | None, as_json: bool) -> None:
    """Re-check model files and re-download damaged ones.

    Compares the hash of every file of MODEL, or of all models.
    """
    home = get_home()
    local_models.require_writable(home)
    models = recommend.all_models(home)
    with jobs_client.reading(home) as db:
        installed = local_models.listing(home, db, models)
    chosen = [row for row in (local_models.choose(model, installed, models) if model else installed) if row.source]
    if not chosen:
        raise NotFound(_nothing(model, installed), hint="mlxq pull MODEL")
    with jobs_client.writing(home) as db:
        ids = jobs_client.enqueue(
            db, [kinds.new("verify_weights", {"folder": str(row.folder)}, label=row.folder.name) for row in chosen]
        )
    ended = jobs_client.follow(home, jobs_client.with_chains(ids), job_view.view(as_json=as_json), timeout_s=timeout_s)
    if not as_json:
        _summarize(len(chosen), [job for job in ended if job.id in ids])


def _nothing(model: str | None, installed: Sequence[Installed]) -> str:
    """Return why there is nothing to check."""
    if installed:
        return f"{model or 'What is installed'} was not downloaded by mlxq: there are no hashes to compare with."
    return "No models are installed."


def _summarize(count: int, checks: Sequence[Job]) -> None:
    """Print what was damaged; by now it was downloaded again, as the repair is part of the chain that was followed."""
    damaged = [job for job in checks if job.result and job.result["damaged"]]
    for job in damaged:
        click.echo(f"{job.args['folder']}: repaired {', '.join(job.result['damaged'])}")
    repaired = f", {len(damaged)} repaired" if damaged else ""
    click.echo(f"{count} {'model' if count == 1 else 'models'} checked{repaired}; all files are intact.")
