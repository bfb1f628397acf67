"""`mlxq worker`."""

from __future__ import annotations

import click

from state.paths import get_home


@click.command()
def command() -> None:
    """Run the worker in the foreground.

    One worker runs per home. launchd and systemd run this command; commands that need a worker start one in the
    background. The log goes to stderr as JSON lines.
    """
    from tasks import worker

    worker.run(get_home())
