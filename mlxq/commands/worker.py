"""`mlxq worker`."""

from __future__ import annotations

import click

from mlxq import render
from state import files
from state.paths import Home, get_home


@click.command()
@click.option("--wait", is_flag=True, help="Wait for a worker that is running to exit, then take over.")
def command(*, wait: bool) -> None:
    """Run the worker in the foreground.

    One worker runs per home. launchd and systemd run this command with --wait; commands that need a worker start one in
    the background. The log goes to stderr as JSON lines.
    """
    home = get_home()
    if wait:
        _await_turn(home)
    from tasks import worker

    worker.run(home)


def _await_turn(home: Home) -> None:
    """Wait until no worker of this home runs; before the imports, so that it costs little memory for a long time."""
    home.make()
    if files.locked(home.worker_lock):
        render.say(f"A worker of {home.root} is running; waiting for it to exit.")
        files.await_unlocked(home.worker_lock)
