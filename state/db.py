"""The one door to state.db: how it is opened, locked, and told about.

Every read-then-write is one `BEGIN IMMEDIATE` transaction: a deferred one fails with "database is locked" as soon
as two processes do it at once, whatever the busy timeout. Only the worker checkpoints the WAL, because SQLite
before 3.51.3 can corrupt a database when two connections do so at once (sqlite.org/wal.html#walresetbug).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from state.errors import DiskFull, MlxqError, NewerState, StateDamaged, StateUnavailable, not_set_up
from state.paths import Home

BUSY_TIMEOUT_S = 15.0
"""Under saturation one writer can wait over 5 s: SQLite's busy handler is not fair."""
FREED_S = 1.0
"""Seconds after which the blocks of a deleted file are free on APFS, of which no event tells."""
SCHEMA_VERSION = 21
"""The number of migrations; kept equal to them by a test."""

Row = sqlite3.Row
P = ParamSpec("P")
T = TypeVar("T")


class Database:
    """One connection, for one thread at a time, with the clock that stamps its rows."""

    def __init__(self, connection: sqlite3.Connection, home: Home, clock: Callable[[], float] = time.time) -> None:
        self.connection = connection
        self.home = home
        self.clock = clock
        self.inside = False
        """Whether a transaction is open."""
        self._rouse = False
        self._announce = False

    def now(self) -> float:
        """Return the time in unix seconds."""
        return self.clock()

    def is_other_schema(self) -> bool:
        """Return whether state.db has the schema of another version of mlxq, as one opened as it is may have."""
        return self.value("PRAGMA user_version") != SCHEMA_VERSION

    def rows(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[Row]:
        """Run a query and return all of its rows."""
        with _told(self.home):
            return self.connection.execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> Row | None:
        """Run a query and return its first row."""
        with _told(self.home):
            return self.connection.execute(sql, parameters).fetchone()

    def value(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> Any:
        """Run a query and return the first column of its first row, or None."""
        row = self.row(sql, parameters)
        return None if row is None else row[0]

    def run(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> int:
        """Run a statement and return the number of rows it hit."""
        with _told(self.home):
            return self.connection.execute(sql, parameters).rowcount

    def insert(self, table: str, values: dict[str, Any]) -> int:
        """Insert one row and return its id. Table and column names are ours, never a caller's text."""
        names = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        with _told(self.home):
            cursor = self.connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", values)  # noqa: S608 (our own names)
        return cursor.lastrowid or 0

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Hold the write lock; commit at the end, roll back on any error. An inner one joins the outer."""
        if self.inside:
            yield
            return
        self.run("BEGIN IMMEDIATE")
        self.inside = True
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            self._rouse = self._announce = False
            if self.connection.in_transaction:  # SQLite rolls back by itself when the disk is full
                self.connection.execute("ROLLBACK")
            raise
        finally:
            self.inside = False
        self._tell()

    @contextmanager
    def reading(self) -> Generator[None]:
        """Have all queries inside see state.db as it is at the first of them; nothing may be written inside."""
        if self.connection.in_transaction:
            yield
            return
        self.run("BEGIN")
        try:
            yield
        finally:
            self.connection.rollback()  # unlike COMMIT, also of what could not be read

    def wake(self) -> None:
        """After this transaction's commit, wake the worker and all watchers."""
        self._rouse = self._announce = True

    def announce(self) -> None:
        """After this transaction's commit, wake all watchers."""
        self._announce = True

    def _tell(self) -> None:
        rouse, announce, self._rouse, self._announce = self._rouse, self._announce, False, False
        if not (rouse or announce):
            return
        from state import wakeup  # socket, which no reader needs

        if rouse:
            wakeup.wake(self.home)
        if announce:
            wakeup.announce(self.home)

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def atomic(write: Callable[Concatenate[Database, P], T]) -> Callable[Concatenate[Database, P], T]:
    """Make `write(db, ...)` one transaction, tried once more when the disk was full and the reserve is given up.

    And once more FREED_S later: APFS frees the blocks of a deleted file after the fact.
    """

    def once(db: Database, *args: P.args, **kwargs: P.kwargs) -> T:
        with db.transaction():
            return write(db, *args, **kwargs)

    @functools.wraps(write)
    def tried(db: Database, *args: P.args, **kwargs: P.kwargs) -> T:
        joins = db.inside
        try:
            return once(db, *args, **kwargs)
        except DiskFull as problem:
            if joins:
                raise
            gave_up = problem.done is not None
        try:
            return once(db, *args, **kwargs)
        except DiskFull:
            if not gave_up:
                raise
        time.sleep(FREED_S)
        return once(db, *args, **kwargs)

    return tried


def open_database(
    home: Home, *, clock: Callable[[], float] = time.time, checkpoints: bool = False, as_it_is: bool = False
) -> Database:
    """Open state.db for reading and writing, creating or migrating it first when needed.

    `checkpoints`: whether this connection may fold the WAL back; one of the worker's does. `as_it_is`: whether
    one of another schema is neither migrated nor refused, for a process that an upgrade is about to replace.
    Raises NewerState, StateDamaged, StateUnavailable.
    """
    connection, version = _opened(home, newer=as_it_is)
    if connection is None or (version != SCHEMA_VERSION and not (as_it_is and version)):
        connection = _migrated(home, connection)
    with _told(home):
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA wal_autocheckpoint={1000 if checkpoints else 0}")
    return Database(connection, home, clock)


def read_database(home: Home, *, as_it_is: bool = False) -> Database:
    """Open state.db for reading alone. `as_it_is`: as `open_database` takes it.

    Raises NotSetUp when there is none, NewerState, StateDamaged, StateUnavailable.
    """
    connection, version = _opened(home, newer=as_it_is)
    if connection is None or version == 0:
        raise not_set_up(home.root)
    if version != SCHEMA_VERSION and not as_it_is:
        connection = _migrated(home, connection)
    with _told(home):
        connection.execute("PRAGMA query_only=ON")
    return Database(connection, home)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    if sys.platform == "darwin":  # the last reader's close folds the WAL back, too
        connection.execute("PRAGMA checkpoint_fullfsync=1")
    return connection


def _opened(home: Home, *, newer: bool = False) -> tuple[sqlite3.Connection | None, int]:
    """Return a connection and the schema's number; None and 0 where there is no database yet.

    One connection for both: the first and the last of a home make and remove the WAL. Raises NewerState unless `newer`,
    StateDamaged.
    """
    path = home.database
    if not path.exists() or path.stat().st_size == 0:
        return None, 0
    with _told(home):
        connection = _connect(path)
        try:
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        except sqlite3.Error:
            connection.close()
            raise
    if version > SCHEMA_VERSION and not newer:
        connection.close()
        lost = _lost_version(home)
        raise NewerState(
            f"{path} has schema {version}; this mlxq knows up to {SCHEMA_VERSION}.",
            done=f"{lost}, which runs the newer one, is not there any more." if lost else "Nothing was changed.",
            hint="mlxq upgrade --back" if lost else "uv tool upgrade mlxq",
        )
    return connection, version


def _migrated(home: Home, before: sqlite3.Connection | None) -> sqlite3.Connection:
    """Close the connection from before, if any, and return one to the migrated database. Raises as `_migrate`."""
    if before:
        before.close()
    _migrate(home)
    connection, _ = _opened(home)  # a newer mlxq may have been quicker
    with _told(home):
        return connection or _connect(home.database)


def _migrate(home: Home) -> None:
    """Run the migrations in a process of their own: sqlite-utils would cost the worker 80 MB for ever.

    Raises StateUnavailable, also in a process of a version that was taken back (tasks/upgrade): the version before it
    could not read state.db any more.
    """
    home.make()
    if older := _in_use_again(home):
        raise StateUnavailable(
            f"mlxq {older} is used again in {home.root}, and this process is of the version after it.",
            done="state.db was left as it is.",
            hint="mlxq status",
        )
    argv = [sys.executable, "-P", "-m", "state.migrations", str(home.root)]
    import subprocess  # 6 ms of every command, for one that is new

    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        last_line = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise StateUnavailable(
            f"{home.database} could not be brought to schema {SCHEMA_VERSION}: {last_line[0]}.", done="It is as it was."
        )


def _in_use_again(home: Home) -> str | None:
    """Return the version that is used in place of this process's, which an upgrade had brought; None in most cases.

    At the switch of the next upgrade to the same version only its worker may migrate, and no service left from before.
    """
    if not Path(sys.prefix).is_relative_to(home.versions):
        return None
    try:
        record = _upgrade_record(home)
        phases = {"back", "taken_back", *(["switch"] if "MLXQ_SERVICE" in os.environ else [])}
        taken_back = record["phase"] in phases and record["after"]["schema"] == SCHEMA_VERSION
        return str(record["before"]["version"]) if taken_back else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _upgrade_record(home: Home) -> dict[str, Any]:
    """Return the record of the latest upgrade (tasks/upgrade/record.py). Raises OSError, ValueError."""
    return json.loads((home.root / "upgrade.json").read_bytes())


def _lost_version(home: Home) -> str | None:
    """Return the interpreter that went away of the version that an upgrade put in this one's place; None else."""
    try:
        record = _upgrade_record(home)
        python = str(record["after"]["python"])
        replaced = record["phase"] == "done" and record["before"]["schema"] == SCHEMA_VERSION
        return python if replaced and not os.access(python, os.X_OK) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _told(home: Home) -> Generator[None]:
    """Turn what SQLite says into an error for people; what only a fault in mlxq can cause stays as it is."""
    try:
        yield
    except sqlite3.Error as problem:
        error = _known(problem, home)
        if error is None:
            raise
        raise error from problem


def _known(problem: sqlite3.Error, home: Home) -> MlxqError | None:
    """Return the error for a result code of SQLite (sqlite.org/rescode.html)."""
    path = home.database
    match getattr(problem, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            hint = f"mlxq doctor --fix   (moves {path.name} aside and starts a new one)"
            return StateDamaged(f"{path} cannot be read: {problem}.", done="The file was left as it is.", hint=hint)
        case sqlite3.SQLITE_FULL:
            done = "The reserve was given up." if home.ballast.exists() else None
            home.ballast.unlink(missing_ok=True)
            return DiskFull(f"The disk of {path} is full.", done=done, hint=f"df -h {home.root}")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StateUnavailable(f"Another process held {path} for over {BUSY_TIMEOUT_S:g} s.", hint="mlxq status")
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            from state import files

            if reason := files.unwritable(home.root):
                return StateUnavailable(
                    f"{home.root} cannot be written, and who reads {path.name} has to: {reason}.",
                    hint=f"ls -ld {home.root}; df -h {home.root}",
                )
            return StateUnavailable(f"{path} cannot be used: {problem}.", hint="mlxq doctor")
        case _:
            return None


def create_private(path: Path) -> None:
    """Make sure the file exists and only its owner can read it; SQLite's -wal and -shm copy its mode."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


# ------------------------------------------- columns of JSON: what another program wrote in them must stop nothing


def known_columns(row: Row | Mapping[str, Any], kind: type, *, without: str = "") -> dict[str, Any]:
    """Return a row's values for the fields of a dataclass; a newer mlxq's columns are left out.

    `without`: a field that is no column.
    """
    return {field.name: row[field.name] for field in dataclasses.fields(kind) if field.name != without}


def json_mapping(text: str | None) -> dict[str, Any]:
    """Return a column's JSON object; an empty one for NULL, and for all else."""
    value = _json_value(text)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def json_strings(text: str | None) -> list[str]:
    """Return the strings in a column's JSON array."""
    return [value for value in _json_array(text) if isinstance(value, str)]


def json_numbers(text: str | None) -> list[float]:
    """Return the numbers in a column's JSON array."""
    return [value for value in _json_array(text) if isinstance(value, int | float) and not isinstance(value, bool)]


def _json_array(text: str | None) -> list[Any]:
    value = _json_value(text)
    return cast("list[Any]", value) if isinstance(value, list) else []


def _json_value(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
