"""`mlxq --node NAME COMMAND`: jobs that another node does, in its own ledger. All else runs on this node alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

import click

from mlxq import confirm, job_view, jobs_client, options, render
from state import fleet
from state.errors import MlxqError, Offline, TimedOut, UsageProblem
from state.job import Job, JobState
from state.paths import get_home

if TYPE_CHECKING:
    from tasks.fleet.node_client import NodeClient

LOOK_S = 0.7
PATIENCE_S = 60.0
"""How long a node that stopped answering is asked again how its jobs are."""


def node_name(ctx: click.Context) -> str:
    """Return the node that --node names."""
    return str(ctx.find_root().params["node"])


def _client(ctx: click.Context) -> NodeClient:
    """Return the client of the node. Raises NotFound, UsageProblem, Damaged."""
    from tasks.fleet.node_client import NodeClient

    with jobs_client.reading(get_home()) as db:
        node = fleet.get(db, node_name(ctx))
    if node.kind == "openai":
        raise UsageProblem(f"{node.name} speaks OpenAI's API alone: it does no jobs.", hint="mlxq node list")
    return NodeClient.of(get_home(), node)


def _run(ctx: click.Context, command: str, timeout_s: float | None = None, **args: Any) -> None:
    """Have the node do a command, and show its jobs until they have ended. Raises the error of one that failed."""
    wanted = {name: value for name, value in args.items() if value is not None and value is not False}
    with _client(ctx) as client:
        numbers = client.post_jobs(command, wanted)
        render.say(f"{node_name(ctx)}: {'job' if len(numbers) == 1 else 'jobs'} {', '.join(map(str, numbers))}.")
        _follow(ctx, client, numbers, timeout_s)


def _follow(ctx: click.Context, client: NodeClient, numbers: Sequence[int], timeout_s: float | None) -> None:
    view, until = job_view.view(), None if timeout_s is None else time.monotonic() + timeout_s
    again = f"mlxq --node {node_name(ctx)} jobs watch {numbers[0]}" if numbers else ""
    try:
        while True:
            jobs = [job for number in numbers for job in _read(client, number)]
            view.show(jobs)
            live = [job for job in jobs if job.live]
            if not live:
                break
            if until is not None and time.monotonic() > until:
                raise TimedOut(f"Not done after {render.span(timeout_s)}; job {live[0].id} continues.", hint=again)
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        view.close()
        render.say(f"\nStopped watching; job {numbers[0]} continues. Watch it again: {again}")
        raise click.exceptions.Exit(130) from None
    finally:
        view.close()
    jobs_client.raise_first(jobs)


def _read(client: NodeClient, number: int) -> list[Job]:
    """Return a job of the node with what came of it. Raises Offline once it was not reached for PATIENCE_S."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return _jobs(client.ask("GET", f"/fleet/v1/jobs/{number}"))
        except Offline:
            if time.monotonic() > until:
                raise
        time.sleep(LOOK_S)


def _jobs(answer: Mapping[str, Any]) -> list[Job]:
    """Return the jobs of an answer. Raises MlxqError where it has none."""
    try:
        return [_job(cast("dict[str, Any]", row)) for row in answer["jobs"]]
    except (KeyError, TypeError, ValueError) as problem:
        raise MlxqError("What the node answers is no list of jobs.", hint="mlxq node list") from problem


TEXTS = frozenset({"kind", "queue", "source", "phase", "error_code", "error", "hint"})
NUMBERS = frozenset(
    {"id", "priority", "chain", "attempt", "failures", "max_attempts", "rescues", "run_at", "wait_s", "created_at"}
)
TIMES = frozenset({"beat_at", "cancel_at", "started_at", "finished_at"})
MAPPINGS = frozenset({"args", "progress"})


def _job(row: Mapping[str, Any]) -> Job:
    """Return a job as a node describes it; nothing of it is trusted to be of its type. Raises ValueError, KeyError."""
    values: dict[str, Any] = {entry.name: None for entry in fields(Job)}
    values |= {name: _text(row.get(name)) for name in TEXTS}
    values |= {name: _number(row.get(name, 0)) for name in NUMBERS}
    values |= {name: None if row.get(name) is None else _number(row[name]) for name in TIMES}
    values |= {name: _plain(row.get(name)) for name in MAPPINGS}
    needs = [int(_number(need)) for need in row.get("needs") or ()]
    values["id"], values["state"], values["needs"] = int(_number(row["id"])), JobState(row["state"]), tuple(needs)
    return Job(**values)


def _text(value: Any) -> str | None:
    from tasks.plan.fleet import printable

    return None if value is None else printable(str(value))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("no number")  # noqa: TRY004 (one kind of error for what a node sends)
    return value


def _plain(value: Any) -> dict[str, Any]:
    """Return the texts and numbers of an object."""
    rows = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    return {
        str(name): entry if isinstance(entry, int | float) else _text(entry)
        for name, entry in rows.items()
        if isinstance(entry, str | int | float)
    }


@click.command()
@options.model()
@click.option("--quant", metavar="NAME", help="int4, int8, bf16, or another that exists.")
@click.option("--bench", is_flag=True, help="Benchmark it afterwards and save the result.")
@click.option("--force", is_flag=True, help="Download even if it is installed.")
@options.timeout
@click.pass_context
def pull(
    ctx: click.Context, *, model: str, quant: str | None, bench: bool, force: bool, timeout_s: float | None
) -> None:
    """Have the node download a model of the catalog, or a repository on the Hub."""
    _run(ctx, "pull", timeout_s, model=model, quant=quant, bench=bench, force=force)


