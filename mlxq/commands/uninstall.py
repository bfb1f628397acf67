"""`mlxq uninstall`."""

from __future__ import annotations

import click

from mlxq import autostart


@click.command()
@click.option("--system", is_flag=True, help="Remove what was installed with --system.")
def command(*, system: bool) -> None:
    """Remove the autostart entry; services keep running."""
    for sentence in autostart.uninstall(autostart.describe(system=system)):
        click.echo(sentence)
