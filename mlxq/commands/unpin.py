"""`mlxq unpin`."""

from __future__ import annotations

import click

from mlxq import options, render
from state import settings
from state.errors import NotFound
from state.paths import get_home


@click.command()
@options.model(installed=True)
@options.dry_run
def command(model: str, *, dry_run: bool) -> None:
    """Allow a pinned model to be unloaded again."""
    home = get_home()
    pinned: list[str] = settings.load(home)["pinned"]
    staying = [name for name in pinned if name.lower() != model.lower()]
    if staying == pinned:
        raise NotFound(
            f"{model} is not pinned; pinned: {', '.join(pinned) or 'nothing'}.", hint="mlxq config get pinned"
        )
    if dry_run:
        click.echo(f"# take {model} out of the setting pinned")
        return
    settings.change(home, "pinned", lambda now: [name for name in now if name.lower() != model.lower()])
    render.say(f"{model} may be stopped again.")
