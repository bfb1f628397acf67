"""The schema of state.db, as the steps that made it. Times are unix seconds (UTC), sizes are bytes.

sqlite-utils runs and records the steps; it does not guard against two processes at once, so a file lock does.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import sys
from pathlib import Path

from state.batches.schema import m018_batches
from state.db import BUSY_TIMEOUT_S, SCHEMA_VERSION, create_private
from state.fleet import m020_nodes
from state.notify.schema import m015_notifications
from state.on_demand import MODELS, RESIDENCY
from state.paths import Home
from state.schedule.schema import m016_schedules

UNUSED = {"numpy", "pandas"} - sys.modules.keys()
for unused in UNUSED:
    sys.modules[unused] = None  # pyright: ignore[reportArgumentType] (None makes the import fail; sqlite-utils copes, two seconds saved)

from sqlite_utils import Database, Migrations  # noqa: E402 (after the lines above)

for unused in UNUSED:
    del sys.modules[unused]  # a later import finds the real module

schema = Migrations("mlxq")

JOBS = """
CREATE TABLE jobs (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  kind TEXT NOT NULL,
  args TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(args)),
  lane TEXT NOT NULL CHECK (lane IN ('ops', 'heavy')),
  priority INTEGER NOT NULL DEFAULT 0,
  ukey TEXT,
  chain INTEGER NOT NULL,
  source TEXT NOT NULL CHECK (source IN ('person', 'chain', 'watchdog')),
  state TEXT NOT NULL CHECK (state IN ('blocked', 'queued', 'running', 'succeeded', 'failed', 'cancelled')),
  attempt INTEGER NOT NULL DEFAULT 0,
  failures INTEGER NOT NULL DEFAULT 0,
  max_attempts INTEGER NOT NULL DEFAULT 1,
  rescues INTEGER NOT NULL DEFAULT 0,
  run_at REAL NOT NULL,
  wait_s REAL NOT NULL DEFAULT 0,
  owner TEXT,
  beat_at REAL,
  cancel_at REAL,
  phase TEXT,
  progress TEXT CHECK (progress IS NULL OR json_valid(progress)),
  result TEXT CHECK (result IS NULL OR json_valid(result)),
  error_code TEXT,
  error TEXT,
  hint TEXT,
  created_at REAL NOT NULL,
  started_at REAL,
  finished_at REAL,
  CHECK ((state = 'running') = (owner IS NOT NULL)),
  CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL))
) STRICT
"""

JOB_DEPS = """
CREATE TABLE job_deps (
  job INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
  needs INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
  soft INTEGER NOT NULL DEFAULT 0 CHECK (soft IN (0, 1)),
  PRIMARY KEY (job, needs)
) STRICT, WITHOUT ROWID
"""

EVENTS = """
CREATE TABLE events (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  at REAL NOT NULL,
  job INTEGER,
  service TEXT,
  name TEXT NOT NULL,
  attempt INTEGER,
  data TEXT CHECK (data IS NULL OR json_valid(data))
) STRICT
"""

WORKER = """
CREATE TABLE worker (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  owner TEXT NOT NULL,
  pid INTEGER NOT NULL,
  version TEXT NOT NULL,
  started_at REAL NOT NULL,
  beat_at REAL NOT NULL,
  beat_clock REAL NOT NULL
) STRICT
"""

TIERS = """
CREATE TABLE tiers (
  name TEXT PRIMARY KEY,
  position INTEGER NOT NULL,
  model TEXT NOT NULL,
  quant TEXT NOT NULL,
  source TEXT NOT NULL,
  port INTEGER NOT NULL UNIQUE,
  context INTEGER NOT NULL,
  memory_bytes INTEGER NOT NULL,
  cache_bytes INTEGER NOT NULL,
  concurrency INTEGER NOT NULL,
  weights TEXT NOT NULL DEFAULT '',
  max_tokens INTEGER NOT NULL,
  tool_parser TEXT,
  reasoning_parser TEXT,
  vision INTEGER NOT NULL DEFAULT 0,
  prefill_step INTEGER NOT NULL,
  assigned_at REAL NOT NULL
) STRICT
"""

SERVICES = """
CREATE TABLE services (
  name TEXT PRIMARY KEY,
  kind TEXT NOT NULL CHECK (kind IN ('engine', 'gateway', 'page')),
  wanted TEXT NOT NULL CHECK (wanted IN ('up', 'down')),
  doing TEXT NOT NULL DEFAULT 'stopped',
  observed TEXT NOT NULL DEFAULT 'stopped',
  generation INTEGER NOT NULL DEFAULT 0,
  argv TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(argv)),
  fingerprint TEXT NOT NULL DEFAULT '',
  port INTEGER NOT NULL,
  identity TEXT,
  shim TEXT,
  started_at REAL,
  ready_at REAL,
  ok_at REAL,
  exits TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(exits)),
  restarts INTEGER NOT NULL DEFAULT 0,
  next_try_at REAL,
  exit_code INTEGER,
  cause_code TEXT,
  cause TEXT,
  hint TEXT,
  memory_bytes INTEGER,
  updated_at REAL NOT NULL
) STRICT
"""

FACTS = """
CREATE TABLE facts (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL CHECK (json_valid(value)),
  at REAL NOT NULL
) STRICT
"""

SAMPLES = """
CREATE TABLE samples (
  service TEXT NOT NULL,
  at INTEGER NOT NULL,
  span_s INTEGER NOT NULL,
  up REAL NOT NULL,
  running REAL NOT NULL,
  waiting REAL NOT NULL,
  requests INTEGER NOT NULL,
  errors INTEGER NOT NULL,
  fallbacks INTEGER NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL,
  decode_tps REAL,
  prompt_tps REAL,
  ttft_s REAL,
  memory_bytes INTEGER,
  wired_bytes INTEGER,
  swap_bytes INTEGER,
  PRIMARY KEY (service, at, span_s)
) STRICT, WITHOUT ROWID
"""

USAGE = """
CREATE TABLE usage (
  day TEXT NOT NULL,
  key TEXT NOT NULL,
  tier TEXT NOT NULL,
  requests INTEGER NOT NULL,
  failed INTEGER NOT NULL,
  fallbacks INTEGER NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL,
  seconds REAL NOT NULL,
  first_byte_seconds REAL NOT NULL,
  waited_seconds REAL NOT NULL,
  PRIMARY KEY (day, key, tier)
) STRICT, WITHOUT ROWID
"""

WEIGHTS = """
CREATE TABLE weights (
  folder TEXT PRIMARY KEY,
  source TEXT NOT NULL,
  revision TEXT NOT NULL,
  model_type TEXT NOT NULL,
  parameters INTEGER NOT NULL,
  bits REAL NOT NULL,
  quantization TEXT,
  context INTEGER NOT NULL,
  kv_bytes_per_token INTEGER NOT NULL,
  size INTEGER NOT NULL,
  vision INTEGER NOT NULL,
  recipe TEXT,
  pulled_at REAL NOT NULL,
  verified_at REAL,
  loaded_at REAL
) STRICT
"""

BENCHES = """
CREATE TABLE benches (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  at REAL NOT NULL,
  model TEXT NOT NULL,
  quant TEXT NOT NULL,
  source TEXT NOT NULL,
  revision TEXT NOT NULL,
  chip TEXT NOT NULL,
  engine TEXT NOT NULL,
  mlx TEXT NOT NULL,
  runs INTEGER NOT NULL,
  concurrency INTEGER NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  gen_tokens INTEGER NOT NULL,
  ttft_s REAL NOT NULL,
  prompt_tps REAL NOT NULL,
  decode_tps REAL NOT NULL,
  decode_low REAL NOT NULL,
  decode_high REAL NOT NULL,
  total_tps REAL NOT NULL,
  peak_bytes INTEGER NOT NULL
) STRICT
"""

DESIRED = """
CREATE TABLE desired (
  subject TEXT PRIMARY KEY,
  value TEXT NOT NULL,
  seq INTEGER NOT NULL,
  at REAL NOT NULL
) STRICT, WITHOUT ROWID
"""

SHARING_TIERS = """
CREATE TABLE tiers (
  name TEXT PRIMARY KEY,
  engine TEXT NOT NULL REFERENCES engines (name),
  position INTEGER NOT NULL,
  desired TEXT NOT NULL DEFAULT 'up' CHECK (desired IN ('up', 'down')),
  max_tokens INTEGER,
  temperature REAL,
  top_p REAL,
  top_k INTEGER,
  thinking INTEGER CHECK (thinking IN (0, 1)),
  thinking_budget INTEGER
) STRICT
"""

LIVE_JOBS = """
CREATE VIEW live_jobs AS
SELECT id, kind, state, phase, lane, chain, attempt, args,
       datetime(created_at, 'unixepoch') AS created, datetime(started_at, 'unixepoch') AS started
