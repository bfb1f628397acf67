"""Kill a process before each SQL statement that writes in turn, and let a second process recover.

    python crashpoints.py diamond TEMPLATE FOLDER      jobs: a, then b and c, then d; and one that a puts in
    python crashpoints.py schema FOLDER                the migrations; CRASH_POINTS=1: all of them, not each seventh

For n = 1, 2, 3 … a fork runs until SQLite is about to begin its n-th statement and dies there by SIGKILL; another fork
carries on. It ends with the first n that is never reached, and prints what was found as JSON. Statements that read are
not counted: who dies before one leaves what who dies before the next write leaves.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from state import ledger
from state.db import SCHEMA_VERSION, Database, open_database
from state.job import Claim, NewJob
from state.paths import Home
from tasks.executor import Context, perform
from tasks.kinds import Kind
from tasks.runtime import runtime
from tasks.system import process
from tasks.worker_status import is_alive

KINDS = {"a", "b", "c", "d", "extra"}
TABLES = ("jobs", "job_deps", "events", "worker", "tiers", "services", "facts")


EVERY = int(os.environ.get("CRASH_POINTS", "7"))


def in_a_fork(work: Callable[[], None]) -> int:
    """Run `work` in a fork and give its wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        work()
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def writes(sql: str) -> bool:
    """Return whether a statement changes the file, or begins or ends what does."""
    return not sql.startswith("SELECT") and (not sql.startswith("PRAGMA") or "=" in sql)


def bomb(number: int) -> Callable[[str], None]:
    """Give a trace callback that kills this process at the `number`-th statement that writes; never for 0."""
    left = [number]

    def on_statement(sql: str) -> None:
        if not writes(sql):
            return
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_statement


def task(context: Context) -> str:
    """Leave a mark for the effect, and from a ask for one job more."""
    with (context.home.root / "notes").open("a") as notes:
        notes.write(f"{context.claim.kind}\n")
    if context.claim.kind == "a":
        context.then(NewJob("extra", needs=[context.claim.id], unique_key="extra"))
    return context.claim.kind


def work_diamond(home: Home, number: int) -> None:
    """Put the diamond in unless it is there, rescue, and work until nothing is left, as the worker does."""
    me = process.identify(os.getpid())
    assert me
    runtime.home, runtime.owner = home, process.encode(me)
    db = runtime.database()
    db.connection.set_trace_callback(bomb(number))
    if not db.value("SELECT count(*) FROM jobs"):
        batch = [NewJob("a"), NewJob("b", needs=["a"]), NewJob("c", needs=["a"]), NewJob("d", needs=["b", "c"])]
        ledger.enqueue_all(db, batch)
    ledger.rescue(db, [held for held in ledger.running(db) if not is_alive(held.owner)])
    while held := ledger.claim(db, "ops", KINDS, runtime.owner):
        perform(Kind(held.kind, "a test"), task, Claim(**vars(held)))


def seen(db: Database, home: Home) -> dict[str, Any]:
    """Tell what is in the ledger at the end."""
    notes = (home.root / "notes").read_text().split()
    won = db.rows("SELECT kind FROM events JOIN jobs ON jobs.id = job WHERE name = 'succeeded' ORDER BY events.id")
    order = [row["kind"] for row in won]
    return {
        "states": sorted({row["state"] for row in db.rows("SELECT state FROM jobs")}),
        "kinds": sorted(row["kind"] for row in db.rows("SELECT kind FROM jobs")),
        "in order": order[0] == "a" and set(order[: order.index("d")]) >= {"b", "c"},
        "told once": len(order) == len(set(order)),
        "most repeats": len(notes) - len(set(notes)),
        "integrity": db.value("PRAGMA integrity_check"),
    }


def diamond(template: Path, folder: Path) -> dict[str, Any]:
    """Enumerate the crash points of the diamond."""
    found: list[dict[str, Any]] = []
    while True:
        home = Home(folder / str(len(found))).make()
        shutil.copyfile(template, home.database)
        if not os.WIFSIGNALED(in_a_fork(lambda home=home: work_diamond(home, len(found) + 1))):
            break
        assert in_a_fork(lambda home=home: work_diamond(home, 0)) == 0
        db = open_database(home)
        found.append(seen(db, home))
        db.close()
        shutil.rmtree(home.root)
    return summary(found)


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the number of points and every distinct outcome."""
    outcomes = {json.dumps({key: value for key, value in one.items() if key != "most repeats"}) for one in found}
    repeats = [one.get("most repeats", 0) for one in found]
    return {
        "points": len(found),
        "outcomes": [json.loads(one) for one in sorted(outcomes)],
        "most repeats": max(repeats),
    }


def schema(folder: Path) -> dict[str, Any]:
    """Enumerate the crash points of the migrations."""
    from state import migrations

    def migrate(home: Home, number: int) -> None:
        real = sqlite3.connect

        def traced(*args: Any, **options: Any) -> sqlite3.Connection:
            connection = real(*args, **options)
            connection.set_trace_callback(bomb(number))
            return connection

        sqlite3.connect = traced
        migrations.migrate(home)

    found: list[dict[str, Any]] = []
    for number in itertools.count(1, EVERY):
        home = Home(folder / str(number)).make()
        killed = os.WIFSIGNALED(in_a_fork(lambda home=home, number=number: migrate(home, number)))
        if not killed:
            break
        assert in_a_fork(lambda home=home: migrate(home, 0)) == 0
        with sqlite3.connect(home.database) as connection:
            names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            integrity = connection.execute("PRAGMA integrity_check").fetchone()[0]
        found.append({"tables": names >= set(TABLES), "current": version == SCHEMA_VERSION, "integrity": integrity})
        shutil.rmtree(home.root)
    return summary(found)


if __name__ == "__main__":
    what, *folders = sys.argv[1:]
    print(json.dumps({"diamond": diamond, "schema": schema}[what](*map(Path, folders))))
