"""`mlxq pin`."""

from __future__ import annotations

import click

from mlxq import jobs_client, options, render
from mlxq.commands import load
from state import on_demand, settings
from state.errors import UsageProblem
from state.paths import Home, get_home
from tasks.on_demand import requests


@click.command()
@options.model(installed=True)
@options.dry_run
def command(model: str, *, dry_run: bool) -> None:
    """Keep a model in memory once it is loaded.

    It is unloaded neither when idle nor to make room, only by `mlxq unload`. The tiers of the stack always stay loaded,
    unless the setting tier-idle-stop lets them sleep.
    """
    home = get_home()
    if dry_run:
        click.echo(f"# add {model} to the setting pinned")
        return
    name = canonical(home, model)
    settings.change(home, "pinned", lambda pinned: list(dict.fromkeys([*pinned, name])))
    render.say(f"{name} stays loaded once it is.")
    render.next_step(f"mlxq load {name}")


def canonical(home: Home, model: str) -> str:
    """Return the name that a model on this disk is listed by. Raises NotFound, UsageProblem for a tier's."""
    with jobs_client.writing(home) as db:
        engine = load.find(db, home, model)
        if requests.never_sleeps(db, engine):
            raise UsageProblem(f"{model} belongs to the stack, which stays loaded.", hint="mlxq status")
        entry = on_demand.model(db, engine)
    return entry.model if entry else model