@click.command()
@options.model()
@click.option("--force", is_flag=True, help="Delete even if in use.")
@options.yes
@click.pass_context
def rm(ctx: click.Context, *, model: str, force: bool, yes: bool) -> None:
    """Have the node delete a model."""
    confirm.deletion(f"Delete {model} on {node_name(ctx)}", yes=yes)
    _run(ctx, "rm", model=model, force=force)


@click.command()
@click.argument("names", metavar="[TIER]...", nargs=-1)
@options.timeout
@click.pass_context
def up(ctx: click.Context, *, names: tuple[str, ...], timeout_s: float | None) -> None:
    """Have the node start its tiers, or these."""
    _run(ctx, "up", timeout_s, names=list(names))


@click.command()
@click.argument("names", metavar="[TIER]...", nargs=-1)
@click.option("--drain", is_flag=True, help="Wait for running requests.")
@options.timeout
@click.pass_context
def down(ctx: click.Context, *, names: tuple[str, ...], drain: bool, timeout_s: float | None) -> None:
    """Have the node stop its tiers, or these. Its gateway stays up, so that it can be asked."""
    _run(ctx, "down", timeout_s, names=list(names), drain=drain)


@click.command()
@click.argument("names", metavar="[TIER]...", nargs=-1)
@options.timeout
@click.pass_context
def restart(ctx: click.Context, *, names: tuple[str, ...], timeout_s: float | None) -> None:
    """Have the node restart its tiers, one at a time, or these."""
    _run(ctx, "restart", timeout_s, names=list(names))


@click.command()
@options.model()
@options.timeout
@click.pass_context
def load(ctx: click.Context, *, model: str, timeout_s: float | None) -> None:
    """Have the node load a model now, as a request for it would."""
    _run(ctx, "load", timeout_s, model=model)


@click.command()
@options.model()
@options.timeout
@click.pass_context
def unload(ctx: click.Context, *, model: str, timeout_s: float | None) -> None:
    """Have the node stop a model until it is asked for again."""
    _run(ctx, "unload", timeout_s, model=model)


@click.command()
@click.argument("target")
@click.option("--save", is_flag=True, help="Save the result there.")
@options.timeout
@click.pass_context
def bench(ctx: click.Context, *, target: str, save: bool, timeout_s: float | None) -> None:
    """Have the node benchmark a running tier or an installed model."""
    _run(ctx, "bench", timeout_s, target=target, save=save)


@click.command()
@options.model(required=False)
@options.timeout
@click.pass_context
def verify(ctx: click.Context, *, model: str | None, timeout_s: float | None) -> None:
    """Have the node re-check a model's files, or all of them."""
    _run(ctx, "verify", timeout_s, model=model)


@click.group(cls=options.Group, invoke_without_command=True)
@options.as_json
@click.pass_context
def jobs(ctx: click.Context, *, as_json: bool) -> None:
    """List, show, watch and cancel the jobs that this fleet asked the node for."""
    if ctx.invoked_subcommand is not None:
        return
    with _client(ctx) as client:
        rows = _jobs(client.ask("GET", "/fleet/v1/jobs"))
    _show(rows, as_json=as_json)


def _show(rows: Sequence[Job], *, as_json: bool) -> None:
    if as_json:
        render.data({"jobs": [job_view.row(row) for row in rows]})
    elif rows:
        cells = [
            [row.id, job_view.title(row), row.state, render.ago(row.created_at), job_view.note(row)] for row in rows
        ]
        render.table(["ID", "JOB", "STATE", "CREATED", "NOTE"], cells, right=(0,))
    else:
        render.say("There are no such jobs.")


@jobs.command()
@options.job()
@options.as_json
@click.pass_context
def show(ctx: click.Context, *, job: int, as_json: bool) -> None:
    """Show one job of the node, and what came of it."""
    with _client(ctx) as client:
        _show(_jobs(client.ask("GET", f"/fleet/v1/jobs/{job}")), as_json=as_json)


@jobs.command()
@options.job()
@options.timeout
@click.pass_context
def watch(ctx: click.Context, *, job: int, timeout_s: float | None) -> None:
    """Show the progress of one job of the node until it has ended."""
    with _client(ctx) as client:
        _follow(ctx, client, [job], timeout_s)


@jobs.command()
@options.job()
@click.pass_context
def cancel(ctx: click.Context, *, job: int) -> None:
    """Cancel one job of the node."""
    with _client(ctx) as client:
        client.ask("POST", f"/fleet/v1/jobs/{job}/cancel")
    render.say(f"Cancelled job {job} on {node_name(ctx)}.")


COMMANDS: Mapping[str, click.Command] = {
    command.name or "": command for command in (pull, rm, up, down, restart, load, unload, bench, verify, jobs)
}
"""What another node may be asked for."""


def find(name: str) -> click.Command:
    """Return the command of another node. Raises UsageProblem for one that runs on this node alone."""
    if name not in COMMANDS:
        raise UsageProblem(
            f"`{name}` does not run on another node; these do: {', '.join(COMMANDS)}.", hint="mlxq --help"
        )
    return COMMANDS[name]
