"""`mlxq jobs`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import click

from mlxq import job_view, jobs_client, options, render
from state import event, job
from state.db import Database
from state.event import Event
from state.files import tail
from state.job import Job, JobState
from state.paths import Home, get_home
from tasks.kinds import KINDS

LOG_TAIL_BYTES = 4 * 1024 * 1024
LOG_LINES = 12
SOURCES = {"person": "user"}
"""Who requested a job, where the stored word is another one."""
LOG_KEYS = ("event", "level", "timestamp", "job", "kind", "attempt")


class KindName(click.Choice[str]):
    """A kind of jobs, as the table shows it or as the database has it."""

    def normalize_choice(self, choice: object, ctx: click.Context | None) -> str:
        """Return it with hyphens, which need no quotes in a shell."""
        return super().normalize_choice(choice, ctx).replace("_", "-").replace(" ", "-")


@click.group(cls=options.Group, invoke_without_command=True)
@click.option("--state", type=click.Choice([str(state) for state in JobState]), help="Only jobs in this state.")
@click.option("--kind", type=KindName(sorted(KINDS)), metavar="KIND", help="Only jobs of this kind.")
@click.option("--chain", type=options.JobId(), metavar="ID", help="Only jobs of this chain.")
@click.option("--limit", type=click.IntRange(min=1), default=30, show_default=True, metavar="N", help="Number of jobs.")
@options.as_json
@click.pass_context
def command(
    ctx: click.Context, *, state: str | None, kind: str | None, chain: int | None, limit: int, as_json: bool
) -> None:
    """List, watch, cancel and retry jobs.

    Without a command, list them: unfinished jobs first, then the newest.
    """
    if ctx.invoked_subcommand is not None:
        return
    with jobs_client.reading(get_home()) as db:
        rows = job.listing(db, state=state, kind=kind, chain=chain, limit=limit)
    if as_json:
        render.data({"jobs": [job_view.row(row) for row in rows]})
    elif rows:
        _table(rows)
    else:
        render.say("There are no such jobs." if state or kind or chain else "There are no jobs yet.")


def _table(rows: Sequence[Job]) -> None:
    render.table(
        ["ID", "JOB", "STATE", "TOOK", "CREATED", "CHAIN", "NOTE"],
        [
            [
                row.id,
                job_view.title(row),
                row.state,
                _took(row),
                render.ago(row.created_at),
                row.chain,
                _note(row),
            ]
            for row in rows
        ],
        right=(0, 5),
    )
    live = [row.id for row in rows if row.live]
    failed = [row.id for row in rows if row.state is JobState.FAILED]
    render.next_step(f"mlxq jobs watch {min(live)}" if live else f"mlxq jobs show {[*failed, rows[0].id][0]}")


def _took(row: Job) -> str:
    """Return how long its last attempt took, or has taken so far."""
    if not row.started_at or row.state in (JobState.BLOCKED, JobState.QUEUED):
        return ""
    return render.span(max(0.0, (row.finished_at or time.time()) - row.started_at))


def _note(row: Job) -> str:
    """Return what the other columns do not say."""
    note = job_view.counted(row)
    return "" if row.state is JobState.SUCCEEDED or note == str(row.state) else note


@command.command()
@options.job()
@options.as_json
def show(job: int, *, as_json: bool) -> None:
    """Show one job: its arguments, result and events.

    The last lines of the worker's log on it are shown too.
    """
    home = get_home()
    with jobs_client.reading(home) as db:
        row, events, needed_by = _read(db, job)
    lines = _log_tail(home, job)
    if as_json:
        rows = [{"at": event.at, "name": event.name, "attempt": event.attempt, "data": event.data} for event in events]
        render.data({"job": job_view.row(row) | {"needed_by": needed_by}, "events": rows, "log": lines})
        return
    for name, value in _facts(row, needed_by):
        click.echo(f"{name:<10} {value}")
    _section("Events", [f"{render.clock(event.at)}  {event.name}{_details(event)}" for event in events])
    _section("Log", [_log_line(line) for line in lines])
    if row.hint:
        render.next_step(row.hint)
    elif row.live:
        render.next_step(f"mlxq jobs watch {row.id}")


def _read(db: Database, number: int) -> tuple[Job, list[Event], list[int]]:
    return job.get(db, number), event.of_job(db, number), job.dependents(db, number)


def _facts(row: Job, needed_by: Sequence[int]) -> list[tuple[str, Any]]:
    """Return what is worth a line, the most important first."""
    meaning = KINDS[row.kind].meaning if row.kind in KINDS else "a kind that this version of mlxq does not know"
    lines = [
        ("Job", f"{row.id}, {job_view.title(row)}: {meaning}"),
        ("State", f"{row.state}: {row.state.meaning}"),
        ("Now", job_view.counted(row) if row.live else ""),
        ("Error", row.error),
        ("Arguments", json.dumps(row.args) if row.args else ""),
        ("Result", json.dumps(row.result) if row.result else ""),
        ("Chain", f"{row.chain}, requested by {SOURCES.get(row.source, row.source)}"),
        ("Needs", ", ".join(map(str, row.needs))),
        ("Needed by", ", ".join(map(str, needed_by))),
        ("Attempts", f"{row.attempt}, failed {row.failures} of {row.max_attempts}, rescued {row.rescues}"),
        ("Took", _took(row) if row.finished_at else ""),
    ]
    return [(name, value) for name, value in lines if value]


def _details(event: Event) -> str:
    parts = [f"attempt {event.attempt}"] if event.attempt else []
    parts += [f"{name}: {value}" for name, value in event.data.items()]
    return f"  ({', '.join(parts)})" if parts else ""


def _section(name: str, lines: Sequence[str]) -> None:
    if lines:
        click.echo(f"\n{name}")
        for line in lines:
            click.echo(f"  {line}")


def _log_tail(home: Home, number: int) -> list[dict[str, Any]]:
    """Return the last lines of the worker's log on this job."""
    marked = f'"job": {number},'
    return [_parsed(line) for line in tail(home.log("worker"), LOG_TAIL_BYTES).splitlines() if marked in line][
        -LOG_LINES:
    ]


