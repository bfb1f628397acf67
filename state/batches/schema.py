"""The tables of files and batches, as migration 18 makes them. Times are unix seconds, sizes bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlite_utils import Database

FILES = """
CREATE TABLE files (
  id TEXT PRIMARY KEY,
  owner TEXT NOT NULL,
  purpose TEXT NOT NULL CHECK (purpose IN ('batch', 'batch_output', 'message_batch')),
  filename TEXT NOT NULL,
  bytes INTEGER NOT NULL,
  sha256 TEXT NOT NULL,
  created_at REAL NOT NULL,
  expires_at REAL NOT NULL
) STRICT, WITHOUT ROWID
"""

BATCHES = """
CREATE TABLE batches (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  owner TEXT NOT NULL,
  dialect TEXT NOT NULL CHECK (dialect IN ('openai', 'anthropic')),
  endpoint TEXT NOT NULL,
  input_file TEXT NOT NULL,
  status TEXT NOT NULL CHECK (status IN ('validating', 'in_progress', 'finalizing', 'completed', 'failed', 'expired',
    'cancelling', 'cancelled')),
  tier TEXT,
  cloud INTEGER NOT NULL DEFAULT 0 CHECK (cloud IN (0, 1)),
  metadata TEXT CHECK (metadata IS NULL OR json_valid(metadata)),
  created_at REAL NOT NULL,
  expires_at REAL NOT NULL,
  in_progress_at REAL,
  finalizing_at REAL,
  completed_at REAL,
  failed_at REAL,
  expired_at REAL,
  cancelling_at REAL,
  cancelled_at REAL,
  total INTEGER NOT NULL DEFAULT 0,
  succeeded INTEGER NOT NULL DEFAULT 0,
  errored INTEGER NOT NULL DEFAULT 0,
  unanswered INTEGER NOT NULL DEFAULT 0,
  output_bytes INTEGER NOT NULL DEFAULT 0,
  error_bytes INTEGER NOT NULL DEFAULT 0,
  output_file TEXT,
  error_file TEXT,
  errors TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(errors))
) STRICT
"""

LINES = """
CREATE TABLE batch_lines (
  batch INTEGER NOT NULL REFERENCES batches (number) ON DELETE CASCADE,
  n INTEGER NOT NULL,
  custom_id TEXT NOT NULL,
  offset INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  ended INTEGER NOT NULL DEFAULT 0 CHECK (ended IN (0, 1)),
  PRIMARY KEY (batch, n),
  UNIQUE (batch, custom_id)
) STRICT, WITHOUT ROWID
"""

QUEUES = "queue IN ('ops', 'heavy')"
MORE_QUEUES = "queue IN ('ops', 'heavy', 'bulk')"


def m018_batches(db: Database) -> None:
    """Add files, batches and their lines, and let jobs be in the queue `bulk`."""
    for statement in (FILES, BATCHES, LINES):
        db.execute(statement)
    db.execute("CREATE INDEX files_owner ON files (owner, created_at)")
    db.execute("CREATE INDEX batches_owner ON batches (owner, number)")
    db.execute("CREATE INDEX batch_lines_open ON batch_lines (batch, n) WHERE NOT ended")
    _add_queue(db)


def _add_queue(db: Database) -> None:
    """Make the table `jobs` again with another check, which SQLite cannot change (sqlite.org/lang_altertable.html).

    Its views and indexes are made again from what SQLite keeps of them; ids that were given out are not given again.
    """
    rest: list[Any] = db.execute(
        "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name <> 'jobs'"
        " AND (type = 'view' OR (type = 'index' AND tbl_name = 'jobs'))"
    ).fetchall()
    (sql,) = db.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = 'jobs'").fetchone()
    (last,) = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
    head, _, columns = sql.partition("(")
    assert "jobs" in head
    assert QUEUES in columns
    for kind, name, _ in rest:
        db.execute(f"DROP {kind} {name}")
    db.execute(f"CREATE TABLE more_jobs ({columns.replace(QUEUES, MORE_QUEUES)}")
    db.execute("INSERT INTO more_jobs SELECT * FROM jobs")
    db.execute("DROP TABLE jobs")
    db.execute("ALTER TABLE more_jobs RENAME TO jobs")
    db.execute("DELETE FROM sqlite_sequence WHERE name IN ('jobs', 'more_jobs')")
    db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('jobs', ?)", (last,))
    for _, _, statement in rest:
        db.execute(statement)
