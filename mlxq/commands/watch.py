"""`mlxq watch`."""

from __future__ import annotations

import click

from mlxq import jobs_client, render, service_events, worker_process
from mlxq.commands import status
from mlxq.status_report import StatusReport
from state import settings, worker
from state.paths import Home, get_home

LATEST = 5
"""So many events stand under the table."""


@click.command()
@click.option("--interval", type=click.IntRange(1, 3600), help="Seconds between two looks (setting watch-interval).")
@click.option(
    "--max-restarts", type=click.IntRange(1, 100), help="Ends in ten minutes before it is taken out of the route."
)
@click.option("--restart-delay", type=click.IntRange(1, 60), help="Seconds before the second restart in a row.")
@click.option("--daemon", is_flag=True, help="Start the worker in the background, and return.")
def command(interval: int | None, max_restarts: int | None, restart_delay: int | None, *, daemon: bool) -> None:
    """Keep the services up from here, and show how they are.

    The worker's watchdog does this anyway, wherever the worker runs; this runs one as long as you look, unless one
    runs already. What the options say becomes the setting of that name, and holds from then on.
    """
    place = get_home()
    status.draw_once(place)
    chosen = {"watch-interval": interval, "max-restarts": max_restarts, "restart-delay": restart_delay}
    for name, value in chosen.items():
        if value is not None:
            settings.write(place, name, value)
    keeper = jobs_client.WorkerStarter(place)
    keeper.ensure()
    if daemon:
        if keeper.started is None:
            render.say("A worker runs already.")
        render.next_step("mlxq status")
        return
    try:
        status.live(place, lambda found: _show(place, found), keeper.ensure)
    finally:
        _leave(place, keeper)


def _show(place: Home, found: StatusReport) -> None:
    status.show(found)
    click.echo()
    with jobs_client.reading(place) as db:
        for each in service_events.events(db, None, limit=LATEST):
            click.echo(f"{render.clock(each.at)}  {each.service:<9} {service_events.format_event(each)}")


def _leave(place: Home, keeper: jobs_client.WorkerStarter) -> None:
    """End the worker that this command started; the services go on."""
    with jobs_client.reading(place) as db:
        now = worker.current(db)
    if keeper.started and now and worker_process.stop(place, now.owner):
        render.say("The worker ended; the services go on, and nobody watches over them.")