def _parsed(line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError:
        return {"event": line}


def _log_line(entry: dict[str, Any]) -> str:
    rest = "  ".join(f"{name}={value}" for name, value in entry.items() if name not in LOG_KEYS)
    return f"{entry.get('timestamp', '')[:19]}  {entry.get('event', '')}  {rest}".rstrip()


@command.command(name="watch")
@options.job(required=False)
@options.as_json
@options.timeout
def follow(job: int | None, *, as_json: bool, timeout_s: float | None) -> None:
    """Watch a job and its chain until they end.

    Without ID, watch the newest unfinished chain.
    """
    home = get_home()
    with jobs_client.reading(home) as db:
        chain = _chain_of(db, job)
    if chain is None:
        render.say("No job is running or queued.")
        render.next_step("mlxq jobs")
        return
    jobs_client.follow(home, jobs_client.chain(chain), job_view.view(as_json=as_json), timeout_s=timeout_s)


def _chain_of(db: Database, number: int | None) -> int | None:
    if number is not None:
        return job.get(db, number).chain
    return db.value("SELECT max(chain) FROM jobs WHERE state IN ('blocked', 'queued', 'running')")


@command.command()
@options.job()
def cancel(job: int) -> None:
    """Cancel a job and the jobs that need it."""
    from state import ledger

    home = get_home()
    with jobs_client.changing(home) as db:
        state = ledger.cancel(db, job)
    jobs_client.ensure_worker(home)
    outcome = "is stopping" if state is JobState.RUNNING else "is cancelled"
    render.say(f"Job {job} {outcome}.")
    render.next_step(f"mlxq jobs show {job}")


@command.command()
@options.job()
def retry(job: int) -> None:
    """Retry a failed or cancelled job.

    The jobs that were cancelled because of it are retried with it.
    """
    from state import ledger

    home = get_home()
    with jobs_client.changing(home) as db:
        first, *rest = ledger.revive(db, job)
    jobs_client.ensure_worker(home)
    render.say(f"Job {first} is queued again" + (f", with {', '.join(map(str, rest))}." if rest else "."))
    render.next_step(f"mlxq jobs watch {first}")


@command.command()
@click.option(
    "--older-than",
    "days",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="DAYS",
    help="Age of the jobs to delete.",
)
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=2000,
    show_default=True,
    metavar="N",
    help="Number of the newest jobs to keep.",
)
def prune(days: float, keep: int) -> None:
    """Delete old jobs and their events."""
    from state import ledger

    home = get_home()
    with jobs_client.changing(home) as db:
        count = ledger.prune(db, older_than_s=days * render.DAY_S, keep=keep)
    render.say(f"Deleted {count} {'job' if count == 1 else 'jobs'}.")
