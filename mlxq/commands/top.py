"""`mlxq top`."""

from __future__ import annotations

import sys
from contextlib import suppress

import click

from mlxq import jobs_client, render
from mlxq.terminal import raw
from state import secrets
from state.paths import get_home


@click.command()
@click.option("--once", is_flag=True, help="Print the view once and exit.")
def command(*, once: bool) -> None:
    """Show a live view of tiers, requests and jobs.

    The arrow keys select a service, `r` restarts it, `l` shows its log, `?` explains the view. `q` and Ctrl-C close it;
    services and jobs continue.
    """
    from mlxq.top import draw, session

    home = get_home()
    key = secrets.read(home.secrets).get(secrets.TIER, "")
    with jobs_client.reading(home) as db:
        if once or not sys.stdout.isatty():
            from rich.console import Console

            console = Console(file=raw(sys.stdout), highlight=False, no_color=render.refuses_color())
            console.print(draw.draw(session.take(db, key), console.width))
            return
        with suppress(KeyboardInterrupt):
            session.TopSession(db, home, key).run()
