"""`mlxq worker`."""

from __future__ import annotations

import click

from state.paths import get_home


@click.command()
def command() -> None:
    """Run the worker here, in the foreground.

    There is one worker a home. launchd and systemd run this too; commands that need a worker start one in the
    background by themselves. Its log goes to stderr as JSON lines.
    """
    from tasks import worker

    worker.run(get_home())
