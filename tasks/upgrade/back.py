"""The way back, and the guard that goes it: a process of the version before, which outlives the worker.

The guard lives from the switch until the upgrade is settled. It keeps a worker running meanwhile, and goes back when
one does not come up, or says nothing for too long. A guard that was killed is started again by the next worker, and by
the installed program before it becomes another version; what it does can be done twice.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from state import event, files, ledger, service, wakeup
from state.db import Database, create_private, open_database
from state.errors import MlxqError
from state.paths import Home
from state.service import ServiceEvent
from tasks import kinds
from tasks.plan import notices
from tasks.system import process
from tasks.upgrade import installation
from tasks.upgrade import record as records
from tasks.upgrade.record import Phase, Record

LOCK = "guard.lock"
MERGED = "state-before.db"
"""In run/: what state.db becomes on the way back."""
SWITCH_S = 120.0
"""For the old worker to stop (12 s), and the new one to load and to bring state.db to its schema."""
VERIFY_S = 1800.0
"""Without a step: the last answers of an engine may take 600 s, and the start of the next one 900 s."""
MOST_STARTS = 3
SYSTEM_S = 15.0
"""Seconds in which launchd or systemd starts a worker again."""
END_S = 20.0
LOOK_S = 0.5


@dataclass
class Watch:
    """What the guard has seen: since when the upgrade has taken no step, and how many workers it has started."""

    record: Record
    since: float
    """Monotonic seconds, which do not count while the machine sleeps."""
    starts: int = 0
    away_since: float | None = None

    def look(self, record: Record, now: float, *, running: bool) -> None:
        """Note what is now."""
        if (record.phase, record.at) != (self.record.phase, self.record.at):
            self.record, self.since = record, now
        self.away_since = None if running else (self.away_since or now)

    def wants_worker(self, now: float) -> bool:
        """Return whether a worker is to be started: at once, unless the system does it."""
        patience_s = SYSTEM_S if self.record.system else 1.0
        return self.away_since is not None and now - self.away_since > patience_s

    def failure(self, now: float) -> str:
        """Return why the new version is to be taken back; empty while nothing speaks against it."""
        after, limit_s = self.record.after.version, SWITCH_S if self.record.phase == Phase.SWITCH else VERIFY_S
        if self.starts > MOST_STARTS:
            return f"the worker of {after} ended {self.starts} times"
        if now - self.since > limit_s:
            return f"{after} did not come up within {limit_s:.0f} s"
        return ""


def ensure_guard(home: Home, record: Record) -> None:
    """Start the guard of an upgrade that is not settled, unless it lives. It runs by the version before."""
    if not record.unsettled or files.locked(home.run / LOCK):
        return
    with process.appended(home.log("upgrade")) as log:
        subprocess.Popen(
            [record.before.python, "-P", "-m", "mlxq.upgrade_guard"],
            env=os.environ | {"MLXQ_HOME": str(home.root)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def await_turn(home: Home) -> None:
    """Have an upgrade that is not settled guarded; wait while its guard makes the old version serve again.

    For a worker that starts, before it opens state.db.
    """
    while (record := records.read(home)) and record.unsettled:
        ensure_guard(home, record)
        if record.phase != Phase.BACK:
            return
        time.sleep(LOOK_S)


def request(home: Home, record: Record, reason: str, at: float) -> Record:
    """Write down that the version before is to serve again, and have the guard see to it."""
    back = records.step(home, record, Phase.BACK, at, reason=reason)
    ensure_guard(home, back)
    wakeup.announce(home)
    return back


def go(home: Home, record: Record, reason: str) -> Record:
    """Make the version before serve again: links, worker, state.db. Each step may have been done before.

    Where the copy of state.db that this needs is not there, the new version stays in use: the phase is then done again.
    Raises Busy when the worker took a step meanwhile.
    """
    if record.phase != Phase.BACK:
        record = records.step(home, record, Phase.BACK, time.time(), reason=reason)
    if missing := lacks_backup(home, record):
        return records.step(home, record, Phase.DONE, time.time(), reason=f"{missing} is not there")
    installation.lead_to(home, record.before.version, record.before.python)
    end_worker(home)
    if schema(home) > record.before.schema:
        copy = str(home.backup(record.before.schema))
        record = records.step(home, record, Phase.BACK, time.time(), backup=copy)
        restore(home, Path(copy))
    with suppress(MlxqError), closing(open_database(home)) as db:
        after, before = record.after.version, record.before.version
        cause = notices.BY_USER if record.reason == records.BY_USER else record.reason
        event.record(
            db,
            "upgrade_taken_back",
            subject=f"mlxq {after}",
            version=after,
            now=before,
            cause=cause,
            backup=record.backup,
        )
        _try_again(db)
        if record.reason == records.BY_USER:  # a restored state.db has it without its end: the next would follow it
            ledger.cancel(db, record.job)
    return records.step(home, record, Phase.TAKEN_BACK, time.time())


def _try_again(db: Database) -> None:
    """Have what is to run and was given up started once more: it was the version after that could not start it.

    The gateway holds requests for an engine that stopped, and for none that failed.
    """
    for row in service.listing(db):
        if row.desired == "up" and row.state in service.DOWN:
            service.apply(db, row.name, ServiceEvent.STOPPED, next_try_at=None)
            ledger.enqueue(db, kinds.new("restart", {"service": row.name, "reason": "upgraded"}), source="watchdog")


def end_worker(home: Home) -> None:
    """End the worker that holds the lock, if any; its services keep running."""
    with suppress(OSError, ValueError):
        identity = process.identify(int(home.worker_lock.read_text()))
        if identity and files.locked(home.worker_lock):
            process.stop(identity, END_S)


def lacks_backup(home: Home, record: Record) -> str:
    """Return the copy of state.db that the way back needs and that is not there; empty when all is well."""
    copy = home.backup(record.before.schema)
    return str(copy) if schema(home) > record.before.schema and not copy.exists() else ""


def schema(home: Home) -> int:
    """Return the schema of state.db as it is."""
    with closing(sqlite3.connect(home.database, timeout=30.0)) as now:
        return now.execute("PRAGMA user_version").fetchone()[0]


def restore(home: Home, copy: Path) -> None:
    """Make state.db what a copy of it is, but for which process each service is, and which engines sleep.

    The gateway that serves was started since, and is replaced without a gap only where it is known; an engine that was
    put to sleep since must be known to sleep, else it would count as stopped by the user. In one transaction of
    SQLite's: processes that have state.db open read the old content from then on.
    """
    merged = home.run / MERGED
    merged.unlink(missing_ok=True)
    create_private(merged)
    with closing(sqlite3.connect(home.database, timeout=30.0)) as now, closing(sqlite3.connect(merged)) as target:
        with closing(sqlite3.connect(f"{copy.as_uri()}?mode=ro", uri=True)) as before:
            before.backup(target)
        for table in ("services", "residency"):
            _keep(table, now, target)
        target.backup(now)
    merged.unlink()


def _keep(table: str, now: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """Copy the rows of a table by the columns that both schemas have; one that the older cannot hold is left out."""
    columns = [name for name in _columns(target, table) if name in _columns(now, table)]
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    for row in now.execute(f"SELECT {names} FROM {table}").fetchall() if columns else ():  # noqa: S608 (our own names)
        with suppress(sqlite3.IntegrityError):
            target.execute(f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})", row)  # noqa: S608
    target.commit()


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
