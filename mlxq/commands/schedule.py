"""`mlxq schedule`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from mlxq import job_view, jobs_client, local_models, options, render
from state import stack
from state.db import Database
from state.errors import UsageProblem
from state.paths import Home, get_home
from state.schedule import schedules
from state.schedule.schedules import Schedule
from tasks import kinds, recommend


class ScheduleName(click.ParamType[str]):
    """The name of a schedule."""

    name = "name"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002 (click's signature)
        """Complete it from the schedules."""
        rows = options.completions(lambda db: [(row.name, row.words) for row in schedules.listing(db)])
        return [CompletionItem(name) for name, _ in rows if name.startswith(incomplete)]


@click.group(cls=options.Group, no_args_is_help=True)
def command() -> None:
    """Run commands on a schedule.

    Each run is an ordinary job (`mlxq jobs`). `mlxq notify` reports one that failed.
    """


@command.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("cron")
@click.argument("words", nargs=-1, required=True, metavar="-- COMMAND...")
@click.option(
    "--missed",
    type=click.Choice(["run", "skip"]),
    default="run",
    show_default=True,
    help="What to do after a time at which the machine slept: run once, or skip it.",
)
@options.timeout
def add(name: str, cron: str, words: Sequence[str], *, missed: str, timeout_s: float | None) -> None:
    """Run COMMAND at the times of CRON, in local time.

    COMMAND is `batch run FILE`, `bench TARGET`, `restart [SERVICE]...`, `verify [MODEL]`, `catalog check`, `engine
    upgrade --check [ENGINE]` or `upgrade --check`. CRON is minute, hour, day of the month, month and day of the week (0
    is Sunday), such as "30 3 * * 0"; a day must match both of its fields. A schedule of the same NAME is replaced.
    """
    home = get_home()
    with jobs_client.writing(home) as db:
        kind, args = _parsed(home, db, words)
        schedule = {"name": name, "cron": cron, "words": shlex.join(words), "missed": missed}
        ids = jobs_client.enqueue(db, [kinds.new("add_schedule", schedule | {"kind": kind, "args": args})])
    ended = jobs_client.follow(home, jobs_client.these(ids), job_view.view(), timeout_s=timeout_s)
    render.say(f"{name} runs next at {render.clock(ended[-1].result['next_due'])}.")


def _parsed(home: Home, db: Database, words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return what a command does, by the command's own parser. Raises UsageProblem, and as the command does."""
    if tuple(words[:2]) == ("catalog", "update"):
        raise UsageProblem(
            "The catalog is updated with mlxq, not on its own; a newer mlxq can be looked for.",
            hint="mlxq schedule add NAME CRON -- upgrade --check",
        )
    parser = next((PARSERS[name] for name in PARSERS if tuple(words[: len(name)]) == name), None)
    if parser is None:
        raise UsageProblem(
            f"{shlex.join(words)} cannot be scheduled; {', '.join(' '.join(name) for name in PARSERS)} can.",
            hint="mlxq schedule add --help",
        )
    return parser(home, db, words)


def _params(parser: click.Command, words: Sequence[str]) -> Mapping[str, Any]:
    return parser.make_context("mlxq", list(words)).params


