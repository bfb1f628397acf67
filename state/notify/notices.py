"""The changes that notifications report, in order, and up to which one each target has got them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from state import facts
from state.db import Database, Row

Severity = Literal["error", "warning", "ok"]
FACT = "notify"
KEEP_S = 30 * 86400.0


@dataclass(frozen=True)
class Notice:
    """One change that is reported."""

    at: float
    """Unix seconds."""
    event: str
    """Its name for programs: crash_loop, needs_attention, healthy, unclean_boot, disk_short …"""
    subject: str
    """What changed: a service, a folder, an engine, a schedule."""
    severity: Severity
    message: str
    id: int = 0
    """Its number, once it is recorded."""


@dataclass(frozen=True)
class Cursor:
    """Up to which event changes were looked for, and what is wrong since."""

    event: int
    problems: Mapping[str, str]
    """Subject -> the name of the problem that was reported last and is not over."""


def cursor(db: Database) -> Cursor | None:
    """Return how far the events were read; None before the first target was added."""
    values = facts.get(db, FACT)
    if not isinstance(values.get("event"), int) or not isinstance(values.get("problems"), dict):
        return None
    problems = cast("dict[Any, Any]", values["problems"])
    return Cursor(values["event"], {str(name): str(problem) for name, problem in problems.items()})


def put_cursor(db: Database, cursor: Cursor) -> None:
    """Record how far the events were read."""
    facts.put(db, FACT, {"event": cursor.event, "problems": dict(cursor.problems)})


def begin(db: Database, target: str) -> None:
    """Have a target that is new get what changes from now on; the first one begins the reading of events."""
    with db.transaction():
        if cursor(db) is None or not db.value("SELECT count(*) FROM deliveries"):
            put_cursor(db, Cursor(db.value("SELECT coalesce(max(id), 0) FROM events"), {}))
        db.run(
            "INSERT OR IGNORE INTO deliveries (target, notice) VALUES (?, (SELECT coalesce(max(id), 0) FROM notices))",
            (target,),
        )


def begun(db: Database) -> set[str]:
    """Return the targets that get what changes."""
    return {row["target"] for row in db.rows("SELECT target FROM deliveries")}


def forget(db: Database, target: str) -> None:
    """Forget what a target has got."""
    db.run("DELETE FROM deliveries WHERE target = ?", (target,))


def record(db: Database, notices: Sequence[Notice]) -> None:
    """Record changes."""
    for notice in notices:
        columns = {"at": notice.at, "event": notice.event, "subject": notice.subject}
        db.insert("notices", columns | {"severity": notice.severity, "message": notice.message})


def pending(db: Database, target: str) -> list[Notice]:
    """Return what a target has not got yet, oldest first; nothing for one that is gone."""
    rows = db.rows(
        "SELECT notices.* FROM notices JOIN deliveries ON target = ? AND notices.id > notice ORDER BY notices.id",
        (target,),
    )
    return [Notice(**dict(row)) for row in rows]


def delivered(db: Database, target: str, notice: int) -> None:
    """Record that a target has got everything up to a notice."""
    db.run("UPDATE deliveries SET notice = max(notice, ?), at = ? WHERE target = ?", (notice, db.now(), target))


def delivered_at(db: Database, target: str) -> float | None:
    """Return when a target got its last message, in unix seconds."""
    return db.value("SELECT at FROM deliveries WHERE target = ?", (target,))


def latest_delivery(db: Database, target: str) -> Row | None:
    """Return state, error, failures and finished_at of the newest job that delivers to a target; None for none."""
    return db.row(
        "SELECT state, error, failures, finished_at FROM jobs"
        " WHERE kind = 'notify' AND json_extract(args, '$.target') = ? ORDER BY id DESC LIMIT 1",
        (target,),
    )


def prune(db: Database) -> int:
    """Forget changes that are 30 days old; return how many."""
    return db.run("DELETE FROM notices WHERE at < ?", (db.now() - KEEP_S,))
