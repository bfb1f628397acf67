"""`mlxq install`."""

from __future__ import annotations

from collections.abc import Mapping

import click

from mlxq import autostart, options, render


@click.command()
@click.option("--system", is_flag=True, help="Run it before anybody logs in; needs the administrator.")
@click.option("--status", is_flag=True, help="Tell whether it is installed, and change nothing.")
@options.dry_run
def command(*, system: bool, status: bool, dry_run: bool) -> None:
    """Have the system keep the worker alive, also after a reboot.

    launchd does so on macOS, systemd on Linux. Without --system it begins when you log in.
    """
    if status:
        _tell(autostart.status(system=system))
        return
    unit = autostart.place(system=system)
    if dry_run:
        render.say(f"This would be written to {autostart.path(system=system)}, and started:")
        click.echo(autostart.text(unit), nl=False)
        return
    for sentence in autostart.install(unit):
        click.echo(sentence)
    render.next_step("mlxq status")


WORDS: Mapping[object, str] = {True: "yes", False: "no"}


def _tell(found: dict[str, object]) -> None:
    render.table(
        ["FILE", "INSTALLED", "LOADED", "THE SYSTEM SAYS"], [[WORDS.get(each, each) for each in found.values()]]
    )
    if not found["installed"]:
        render.next_step("mlxq install")
