"""`mlxq jobs`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import click

from mlxq import job_view, jobs_client, options, render
from state import event, job, ledger
from state.db import Database
from state.event import Event
from state.files import tail
from state.job import Job, JobState
from state.paths import Home, get_home
from tasks.kinds import KINDS

LOG_TAIL_BYTES = 4 * 1024 * 1024
LOG_LINES = 12
LOG_KEYS = ("event", "level", "timestamp", "job", "kind", "attempt")


@click.group(invoke_without_command=True)
@click.option("--state", type=click.Choice([str(state) for state in JobState]), help="Only those in this state.")
@click.option("--kind", type=click.Choice(sorted(KINDS)), metavar="KIND", help="Only those of this kind.")
@click.option("--chain", type=options.JobId(), metavar="ID", help="Only those of this chain.")
@click.option("--limit", type=click.IntRange(min=1), default=30, show_default=True, help="At most so many.")
@options.as_json
@click.pass_context
def command(
    ctx: click.Context, *, state: str | None, kind: str | None, chain: int | None, limit: int, as_json: bool
) -> None:
    """List, watch, cancel and retry jobs.

    Without a command: list them, live ones first, then the newest.
    """
    if ctx.invoked_subcommand is not None:
        return
    with jobs_client.reading(get_home()) as db:
        found = job.listing(db, state=state, kind=kind, chain=chain, limit=limit)
    if as_json:
        render.data({"jobs": [job_view.row(each) for each in found]})
    elif found:
        _table(found)
    else:
        render.say("There are no such jobs." if state or kind or chain else "There are no jobs yet.")


def _table(found: Sequence[Job]) -> None:
    render.table(
        ["ID", "JOB", "STATE", "TOOK", "CREATED", "CHAIN", "NOTE"],
        [
            [
                each.id,
                job_view.title(each),
                each.state,
                _took(each),
                render.ago(each.created_at),
                each.chain,
                _note(each),
            ]
            for each in found
        ],
        right=(0, 5),
    )
    live = [each.id for each in found if each.live]
    failed = [each.id for each in found if each.state is JobState.FAILED]
    render.next_step(f"mlxq jobs watch {min(live)}" if live else f"mlxq jobs show {[*failed, found[0].id][0]}")


def _took(found: Job) -> str:
    """Give how long its last attempt took, or takes until now."""
    if not found.started_at or found.state in (JobState.BLOCKED, JobState.QUEUED):
        return ""
    return render.span(max(0.0, (found.finished_at or time.time()) - found.started_at))


def _note(found: Job) -> str:
    """Give what the other columns do not say."""
    told = job_view.counted(found)
    return "" if found.state is JobState.SUCCEEDED or told == str(found.state) else told


@command.command()
@options.job()
@options.as_json
def show(job: int, *, as_json: bool) -> None:
    """Show one job: what it was asked, and what happened.

    The last words of its worker are shown too.
    """
    place = get_home()
    with jobs_client.reading(place) as db:
        found, events, needed_by = _one(db, job)
    lines = _log_tail(place, job)
    if as_json:
        happenings = [{"at": each.at, "name": each.name, "attempt": each.attempt, "data": each.data} for each in events]
        render.data({"job": job_view.row(found) | {"needed_by": needed_by}, "events": happenings, "log": lines})
        return
    for name, value in _facts(found, needed_by):
        click.echo(f"{name:<10} {value}")
    _section("Events", [f"{render.clock(each.at)}  {each.name}{_said(each)}" for each in events])
    _section("Log", [_log_line(each) for each in lines])
    if found.hint:
        render.next_step(found.hint)
    elif found.live:
        render.next_step(f"mlxq jobs watch {found.id}")


def _one(db: Database, number: int) -> tuple[Job, list[Event], list[int]]:
    return job.get(db, number), event.of_job(db, number), job.dependents(db, number)


def _facts(found: Job, needed_by: Sequence[int]) -> list[tuple[str, Any]]:
    """Give what is worth a line, in the order a person asks for it."""
    meaning = KINDS[found.kind].meaning if found.kind in KINDS else "a kind this mlxq does not know; it is kept"
    told = [
        ("Job", f"{found.id}, {job_view.title(found)}: {meaning}"),
        ("State", f"{found.state}: {found.state.meaning}"),
        ("Now", job_view.counted(found) if found.live else ""),
        ("Error", found.error),
        ("Arguments", json.dumps(found.args) if found.args else ""),
        ("Result", json.dumps(found.result) if found.result else ""),
        ("Chain", f"{found.chain}, put in by {found.source}"),
        ("Needs", ", ".join(map(str, found.needs))),
        ("Needed by", ", ".join(map(str, needed_by))),
        ("Attempts", f"{found.attempt}, failed {found.failures} of {found.max_attempts}, rescued {found.rescues}"),
        ("Took", _took(found) if found.finished_at else ""),
    ]
    return [(name, value) for name, value in told if value]


def _said(happening: Event) -> str:
    parts = [f"attempt {happening.attempt}"] if happening.attempt else []
    parts += [f"{name}: {value}" for name, value in happening.data.items()]
    return f"  ({', '.join(parts)})" if parts else ""


def _section(name: str, lines: Sequence[str]) -> None:
    if lines:
        click.echo(f"\n{name}")
        for line in lines:
            click.echo(f"  {line}")


def _log_tail(place: Home, number: int) -> list[dict[str, Any]]:
    """Give the worker's last words on this job."""
    marked = f'"job": {number},'
    return [_parsed(line) for line in tail(place.log("worker"), LOG_TAIL_BYTES).splitlines() if marked in line][
        -LOG_LINES:
    ]


