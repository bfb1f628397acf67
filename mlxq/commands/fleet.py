"""`mlxq fleet`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from catalog.intent import INTENTS
from mlxq import confirm, job_view, jobs_client, options, render
from mlxq.commands.node import NodeName
from state import fleet
from state.db import Database
from state.errors import MlxqError, NotRunning
from state.job import JobState, NewJob, get
from state.paths import Home, get_home
from tasks import kinds

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
    """Plan which machine of the fleet serves what, and change one after another.

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
    if planned.changes:
        render.next_step(" ".join(["mlxq fleet apply", *_words(intent, keep)]))
    else:
        render.say("Nothing is to be changed.")


@command.command()
@intent_option
@keep_option
@options.dry_run
@options.yes
@options.timeout
@options.as_json
def apply(
    *, intent: str | None, keep: tuple[str, ...], dry_run: bool, yes: bool, timeout_s: float | None, as_json: bool
) -> None:
    """Make the fleet as planned, one machine after another.

    The others serve meanwhile. Each machine downloads first. Then it is offered for nothing, finishes its answers,
    changes, and is offered again once it serves. The first that fails stops the rest; run it again to continue.
    """
    from mlxq.fleet import plan_view
    from tasks.fleet import planning

    planned = _planned(intent, keep)
    if as_json and dry_run:
        render.data(plan_view.document(planned))
        return
    plan_view.show(planned, err=as_json)
    names = [role.name for role in planned.changes]
    if not names or dry_run:
        render.say(f"To be changed, in this order: {', '.join(names)}." if names else "Nothing is to be changed.")
        return
    confirm.machines(
        f"Change {', '.join(names)}", " ".join(["mlxq fleet apply", *_words(intent, keep), "--yes"]), yes=yes
    )
    _run(planning.changes(planned), names, "mlxq fleet apply", timeout_s, as_json=as_json)


@command.command()
@click.option("--to", metavar="VERSION", help="This version.  [default: the newest]")
@options.dry_run
@options.yes
@options.timeout
@options.as_json
def upgrade(*, to: str | None, dry_run: bool, yes: bool, timeout_s: float | None, as_json: bool) -> None:
    """Upgrade mlxq on one machine after another, this one last.

    Each is offered for nothing while it is upgraded. The first that fails stops the rest: it runs its version of
    before again, and those after it are left alone.
    """
    from tasks.fleet import identity, planning
    from tasks.upgrade import installation

    home = get_home()
    with jobs_client.reading(home) as db:
        own, nodes = identity.own_name(home), _upgradable(db)
    names = [*nodes, own]
    installation.require_upgradable()
    if dry_run:
        render.say(f"To be upgraded, in this order: {', '.join(names)}.")
        return
    again = " ".join(["mlxq fleet upgrade", *(["--to", to] if to else [])])
    confirm.machines(f"Upgrade {', '.join(names)}", f"{again} --yes", yes=yes)
    jobs = planning.in_turn("upgrade_node", [(name, {"to": to} if to else {}) for name in nodes])
    last = kinds.new("upgrade", {"to": to}, needs=[job.label for job in jobs[-1:]], label=f"upgrade {own}")
    _run([*jobs, last], names, again, timeout_s, as_json=as_json)


def _upgradable(db: Database) -> list[str]:
    """Return the nodes that run mlxq and are not drained. Raises NotRunning where one of them cannot be asked."""
    from tasks.plan.fleet import is_lost

    everything = fleet.nodes(db)
    nodes = [node for node in everything if node.kind == "mlxq" and node.state == "joined"]
    if excluded := [node.name for node in everything if node not in nodes]:
        render.say(f"Left out, as drained or no mlxq: {', '.join(excluded)}.")
    if away := [node.name for node in nodes if is_lost(node)]:
        raise NotRunning(
            f"{away[0]} is away, and would be left behind with another version.",
            done="Nothing was upgraded.",
            hint=f"mlxq node drain {away[0]}   (leaves it out)",
        )
    return [node.name for node in nodes]


def _planned(intent: str | None, keep: Sequence[str]) -> PlannedFleet:
    """Ask every machine, and plan. Raises NotSetUp, NotFound."""
    from tasks.fleet import planning

    with jobs_client.reading(get_home()) as db:
        return planning.plan(db, planning.ask(db, keep), intent)


def _words(intent: str | None, keep: Sequence[str]) -> list[str]:
    """Return the options of a plan as they were typed."""
    return [*(["--intent", intent] if intent else []), *(word for name in keep for word in ("--keep", name))]


def _run(jobs: Sequence[NewJob], names: Sequence[str], again: str, timeout_s: float | None, *, as_json: bool) -> None:
    """Enqueue a job for each name, follow them, and say which machines are done, also where one fails."""
    home = get_home()
    with jobs_client.changing(home) as db:
        ids = jobs_client.enqueue(db, jobs)
    try:
        jobs_client.follow(home, jobs_client.these(ids), job_view.view(as_json=as_json), timeout_s=timeout_s)
    except MlxqError as problem:
        if outcome := _told(home, ids, names):
            raise type(problem)(problem.message, done=outcome, hint=problem.hint or again) from problem
        raise
    render.say(f"Done: {', '.join(names)}.")


def _told(home: Home, ids: Sequence[int], names: Sequence[str]) -> str:
    """Return which machines are done and which are not, where all jobs have ended; empty where some still run."""
    with jobs_client.reading(home) as db:
        rows = [get(db, number) for number in ids]
    if any(row.live for row in rows):
        return ""
    done = [name for name, row in zip(names, rows, strict=True) if row.state is JobState.SUCCEEDED]
    pending = [name for name in names if name not in done]
    return f"Done: {', '.join(done) or 'none'}. Not done: {', '.join(pending)}; the same command continues there."
