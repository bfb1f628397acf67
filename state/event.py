"""What happened, in order: to jobs and to services. Rows are written in the transaction of the step they tell of."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from state.classes import dataclass
from state.db import Database, Row, json_mapping


@dataclass(frozen=True)
class Event:
    """One thing that happened."""

    id: int
    at: float
    """Unix seconds."""
    job: int | None
    service: str | None
    name: str
    attempt: int | None
    data: dict[str, Any]


def record(
    db: Database,
    name: str,
    *,
    job: int | None = None,
    service: str | None = None,
    attempt: int | None = None,
    **data: Any,
) -> int:
    """Write one event and return its id; `data` must be JSON-able and free of secrets and of users' text."""
    values = {"at": db.now(), "job": job, "service": service, "name": name, "attempt": attempt}
    return db.insert("events", values | {"data": json.dumps(data) if data else None})


def of_job(db: Database, job: int) -> list[Event]:
    """Return a job's events, oldest first."""
    return [_event(row) for row in db.rows("SELECT * FROM events WHERE job = ? ORDER BY id", (job,))]


def of_service(db: Database, service: str | None, *, limit: int = 50, before: int | None = None) -> list[Event]:
    """Return the newest events of one service, or of all, below the id `before` if that is given; oldest first."""
    rows = db.rows(
        "SELECT * FROM events WHERE service IS NOT NULL AND (:service IS NULL OR service = :service)"
        " AND (:before IS NULL OR id < :before)"
        " ORDER BY id DESC LIMIT :limit",
        {"service": service, "limit": limit, "before": before},
    )
    return [_event(row) for row in reversed(rows)]


def of_names(db: Database, names: Collection[str], *, limit: int) -> list[Event]:
    """Return the newest events of these names, oldest first."""
    rows = db.rows(
        "SELECT * FROM events WHERE name IN (SELECT value FROM json_each(?)) ORDER BY id DESC LIMIT ?",
        (json.dumps(sorted(names)), limit),
    )
    return [_event(row) for row in reversed(rows)]


def since(db: Database, after: int, names: Collection[str]) -> list[Event]:
    """Return the events of these names whose id is above `after`, oldest first."""
    rows = db.rows(
        "SELECT * FROM events WHERE id > ? AND name IN (SELECT value FROM json_each(?)) ORDER BY id",
        (after, json.dumps(sorted(names))),
    )
    return [_event(row) for row in rows]


def _event(row: Row) -> Event:
    values = dict(row)
    values["data"] = json_mapping(values["data"])
    return Event(**values)
