"""`mlxq why`."""

from __future__ import annotations

import time
from dataclasses import asdict

import click

from mlxq import jobs_client, options, render, service_events
from state import service
from state.db import Database
from state.paths import get_home
from state.service import Service


@click.command()
@click.argument("name", metavar="[SERVICE]", required=False, shell_complete=options.complete_service)
@click.option("-n", "--limit", type=click.IntRange(min=1), default=30, show_default=True, help="So many events.")
@options.as_json
def command(name: str | None, limit: int, *, as_json: bool) -> None:
    """Tell what happened to the services, and why.

    Each end comes with its cause, the signal or exit code, the last lines of the log, and when the next try is.
    """
    with jobs_client.reading(get_home()) as db:
        chapters = service_events.events(db, name, limit=limit)
        now = [one for one in service.listing(db) if name in (None, one.name)]
        if as_json:
            render.data({"events": [asdict(each) for each in chapters]})
            return
        _print(chapters)
        for one in now:
            _stand(db, one)


def _print(chapters: list[service_events.EventView]) -> None:
    if not chapters:
        render.say("Nothing has happened yet.")
    names = max((len(each.service) for each in chapters), default=0)
    words = max((len(service_events.word(each.what)) for each in chapters), default=0)
    for each in chapters:
        before = f"{render.clock(each.at)}  {each.service:<{names}}  {service_events.word(each.what):<{words}}  "
        render.prose(service_events.format_event(each), before)
        for line in each.last_lines:
            click.echo(f"{'':<21}| {line}")


def _stand(db: Database, one: Service) -> None:
    """Say how a service stands that is not as it should be, and what helps."""
    if not one.cause:
        return
    until = one.next_try_at or 0.0
    wait = f" Next try in {render.span(until - db.now())}." if until > time.time() else ""
    click.echo()
    render.prose(f"{one.cause}{wait}", f"{one.name} ({one.state}): ")
    if one.hint:
        render.next_step(one.hint)
