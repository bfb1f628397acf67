"""`mlxq install`."""

from __future__ import annotations

from collections.abc import Mapping

import click

from mlxq import autostart, options, render

WORDS: Mapping[object, str] = {True: "yes", False: "no"}


@click.command()
@click.option("--system", is_flag=True, help="Start at boot, before anyone logs in; needs an administrator.")
@click.option("--status", is_flag=True, help="Show whether autostart is installed, and change nothing.")
@options.dry_run
@options.as_json
def command(*, system: bool, status: bool, dry_run: bool, as_json: bool) -> None:
    """Start the worker at login or boot (launchd, systemd).

    The system also restarts the worker when it exits. Without --system it starts when you log in. --json goes with
    --status.
    """
    if status:
        _show(autostart.status(system=system), as_json=as_json)
        return
    unit = autostart.describe(system=system)
    if dry_run:
        render.say(f"This would be written to {autostart.path(system=system)}, and started:")
        click.echo(autostart.text(unit), nl=False)
        return
    for sentence in autostart.install(unit):
        click.echo(sentence)
    render.next_step("mlxq status")


def _show(status: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        render.data({"autostart": status})
        return
    render.table(
        ["FILE", "INSTALLED", "RUNNING", "SYSTEM SAYS"], [[WORDS.get(value, value) for value in status.values()]]
    )
    if not status["installed"]:
        render.next_step("mlxq install")
