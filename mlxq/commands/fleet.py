"""`mlxq fleet`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from catalog.intent import INTENTS
from mlxq import jobs_client, options, render
from mlxq.commands.node import NodeName
from state.paths import get_home

if TYPE_CHECKING:
    from tasks.fleet.planning import PlannedFleet

intent_option = click.option(
    "--intent", type=click.Choice(list(INTENTS)), help="What the models are for.  [default: that of this machine]"
)
keep_option = click.option(
    "--keep", multiple=True, metavar="NAME", type=NodeName(), help="Leave the machine NAME as it is."
)


@click.group(cls=options.Group, no_args_is_help=True)
def command() -> None:
    """Plan which machine of the fleet serves what.

    The fleet is this machine and the nodes that it invited (`mlxq node list`).
    """


@command.command(name="plan")
@intent_option
@keep_option
@click.option("--explain", is_flag=True, help="Also show the reasons for each machine.")
@options.as_json
def show_plan(intent: str | None, keep: tuple[str, ...], *, explain: bool, as_json: bool) -> None:
    """Show which models on which machines serve best together.

    Machines may have the same models, as replicas, or some of the tiers each, with more memory for a larger model.
    Nothing is changed.
    """
    from mlxq.fleet import plan_view

    planned = _planned(intent, keep)
    if as_json:
        render.data(plan_view.document(planned))
        return
    plan_view.show(planned, explain=explain)
    if not planned.changes:
        render.say("Nothing is to be changed.")


def _planned(intent: str | None, keep: Sequence[str]) -> PlannedFleet:
    """Ask every machine, and plan. Raises NotSetUp, NotFound."""
    from tasks.fleet import planning

    with jobs_client.reading(get_home()) as db:
        return planning.plan(db, planning.ask(db, keep), intent)