def _parsed(line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError:
        return {"event": line}


def _log_line(said: dict[str, Any]) -> str:
    rest = "  ".join(f"{name}={value}" for name, value in said.items() if name not in LOG_KEYS)
    return f"{said.get('timestamp', '')[:19]}  {said.get('event', '')}  {rest}".rstrip()


@command.command(name="watch")
@options.job(required=False)
@options.as_json
@options.timeout
def follow(job: int | None, *, as_json: bool, timeout_s: float | None) -> None:
    """Follow a job and its chain until they end.

    Without ID: the newest live chain.
    """
    place = get_home()
    with jobs_client.reading(place) as db:
        chain = _chain_of(db, job)
    if chain is None:
        render.say("No job is live.")
        render.next_step("mlxq jobs")
        return
    jobs_client.follow(place, jobs_client.chain(chain), job_view.view(as_json=as_json), timeout_s=timeout_s)


def _chain_of(db: Database, number: int | None) -> int | None:
    if number is not None:
        return job.get(db, number).chain
    return db.value("SELECT max(chain) FROM jobs WHERE state IN ('blocked', 'queued', 'running')")


@command.command()
@options.job()
def cancel(job: int) -> None:
    """Stop a job; what needs it is cancelled too."""
    place = get_home()
    with jobs_client.changing(place) as db:
        state = ledger.cancel(db, job)
    jobs_client.ensure_worker(place)
    told = "was told to stop" if state is JobState.RUNNING else "is cancelled"
    render.say(f"Job {job} {told}.")
    render.next_step(f"mlxq jobs show {job}")


@command.command()
@options.job()
def retry(job: int) -> None:
    """Try a failed or cancelled job again.

    What its end cancelled is tried again with it.
    """
    place = get_home()
    with jobs_client.changing(place) as db:
        first, *rest = ledger.revive(db, job)
    jobs_client.ensure_worker(place)
    render.say(f"Job {first} is tried again" + (f", with {', '.join(map(str, rest))}." if rest else "."))
    render.next_step(f"mlxq jobs watch {first}")


@command.command()
@click.option("--older-than", "days", type=click.FloatRange(min=0), default=30.0, show_default=True, metavar="DAYS")
@click.option("--keep", type=click.IntRange(min=0), default=2000, show_default=True, help="Never forget the newest.")
def prune(days: float, keep: int) -> None:
    """Forget jobs that ended long ago, with their events."""
    place = get_home()
    with jobs_client.changing(place) as db:
        gone = ledger.prune(db, older_than_s=days * render.DAY_S, keep=keep)
    render.say(f"Forgot {gone} {'job' if gone == 1 else 'jobs'}.")
