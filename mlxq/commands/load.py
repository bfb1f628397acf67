"""`mlxq load`."""

from __future__ import annotations

import click

from mlxq import job_view, jobs_client, options, render
from state.db import Database
from state.errors import NotFound
from state.job import JobState
from state.paths import Home, get_home
from tasks.on_demand import requests


@click.command()
@options.model(installed=True)
@click.option("--keep", metavar="TIME", help="Unload it after this long without a request, such as 10m; -1 = never.")
@options.timeout
@options.dry_run
def command(model: str, *, keep: str | None, timeout_s: float | None, dry_run: bool) -> None:
    """Load a model before it is requested.

    MODEL is a catalog id, a repository or a folder of weights on this disk, or a sleeping tier. If memory is needed,
    the least recently used models are unloaded first; a running answer is never cut off.
    """
    from tasks.plan import on_demand as plan

    try:
        keep_s = None if keep is None else plan.seconds(keep)
    except ValueError as problem:
        raise click.BadParameter(f"{keep!r} is no time such as 10m, 1h30m, 90 or -1.", param_hint="--keep") from problem
    home = get_home()
    if dry_run:
        with jobs_client.reading(home) as db:
            click.echo(f"# make room for {requests.find(db, model)}, start it, and route requests to it")
        return
    with jobs_client.writing(home) as db:
        engine = find(db, home, model)
        if keep_s is not None:
            requests.keep(db, engine, keep_s)
        number = requests.load(db, engine)
    ended = jobs_client.follow(home, jobs_client.these([number]), job_view.view(), timeout_s=timeout_s)
    if all(job.state is JobState.SUCCEEDED for job in ended):
        render.say(f"{model} is loaded.")


def find(db: Database, home: Home, model: str) -> str:
    """Return the engine of a model, looking at the disk where it is not known yet. Raises NotFound, NotSetUp."""
    try:
        return requests.find(db, model)
    except NotFound:
        from tasks.on_demand import inventory

        inventory.refresh(db, home)
    return requests.find(db, model)
