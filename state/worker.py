"""The worker's row: which process it is, and when it last said that it lives."""

from __future__ import annotations

from state.classes import dataclass
from state.db import Database


@dataclass(frozen=True)
class Worker:
    """The worker of this home, as it last wrote itself down."""

    owner: str
    """boot/pid/start: equal to no other process."""
    pid: int
    version: str
    started_at: float
    """Unix seconds."""
    beat_at: float
    """Unix seconds; for people."""
    beat_clock: float
    """Seconds on the monotonic clock of its boot, which neither sleep nor a set clock moves; for judging."""


def current(db: Database) -> Worker | None:
    """Return the worker that wrote last and did not sign off, dead or alive."""
    row = db.row("SELECT owner, pid, version, started_at, beat_at, beat_clock FROM worker")
    return None if row is None else Worker(**dict(row))


def beat(db: Database, owner: str, pid: int, version: str, clock: float) -> None:
    """Write that the worker `owner` lives at `clock` (monotonic seconds)."""
    now = db.now()
    db.run(
        "INSERT INTO worker (id, owner, pid, version, started_at, beat_at, beat_clock) VALUES (1, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET"
        " started_at = CASE WHEN owner = excluded.owner THEN started_at ELSE excluded.started_at END,"
        " owner = excluded.owner, pid = excluded.pid, version = excluded.version,"
        " beat_at = excluded.beat_at, beat_clock = excluded.beat_clock",
        (owner, pid, version, now, now, clock),
    )


def sign_off(db: Database, owner: str) -> None:
    """Forget the worker `owner`, which ends by itself."""
    db.run("DELETE FROM worker WHERE owner = ?", (owner,))
