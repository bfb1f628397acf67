"""The tables of schedules, as migration 16 makes them. Times are unix seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

SCHEDULES = """
CREATE TABLE schedules (
  name TEXT PRIMARY KEY,
  cron TEXT NOT NULL,
  words TEXT NOT NULL,
  kind TEXT NOT NULL,
  args TEXT NOT NULL CHECK (json_valid(args)),
  missed TEXT NOT NULL CHECK (missed IN ('run', 'skip')),
  last_due REAL NOT NULL,
  next_due REAL NOT NULL
) STRICT, WITHOUT ROWID
"""

RUNS = """
CREATE TABLE schedule_runs (
  chain INTEGER PRIMARY KEY,
  schedule TEXT NOT NULL,
  at REAL NOT NULL,
  outcome TEXT CHECK (outcome IN ('succeeded', 'failed', 'cancelled'))
) STRICT
"""


def m016_schedules(db: Database) -> None:
    """Add what runs when, and the chains of jobs that came of it."""
    db.execute(SCHEDULES)
    db.execute(RUNS)