def _bench(home: Home, db: Database, words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    from mlxq.commands import bench

    params = dict(_params(bench.command, words[1:]))
    target, quant = params.pop("target"), params.pop("quant")
    if not target or params.pop("history"):
        raise UsageProblem("A scheduled benchmark needs a TARGET.", hint="mlxq bench --help")
    shape = {name: params[name] for name in ("save", "runs", "prompt_tokens", "gen_tokens", "concurrency")}
    return "bench", {"target": bench.subject(home, db, target, quant), **shape}


def _restart(_home: Home, db: Database, words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    options.check_services(db, words[1:])
    return "restart", {"services": list(words[1:])}


def _verify(home: Home, db: Database, words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    from mlxq.commands import verify

    model = _params(verify.command, words[1:])["model"]
    if not model:
        return "verify", {"folders": []}
    models = recommend.all_models(home)
    rows = local_models.choose(model, local_models.listing(home, db, models), models)
    return "verify", {"folders": [str(row.folder) for row in rows if row.source]}


def _check_catalog(_home: Home, _db: Database, words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    from mlxq.commands import catalog

    return "check_catalog", {"offline": _params(catalog.check, words[2:])["offline"]}


def _check_engine(_home: Home, _db: Database, words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    from mlxq.commands import engine

    params = _params(engine.upgrade, words[2:])
    if not params["check"]:
        raise UsageProblem(
            "An upgrade cannot be scheduled; looking for one can.",
            hint="mlxq schedule add NAME CRON -- engine upgrade --check",
        )
    return "check_engine", {"engine": engine.installable(params["engine"]).name}


def _check_upgrade(_home: Home, _db: Database, words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    from mlxq.commands import upgrade

    params = _params(upgrade.command, words[1:])
    if not params["check"] or params["to"] or params["back"]:
        raise UsageProblem(
            "An upgrade cannot be scheduled; looking for one can.",
            hint="mlxq schedule add NAME CRON -- upgrade --check",
        )
    return "check_upgrade", {}


def _batch(_home: Home, db: Database, words: Sequence[str]) -> tuple[str, dict[str, Any]]:
    from mlxq.commands import batch

    params = _params(batch.run, words[2:])
    if params["file"] == "-":
        raise UsageProblem(
            "A scheduled batch reads a file, not standard input.",
            hint="mlxq schedule add NAME CRON -- batch run FILE",
        )
    if params["tier"] is not None:
        stack.tier(db, params["tier"])  # raises for one that does not exist
    paths = {name: params[name] and str(Path(params[name]).absolute()) for name in ("file", "out")}
    return "batch", {**paths, "tier": params["tier"], "cloud": params["cloud"]}


PARSERS: Mapping[tuple[str, ...], Callable[[Home, Database, Sequence[str]], tuple[str, dict[str, Any]]]] = {
    ("bench",): _bench,
    ("restart",): _restart,
    ("verify",): _verify,
    ("engine", "upgrade"): _check_engine,
    ("upgrade",): _check_upgrade,
    ("catalog", "check"): _check_catalog,
    ("batch", "run"): _batch,
}
"""The commands that can be scheduled."""


@command.command(name="list")
@options.as_json
def listing(*, as_json: bool) -> None:
    """List schedules with their next and last run."""
    with jobs_client.reading(get_home()) as db:
        rows = [_row(db, schedule) for schedule in schedules.listing(db)]
    if as_json:
        render.data({"schedules": rows})
    elif rows:
        render.table(
            ["NAME", "CRON", "MISSED", "NEXT", "LAST", "COMMAND"],
            [
                [row["name"], row["cron"], row["missed"], render.clock(row["next_due"]), _last(row), row["command"]]
                for row in rows
            ],
        )
    else:
        render.say("There are no schedules yet.")
        render.next_step("mlxq schedule add --help")


def _row(db: Database, schedule: Schedule) -> dict[str, Any]:
    run = schedules.last_run(db, schedule.name)
    return {
        "name": schedule.name,
        "cron": schedule.cron,
        "command": schedule.words,
        "missed": schedule.missed,
        "next_due": schedule.next_due,
        "last_job": run.chain if run else None,
        "last_at": run.at if run else None,
        "last_outcome": run.outcome if run else None,
    }


def _last(row: dict[str, Any]) -> str | None:
    return None if row["last_job"] is None else f"{row['last_outcome'] or 'running'}, job {row['last_job']}"


@command.command()
@click.argument("name", type=ScheduleName())
def remove(name: str) -> None:
    """Remove the schedule NAME; a current run continues."""
    with jobs_client.changing(get_home()) as db:
        schedules.remove(db, name)
    render.say(f"Schedule {name} removed.")


@command.command()
@click.argument("name", type=ScheduleName())
@options.timeout
def run(name: str, *, timeout_s: float | None) -> None:
    """Run the schedule NAME now and wait for it."""
    home = get_home()
    with jobs_client.changing(home) as db:
        schedule = schedules.get(db, name)
        ids = jobs_client.enqueue(db, [kinds.new("run_schedule", {"name": name})])
        schedules.record_run(db, name, ids[0])
    ended = jobs_client.follow(home, jobs_client.with_chains(ids), job_view.view(), timeout_s=timeout_s)
    render.say(f"{name} ran: {schedule.words}.")
    for row in ended:
        if row.kind == "batch":
            render.next_step(f"mlxq batch show {row.args['batch']}")
