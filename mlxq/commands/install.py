"""`mlxq install`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import click

from mlxq import autostart, options, render

WORDS: Mapping[bool, str] = {True: "yes", False: "no"}


@click.command()
@click.option("--system", is_flag=True, help="Start at boot, before anyone logs in; needs an administrator.")
@click.option("--status", is_flag=True, help="Show whether autostart is installed; change nothing.")
@options.dry_run
@options.as_json
def command(*, system: bool, status: bool, dry_run: bool, as_json: bool) -> None:
    """Start the worker at login or boot (launchd, systemd).

    The system also restarts the worker when it exits. Without --system it starts when you log in. --json requires
    --status.
    """
    unit = autostart.describe(system=system)
    if status:
        _show(autostart.status(unit), as_json=as_json)
        return
    if dry_run:
        render.say(f"This would be written to {autostart.path(unit)}, and started:")
        click.echo(autostart.text(unit), nl=False)
        return
    for sentence in autostart.install(unit):
        click.echo(sentence)
    render.next_step("mlxq status")


def _show(status: autostart.AutostartStatus, *, as_json: bool) -> None:
    if as_json:
        render.data({"autostart": asdict(status)})
        return
    says = " ".join(filter(None, (status.domain, status.message or status.state)))
    render.table(
        ["FILE", "INSTALLED", "RUNNING", "PID", "SYSTEM SAYS"],
        [[status.path, WORDS[status.installed], WORDS[status.running], status.pid or "-", says]],
    )
    if not status.installed:
        render.next_step("mlxq install")
    elif not status.running:
        render.next_step("mlxq logs worker")
