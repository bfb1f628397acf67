"""`mlxq watch`."""

from __future__ import annotations

import click

from mlxq import jobs_client, render, service_events, worker_process
from mlxq.commands import status
from mlxq.status_report import StatusReport
from state import settings, worker
from state.paths import Home, get_home

LATEST = 5
"""How many events are shown under the table."""


@click.command()
@click.option(
    "--interval",
    type=click.IntRange(1, 3600),
    metavar="SECONDS",
    help="Seconds between two probes (setting watch-interval).",
)
@click.option(
    "--max-restarts",
    type=click.IntRange(1, 100),
    metavar="N",
    help="Exits in ten minutes that make a crash loop (setting max-restarts).",
)
@click.option(
    "--restart-delay",
    type=click.IntRange(1, 60),
    metavar="SECONDS",
    help="Seconds before the second restart in a row (setting restart-delay).",
)
@click.option("--daemon", is_flag=True, help="Start the worker in the background and return.")
def command(interval: int | None, max_restarts: int | None, restart_delay: int | None, *, daemon: bool) -> None:
    """Run the watchdog in the foreground and show service states.

    Every worker has a watchdog; this command starts a worker for as long as it runs, unless one is running already. The
    options permanently change the settings of the same names.
    """
    home = get_home()
    status.report(home)
    chosen = {"watch-interval": interval, "max-restarts": max_restarts, "restart-delay": restart_delay}
    for name, value in chosen.items():
        if value is not None:
            settings.write(home, name, value)
    starter = jobs_client.WorkerStarter(home)
    starter.ensure()
    if daemon:
        if starter.started is None:
            render.say("A worker is already running.")
        render.next_step("mlxq status")
        return
    try:
        status.live(home, lambda report: _show(home, report), starter.ensure)
    finally:
        _stop_worker(home, starter)


def _show(home: Home, report: StatusReport) -> None:
    status.show(report)
    click.echo()
    with jobs_client.reading(home) as db:
        for event in service_events.events(db, None, limit=LATEST):
            message = service_events.format_event(event)
            click.echo(f"{render.clock(event.at)}  {event.service:<9} {event.reason:<17} {message}")


def _stop_worker(home: Home, starter: jobs_client.WorkerStarter) -> None:
    """Stop the worker that this command started; the services keep running."""
    with jobs_client.reading(home) as db:
        current = worker.current(db)
    if starter.started and current and worker_process.stop(home, current.owner):
        render.say("The worker was stopped; services keep running, but nothing restarts them if they crash.")