FROM jobs WHERE state IN ('blocked', 'queued', 'running') ORDER BY id
"""

JOB_DURATIONS = """
CREATE VIEW job_durations AS
SELECT kind, count(*) AS runs, sum(state = 'succeeded') AS succeeded, sum(state = 'failed') AS failed,
       round(avg(finished_at - started_at), 3) AS mean_s, round(max(finished_at - started_at), 3) AS longest_s
FROM jobs WHERE started_at IS NOT NULL AND finished_at IS NOT NULL GROUP BY kind ORDER BY kind
"""

INDEXES = (
    "CREATE UNIQUE INDEX jobs_live_ukey ON jobs (ukey) WHERE state IN ('blocked', 'queued', 'running')",
    "CREATE INDEX jobs_queued ON jobs (lane, priority DESC, id) WHERE state = 'queued'",
    "CREATE INDEX jobs_running ON jobs (owner) WHERE state = 'running'",
    "CREATE INDEX jobs_chain ON jobs (chain)",
    "CREATE INDEX jobs_finished ON jobs (finished_at)",
    "CREATE INDEX job_deps_needs ON job_deps (needs)",
    "CREATE INDEX events_job ON events (job)",
    "CREATE INDEX events_service ON events (service, id)",
)


@schema()
def m001_first(db: Database) -> None:
    """Jobs, their events, the worker, the stack and its services."""
    for statement in (
        JOBS,
        JOB_DEPS,
        EVENTS,
        WORKER,
        TIERS,
        SERVICES,
        FACTS,
        LIVE_JOBS,
        JOB_DURATIONS,
        *INDEXES,
    ):
        db.execute(statement)


@schema()
def m002_samples(db: Database) -> None:
    """How each service fared."""
    db.execute(SAMPLES)
    db.execute("CREATE INDEX samples_span ON samples (span_s, at)")


@schema()
def m003_usage(db: Database) -> None:
    """Add the sums of what passed the gateway."""
    db.execute(USAGE)


@schema()
def m004_weights(db: Database) -> None:
    """Add the weights that were pulled."""
    db.execute(WEIGHTS)
    db.execute("CREATE INDEX weights_source ON weights (source, pulled_at)")


@schema()
def m005_benches(db: Database) -> None:
    """Add the benchmarks that were saved."""
    db.execute(BENCHES)
    db.execute("CREATE INDEX benches_model ON benches (model, quant, at)")


@schema()
def m006_succession(db: Database) -> None:
    """Add what is known of a process that is to replace a running one, and of those it replaced."""
    db.execute("ALTER TABLE services ADD COLUMN successor TEXT")
    db.execute("ALTER TABLE services ADD COLUMN leaving TEXT NOT NULL DEFAULT '[]'")


@schema()
def m007_unread(db: Database) -> None:
    """Drop what was written and never read."""
    db.execute("ALTER TABLE services DROP COLUMN ok_at")


RENAMED_COLUMNS = (
    ("jobs", "lane", "queue"),
    ("jobs", "ukey", "unique_key"),
    ("services", "wanted", "desired"),
    ("services", "doing", "state"),
    ("services", "fingerprint", "spec_hash"),
)
RENAMED_KINDS = {"verify": "smoke_test", "check": "verify_weights", "remove": "remove_weights", "prune": "prune_jobs"}
RENAMED_EVENTS = {
    "intended": "starting",
    "readied": "became_ready",
    "drained": "drain_started",
    "ending": "stopping",
    "died": "exited",
    "flapped": "crash_looped",
    "gave_up": "failed",
    "foreseen": "handover_started",
    "wanted_up": "start_requested",
    "wanted_down": "stop_requested",
    "reduced": "safe_mode",
}


@schema()
def m008_names(db: Database) -> None:
    """Rename columns, job kinds and events to the names that Kubernetes, systemd and Huey use; every row is kept."""
    for table, old, new in RENAMED_COLUMNS:
        db.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")
    for old, new in RENAMED_KINDS.items():
        db.execute(
            "UPDATE jobs SET kind = :new, unique_key = :new || substr(unique_key, length(:old) + 1) WHERE kind = :old",
            {"old": old, "new": new},
        )
    for old, new in RENAMED_EVENTS.items():
        db.execute("UPDATE events SET name = ? WHERE name = ?", (new, old))
    db.execute("UPDATE services SET state = 'crash_loop' WHERE state = 'flapping'")
    db.execute("""UPDATE services SET successor = replace(successor, '"fingerprint":', '"spec_hash":')""")
    db.execute("""UPDATE facts SET value = replace(value, '"told":', '"sentence":') WHERE name = 'restraint'""")


@schema()
def m009_answer_timeout(db: Database) -> None:
    """Add how long one answer of a tier may take."""
    db.execute("ALTER TABLE tiers ADD COLUMN answer_timeout_s INTEGER NOT NULL DEFAULT 300")


@schema()
def m010_engines(db: Database) -> None:
    """Add which engine a service runs, and how much of the prompts was not read again."""
    db.execute("ALTER TABLE services ADD COLUMN release TEXT NOT NULL DEFAULT ''")
    db.execute("ALTER TABLE samples ADD COLUMN cached_tokens INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE usage ADD COLUMN cached_tokens INTEGER NOT NULL DEFAULT 0")
    db.execute("ALTER TABLE benches ADD COLUMN reused REAL")
    db.execute("UPDATE benches SET engine = 'vllm-mlx ' || engine WHERE engine NOT LIKE '% %'")


@schema()
def m011_reasons(db: Database) -> None:
    """Rename the argument that says why a service or an engine is changed, in the jobs of every state."""
    for table, column, key, value in (
        ("jobs", "args", "kind", "restart"),
        ("jobs", "args", "kind", "rollback_engine"),
        ("facts", "value", "name", "restraint"),
    ):
        db.execute(
            f"""UPDATE {table} SET {column} = replace({column}, '"why":', '"reason":') WHERE {key} = ?""",  # noqa: S608 (the names above)
            (value,),
        )


@schema()
def m012_reused(db: Database) -> None:
    """Add how much of a conversation an engine did not read again when it was asked a second turn."""
    db.execute("ALTER TABLE services ADD COLUMN reused REAL")


@schema()
def m013_desired(db: Database) -> None:
    """Add what users asked for last and in which order, and let one job at a time run for a service."""
    db.execute(DESIRED)
    for column in (
        "seq INTEGER NOT NULL DEFAULT 0",
        "service TEXT",
        "request TEXT",
        "again INTEGER NOT NULL DEFAULT 0",
    ):
        db.execute(f"ALTER TABLE jobs ADD COLUMN {column}")
    db.execute("ALTER TABLE services ADD COLUMN restarted INTEGER NOT NULL DEFAULT 0")
    db.execute(
        "UPDATE jobs SET service = json_extract(args, '$.service')"
        " WHERE kind IN ('start', 'stop', 'drain', 'restart', 'retire')"
    )


@schema()
def m014_shared_engines(db: Database) -> None:
    """Keep engines and tiers apart: what was a tier becomes an engine and a tier of the same name that points to it.

    Names that led to another tier's engine by an alias of the gateway become tiers that share it.
    """
    db.execute("ALTER TABLE tiers RENAME TO engines")
    db.execute(SHARING_TIERS)
    db.execute("CREATE INDEX tiers_engine ON tiers (engine)")
    db.execute(
        "INSERT INTO tiers (name, engine, position, max_tokens)"
        " SELECT name, name, position, nullif(max_tokens, min(4096, context / 2)) FROM engines"
    )
    db.execute("ALTER TABLE engines DROP COLUMN max_tokens")
    row = db.execute("SELECT value FROM facts WHERE name = 'stack'").fetchone()
    shares: dict[str, str] = json.loads(row[0]).get("shares", {}) if row else {}
    for name, engine in shares.items():
        db.execute(
            "INSERT INTO tiers (name, engine, position, max_tokens)"
            " SELECT :name, engine, (SELECT max(position) + 1 FROM tiers), max_tokens FROM tiers"
            " WHERE name = :engine AND NOT EXISTS (SELECT 1 FROM tiers WHERE name = :name)",
            {"name": name, "engine": engine},
        )


schema()(m015_notifications)
schema()(m016_schedules)


@schema()
def m017_purposes(db: Database) -> None:
    """Add what an engine is for: chats, or vectors of texts, or the ranking of documents; those have no tier."""
    db.execute(
        "ALTER TABLE engines ADD COLUMN purpose TEXT NOT NULL DEFAULT 'chat'"
        " CHECK (purpose IN ('chat', 'embedding', 'rerank'))"
    )


schema()(m018_batches)


@schema()
def m019_on_demand(db: Database) -> None:
    """Add the models on this disk, and what is known of the use of engines that may sleep."""
    db.execute(MODELS)
    db.execute(RESIDENCY)


schema()(m020_nodes)


@schema()
def m021_proved(db: Database) -> None:
    """Add with which command an engine that may sleep answered last, so that waking it proves nothing again."""
    db.execute("ALTER TABLE residency ADD COLUMN proved TEXT NOT NULL DEFAULT ''")


def back_up(connection: sqlite3.Connection, target: Path) -> None:
    """Copy state.db, as it is at one moment, to a private file; one that is there already is replaced.

    Raises sqlite3.Error, OSError; what was there is then as it was.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}")
    partial.unlink(missing_ok=True)
    create_private(partial)
    copy = sqlite3.connect(partial)
    try:
        connection.backup(copy)
    finally:
        copy.close()
    partial.replace(target)


def migrate(home: Home) -> None:
    """Bring state.db to this mlxq's schema; one process at a time, and again is harmless.

    A copy of what was there is kept, for the mlxq that wrote it (`mlxq upgrade --back`).
    A database of a newer mlxq is left alone. The version is written last: until then the next process starts over,
    and finds what is done in sqlite-utils' own table.
    """
    with (home.run / "migrate.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        create_private(home.database)
        db = Database(str(home.database))
        try:
            db.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_S * 1000:.0f}")
            before = db.execute("PRAGMA user_version").fetchone()[0]
            if before < SCHEMA_VERSION:
                if before and len(schema.applied(db)) == before:  # not one whose migration was cut short
                    back_up(db.conn, home.backup(before))
                db.enable_wal()
                schema.apply(db)
                db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        finally:
            db.close()


if __name__ == "__main__":
    migrate(Home(Path(sys.argv[1])))
