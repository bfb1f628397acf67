"""`mlxq uninstall`."""

from __future__ import annotations

import click

from mlxq import autostart


@click.command()
@click.option("--system", is_flag=True, help="Remove the worker that was installed with --system.")
def command(*, system: bool) -> None:
    """Undo install; the services go on."""
    for sentence in autostart.uninstall(system=system):
        click.echo(sentence)
