"""`mlxq why`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from catalog import units
from mlxq import jobs_client, options, render, service_events, service_status
from mlxq.commands import status
from mlxq.service_events import EventView
from state import service, stack
from state.db import Database
from state.paths import get_home
from state.service import Service
from state.stack import Tier
from tasks import config_problems

HEADERS = ("TIME", "SERVICE", "REASON", "MESSAGE")
TIME = 19
"""Characters of a date and time."""


@click.command()
@options.service_name
@click.option("--all", "everything", is_flag=True, help="Also show routine events.")
@click.option(
    "--limit", type=click.IntRange(min=1), default=30, show_default=True, metavar="N", help="Number of events."
)
@options.as_json
def command(name: str | None, limit: int, *, everything: bool, as_json: bool) -> None:
    """Show recent service events and their causes.

    Shows exits, failures, restarts and the last change of each service, with exit code or signal, the last lines of
    the log, and the time of the next try.
    """
    home = get_home()
    problems = config_problems.listing(home)
    with jobs_client.reading(home) as db:
        tiers = stack.tiers(db)
        engine = stack.services(tiers, [name])[0] if name else None
        events = service_events.events(db, engine, limit=limit, everything=everything)
        services = [row for row in service.listing(db) if engine in (None, row.name)]
        if as_json:
            rows = [_row(row) for row in services]
            config = [problem.document() for problem in problems]
            render.data({"events": [asdict(event) for event in events], "services": rows, "config": config})
            return
        _print(events)
        for row in services:
            _explain(db, row)
        for tier in tiers:
            if name == tier.name or (name is None and tier.desired == "down"):
                _explain_tier(tier, tiers)
        status.config(problems)


def _print(events: Sequence[EventView]) -> None:
    if not events:
        render.say("No events yet.")
        return
    names = max(len(HEADERS[1]), *(len(event.service) for event in events))
    reasons = max(len(HEADERS[2]), *(len(event.reason) for event in events))
    time, service, reason, message = HEADERS
    click.echo(f"{time:<{TIME}}  {service:<{names}}  {reason:<{reasons}}  {message}")
    for event in events:
        before = f"{render.clock(event.at)}  {event.service:<{names}}  {event.reason:<{reasons}}  "
        render.prose(service_events.format_event(event), before)
        for line in event.last_lines:
            click.echo(f"{'':<{TIME + 2}}| {line}")


def _explain(db: Database, row: Service) -> None:
    """Print the status and the cause of a service that has a problem, and what helps."""
    if not row.cause:
        return
    click.echo()
    render.prose(row.cause, f"{row.name} ({service_status.of_row(row).text(db.now())}): ")
    if row.hint:
        render.next_step(row.hint)


def _explain_tier(tier: Tier, tiers: Sequence[Tier]) -> None:
    """Say with whom a tier shares its engine, and that the user stopped it."""
    sharing = [other.name for other in stack.served_by(tiers, tier.engine.name) if other.name != tier.name]
    if not sharing:
        return
    click.echo()
    render.prose(f"shares its engine with {units.listed(sharing)}.", f"{tier.name} ")
    if tier.desired == "down":
        click.echo(f"{tier.name} was stopped by user.")
        render.next_step(f"mlxq up {tier.name}")


def _row(row: Service) -> dict[str, Any]:
    """Return how a service is, for programs."""
    status = service_status.of_row(row)
    return {
        "name": row.name,
        "state": status.state,
        "reason": status.reason or None,
        "next_try_at": status.next_try_at,
        "cause": row.cause,
        "hint": row.hint,
    }
