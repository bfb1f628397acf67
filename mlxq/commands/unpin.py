"""`mlxq unpin`."""

from __future__ import annotations

from contextlib import suppress

import click

from mlxq import jobs_client, options, render
from state import on_demand, settings
from state.errors import NotFound, NotSetUp
from state.paths import Home, get_home


@click.command()
@options.model(installed=True)
@options.dry_run
def command(model: str, *, dry_run: bool) -> None:
    """Allow a pinned model to be unloaded again."""
    home = get_home()
    pinned: list[str] = settings.load(home)["pinned"]
    names = _names(home, model)
    if not any(on_demand.folded(name) in names for name in pinned):
        raise NotFound(
            f"{model} is not pinned; pinned: {', '.join(pinned) or 'nothing'}.", hint="mlxq config get pinned"
        )
    if dry_run:
        click.echo(f"# take {model} out of the setting pinned")
        return
    settings.change(home, "pinned", lambda now: [name for name in now if on_demand.folded(name) not in names])
    render.say(f"{model} may be stopped again.")


def _names(home: Home, model: str) -> set[str]:
    """Return every name of a model, folded; of one that is gone from the disk the one that was typed."""
    names: tuple[str, ...] = (model,)
    with suppress(NotSetUp), jobs_client.reading(home) as db:
        if entry := on_demand.model(db, model):
            names += on_demand.names(entry)
    return set(map(on_demand.folded, names))
