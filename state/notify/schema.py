"""The tables of notifications, as migration 15 makes them. Times are unix seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

NOTICES = """
CREATE TABLE notices (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  at REAL NOT NULL,
  event TEXT NOT NULL,
  subject TEXT NOT NULL,
  severity TEXT NOT NULL CHECK (severity IN ('error', 'warning', 'ok')),
  message TEXT NOT NULL
) STRICT
"""

DELIVERIES = """
CREATE TABLE deliveries (
  target TEXT PRIMARY KEY,
  notice INTEGER NOT NULL,
  at REAL
) STRICT, WITHOUT ROWID
"""


def m015_notifications(db: Database) -> None:
    """Add the changes that are reported, and up to which one each target has got them."""
    db.execute(NOTICES)
    db.execute(DELIVERIES)
