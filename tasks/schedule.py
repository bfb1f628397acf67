"""Run jobs when they are due: each run is a chain of ordinary jobs, enqueued once in the transaction that notes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from state import event, keys, ledger, service, stack, weights
from state.db import Database
from state.errors import Damaged, NotFound, NotRunning, UsageProblem
from state.job import NewJob, get
from state.schedule import schedules
from state.schedule.schedules import Missed, Schedule
from tasks.batches import control
from tasks.engines import install, installed
from tasks.kinds import new
from tasks.plan import cron as plan
from tasks.queue import Context, crontab, job, tick
from tasks.runtime import runtime
from tasks.system.child import run_child

LOOK_S = 20.0


@job("add_schedule")
def add_schedule(
    context: Context, name: str, *, cron: str, words: str, kind: str, args: dict[str, Any], missed: Missed = "run"
) -> dict[str, Any]:
    """Add a schedule, or replace it. Returns {"name", "next_due"}, in unix seconds. Raises UsageProblem."""
    if not re.fullmatch(keys.NAME, name):
        raise UsageProblem(
            f"{name!r} is no name for a schedule: small letters, digits, dots and dashes.",
            hint="mlxq schedule add --help",
        )
    if kind not in RUNS:
        raise UsageProblem(f"{kind} cannot be scheduled; {', '.join(RUNS)} can.", hint="mlxq schedule add --help")
    now = context.db.now()
    due = crontab(cron).next(_local(now))
    if due is None:
        raise UsageProblem(f"The cron text {cron!r} names a date that never comes.", hint="mlxq schedule add --help")
    with context.db.transaction():
        schedules.put(context.db, Schedule(name, cron, words, kind, args, missed, now, due.timestamp()))
    return {"name": name, "next_due": due.timestamp()}


@job("run_schedule")
def run_schedule(context: Context, name: str) -> dict[str, Any]:
    """Enqueue what a schedule runs, as jobs of the same chain. Returns {"jobs"}. Raises NotFound, NotRunning."""
    schedule = schedules.get(context.db, name)
    batch = RUNS[schedule.kind](context.db, schedule.args)
    for entry in batch:
        context.then(entry)
    return {"jobs": len(batch)}


@job("check_engine")
def check_engine(context: Context, engine: str) -> dict[str, Any]:
    """Look whether there is a newer version of an engine; one is reported. Returns {"engine", "used", "newest"}."""
    newest = install.versions(context.home.engines, engine)[-1]
    used = installed.used(context.db, context.home)
    current = next((installation.version for installation in used if installation.engine == engine), None)
    if current not in {None, newest} and newest not in installed.wish(context.db, engine).bad:
        event.record(context.db, "engine_newer", engine=engine, version=newest)
    return {"engine": engine, "used": current, "newest": newest}


@job("check_catalog")
def check_catalog(context: Context, *, offline: bool = False) -> dict[str, Any]:
    """Check the catalog as `mlxq catalog check` does. Returns {"models", "hub_asked"}. Raises Damaged."""
    request = {"do": "check_catalog", "overlay": str(context.home.catalog), "offline": offline}
    report = run_child("tasks.weights", request, cancelled=context.cancelled, timeout_s=context.remaining_s)
    wrong = [finding for finding in report["findings"] if finding["wrong"]]
    if wrong:
        first = wrong[0]
        raise Damaged(
            f"The catalog has {len(wrong)} errors, the first in {first['model']}: {first['problem']}.",
            hint="mlxq catalog check",
        )
    return {"models": report["models"], "hub_asked": report["hub_asked"]}


def _bench(_db: Database, args: Mapping[str, Any]) -> list[NewJob]:
    return [new("bench", args)]


def _restart(db: Database, args: Mapping[str, Any]) -> list[NewJob]:
    """Return the restarts, each after the one before, of what should run. Raises NotRunning."""
    names: list[str] = args.get("services", [])
    wanted = stack.services(stack.tiers(db), names)
    running = [row.name for row in service.listing(db) if row.desired == "up" and (not names or row.name in wanted)]
    if not running:
        raise NotRunning("Nothing that the schedule restarts should run.", hint="mlxq up")
    labels = [f"restart {name}" for name in running]
    return [
        new("restart", {"service": name}, needs=labels[:number][-1:], label=labels[number])
        for number, name in enumerate(running)
    ]


def _verify(db: Database, args: Mapping[str, Any]) -> list[NewJob]:
    """Return a check of each folder, by default of all weights. Raises NotFound."""
    folders: list[str] = args.get("folders") or [row.folder for row in weights.listing(db)]
    if not folders:
        raise NotFound("There are no weights to check.", hint="mlxq pull MODEL")
    return [new("verify_weights", {"folder": folder}, label=Path(folder).name) for folder in folders]


def _batch(db: Database, args: Mapping[str, Any]) -> list[NewJob]:
    """Create a batch over a file as it is now; its answers are written to `out`, where there is one, at its end.

    Raises NotFound, UsageProblem, DiskFull.
    """
    batch = control.create_from(db, Path(args["file"]), tier=args["tier"], cloud=args["cloud"])
    jobs = [new("batch", {"batch": batch.id}, label="batch")]
    if args.get("out"):
        jobs.append(new("write_batch_output", {"batch": batch.id, "out": args["out"]}, needs=["batch"]))
    return jobs


def _check_catalog(_db: Database, args: Mapping[str, Any]) -> list[NewJob]:
    return [new("check_catalog", args)]


def _check_upgrade(_db: Database, args: Mapping[str, Any]) -> list[NewJob]:
    return [new("check_upgrade", args)]


def _check_engine(_db: Database, args: Mapping[str, Any]) -> list[NewJob]:
    return [new("check_engine", args)]


RUNS: Mapping[str, Callable[[Database, Mapping[str, Any]], list[NewJob]]] = {
    "bench": _bench,
    "restart": _restart,
    "verify": _verify,
    "check_engine": _check_engine,
    "check_upgrade": _check_upgrade,
    "check_catalog": _check_catalog,
    "batch": _batch,
}
"""What can be scheduled, and the jobs of a run."""


@tick("run schedules", LOOK_S)
def run_due() -> None:
    """Enqueue what is due, and record how earlier runs ended."""
    look(runtime.database())


def look(db: Database) -> None:
    """Enqueue a run of each schedule that is due; one that was missed several times runs once."""
    schedules.settle(db)
    now = db.now()
    for schedule in schedules.listing(db):
        if schedule.last_due > now:  # the clock was set back since
            schedules.advance(db, schedule.name, schedule.last_due, now, _next(schedule, now))
        elif schedule.next_due <= now:
            _run_if_due(db, schedule, now)


def _run_if_due(db: Database, schedule: Schedule, now: float) -> None:
    """Move a schedule on, and enqueue its run unless that was missed and is to be skipped."""
    latest = crontab(schedule.cron).latest(_local(now), _local(schedule.last_due))
    at = latest.timestamp() if latest else None
    with db.transaction():
        moved = schedules.advance(db, schedule.name, schedule.last_due, now, _next(schedule, now))
        if moved and plan.due(at, schedule.last_due, now, schedule.missed):
            enqueue_run(db, schedule.name)


def _next(schedule: Schedule, now: float) -> float:
    """Return when a schedule is due after `now`, both in unix seconds."""
    following = crontab(schedule.cron).next(_local(now))
    return following.timestamp() if following else schedule.next_due


def enqueue_run(db: Database, name: str) -> int:
    """Enqueue a run of a schedule as a new request of the user's, and return its first job."""
    with db.transaction():
        number, _ = ledger.enqueue(db, new("run_schedule", {"name": name}))
        schedules.record_run(db, name, get(db, number).chain)
    return number


def _local(at: float) -> datetime:
    """Return a time in unix seconds as the local time of this machine."""
    return datetime.fromtimestamp(at)  # noqa: DTZ006 (cron texts are in local time)
