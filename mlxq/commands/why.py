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
from state import fleet, service, stack
from state.db import Database
from state.fleet import Node
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
    the log, and the time of the next try; without SERVICE also versions of engines that were not used, or taken back.
    SERVICE may be a node of the fleet, too.
    """
    home = get_home()
    problems = config_problems.listing(home)
    with jobs_client.reading(home) as db:
        tiers = stack.tiers(db)
        engine = stack.services(tiers, [name])[0] if name else None
        nodes = _nodes(db, name, engine)
        services = [] if name and nodes else [row for row in service.listing(db) if engine in (None, row.name)]
        events = _events(db, name if nodes else engine, limit, everything=everything, nodes=bool(nodes))
        if as_json:
            rows = [_row(row) for row in services]
            config = [problem.document() for problem in problems]
            render.data({"events": [asdict(event) for event in events], "services": rows, "config": config})
            return
        _print(events)
        for row in services:
            _explain(db, row)
        for node in nodes:
            _explain_node(node)
        for tier in tiers:
            if name == tier.name or (name is None and tier.desired == "down"):
                _explain_tier(tier, tiers)
        status.config(problems)


def _nodes(db: Database, name: str | None, engine: str | None) -> list[Node]:
    """Return the nodes of the fleet that are asked about: all, or the one of a name that no service has."""
    if name and service.find(db, engine or name):
        return []
    return [node for node in fleet.nodes(db) if name in (None, node.name)]


def _events(db: Database, name: str | None, limit: int, *, everything: bool, nodes: bool) -> list[EventView]:
    """Return the newest events, oldest first. `nodes`: also those of nodes; with a name, those of that node alone."""
    views = service_events.of_nodes(db, name, limit=limit) if nodes else []
    if not (nodes and name):
        views += service_events.events(db, name, limit=limit, everything=everything)
    if name is None:
        views += service_events.of_engine_versions(db, limit=limit)
    return sorted(views, key=lambda view: view.at)[-limit:]


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


def _explain_node(node: Node) -> None:
    """Print what is wrong with a node, and what helps."""
    from mlxq.fleet import report

    if problem := report.problem(node):
        click.echo()
        render.prose(f"{problem}.", f"{node.name} ({report.state(node)}): ")
        render.next_step("mlxq node list")


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
