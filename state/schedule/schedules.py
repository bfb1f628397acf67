"""Schedules and their runs. A run is a chain of ordinary jobs; `outcome` is how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from state import event
from state.classes import dataclass
from state.db import Database, Row, json_mapping
from state.errors import NotFound

Missed = Literal["run", "skip"]
KEEP_S = 30 * 86400.0
UNFINISHED = """
SELECT chain, schedule FROM schedule_runs WHERE outcome IS NULL AND NOT EXISTS
(SELECT 1 FROM jobs WHERE jobs.chain = schedule_runs.chain AND state IN ('blocked', 'queued', 'running'))
"""
"""Runs whose jobs have all ended since the last look."""


@dataclass(frozen=True)
class Schedule:
    """What runs when."""

    name: str
    cron: str
    words: str
    """The command as it was typed."""
    kind: str
    args: dict[str, Any]
    """What it does, as tasks/schedule.py takes it."""
    missed: Missed
    """Whether a run that was missed during sleep is made up for, once."""
    last_due: float
    """Unix seconds up to which due times were looked at."""
    next_due: float


@dataclass(frozen=True)
class ScheduleRun:
    """The latest run of a schedule."""

    chain: int
    at: float
    outcome: str | None


def listing(db: Database) -> list[Schedule]:
    """Return all schedules by name."""
    return [_schedule(row) for row in db.rows("SELECT * FROM schedules ORDER BY name")]


def get(db: Database, name: str) -> Schedule:
    """Return one schedule. Raises NotFound."""
    row = db.row("SELECT * FROM schedules WHERE name = ?", (name,))
    if row is None:
        raise NotFound(f"There is no schedule {name}.", hint="mlxq schedule list")
    return _schedule(row)


def put(db: Database, schedule: Schedule) -> None:
    """Add a schedule, or replace the one of that name."""
    columns = {**vars(schedule), "args": json.dumps(schedule.args)}
    names = ", ".join(columns)
    marks = ", ".join(f":{name}" for name in columns)
    db.run(f"INSERT OR REPLACE INTO schedules ({names}) VALUES ({marks})", columns)  # noqa: S608 (our own names)
    db.announce()


def remove(db: Database, name: str) -> None:
    """Remove a schedule; jobs that run are left alone. Raises NotFound."""
    with db.transaction():
        if not db.run("DELETE FROM schedules WHERE name = ?", (name,)):
            raise NotFound(f"There is no schedule {name}.", hint="mlxq schedule list")
        db.run("DELETE FROM schedule_runs WHERE schedule = ?", (name,))


def advance(db: Database, name: str, before: float, last_due: float, next_due: float) -> bool:
    """Move a schedule on from `before`; False when another look was quicker."""
    return (
        db.run(
            "UPDATE schedules SET last_due = ?, next_due = ? WHERE name = ? AND last_due = ?",
            (last_due, next_due, name, before),
        )
        > 0
    )


def record_run(db: Database, name: str, chain: int) -> None:
    """Record the chain of a run; one that attached to a run that still goes is the same."""
    db.run("INSERT OR IGNORE INTO schedule_runs (chain, schedule, at) VALUES (?, ?, ?)", (chain, name, db.now()))


def last_run(db: Database, name: str) -> ScheduleRun | None:
    """Return the latest run of a schedule."""
    row = db.row("SELECT chain, at, outcome FROM schedule_runs WHERE schedule = ? ORDER BY chain DESC LIMIT 1", (name,))
    return None if row is None else ScheduleRun(row["chain"], row["at"], row["outcome"])


def settle(db: Database) -> list[str]:
    """Record how runs ended, and an event for each that failed; return the schedules of those."""
    failed: list[str] = []
    for row in db.rows(UNFINISHED):
        with db.transaction():
            outcome, cause = _outcome(db, row["chain"])
            updated = db.run(
                "UPDATE schedule_runs SET outcome = ? WHERE chain = ? AND outcome IS NULL", (outcome, row["chain"])
            )
            if updated and outcome == "failed":
                event.record(db, "schedule_failed", subject=row["schedule"], cause=cause)
                failed.append(row["schedule"])
    return failed


def _outcome(db: Database, chain: int) -> tuple[str, str]:
    """Return how a chain ended, and why it failed."""
    row = db.row("SELECT id, error FROM jobs WHERE chain = ? AND state = 'failed' ORDER BY id LIMIT 1", (chain,))
    if row:
        return "failed", f"job {row['id']}: {row['error']}"
    cancelled = db.value("SELECT count(*) FROM jobs WHERE chain = ? AND state = 'cancelled'", (chain,))
    return ("cancelled" if cancelled else "succeeded"), ""


def prune(db: Database) -> int:
    """Forget runs that are 30 days old; return how many."""
    return db.run("DELETE FROM schedule_runs WHERE at < ? AND outcome IS NOT NULL", (db.now() - KEEP_S,))


def _schedule(row: Row | Mapping[str, Any]) -> Schedule:
    values = dict(row)
    values["args"] = json_mapping(values["args"])
    return Schedule(**values)
