"""`mlxq unload`."""

from __future__ import annotations

import click

from mlxq import job_view, jobs_client, options, render
from mlxq.commands import load
from state.paths import get_home
from tasks.on_demand import requests


@click.command()
@options.model(installed=True)
@options.timeout
@options.dry_run
def command(model: str, *, timeout_s: float | None, dry_run: bool) -> None:
    """Unload a model until it is requested again.

    Running answers finish first. Tiers that the stack keeps loaded are stopped with `mlxq down`.
    """
    home = get_home()
    if dry_run:
        with jobs_client.reading(home) as db:
            click.echo(f"# stop {requests.find(db, model)} after its last answer; the next request loads it again")
        return
    with jobs_client.writing(home) as db:
        number = requests.unload(db, load.find(db, home, model))
    jobs_client.follow(home, jobs_client.these([number]), job_view.view(), timeout_s=timeout_s)
    render.say(f"{model} sleeps; the next request loads it.")
