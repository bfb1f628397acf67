"""Kill a worker at each step of a tier's start in turn, and let the next worker carry on.

    python -m support.spawnpoints TEMPLATE FOLDER FIRST EVERY

For n = FIRST, FIRST + EVERY … a fork does as a worker does: it claims the job and starts the tier. It dies by SIGKILL
at the n-th step, where a step is a SQL statement that writes or a line of the functions that start a process; another
fork carries on as the next worker. It ends with the first n that is never reached, and prints what was found as JSON.
The engine is fake_engine.py, so that each of the many starts takes a fraction of a second.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from support.crashpoints import in_a_fork, writes
from support.mlxq_home import LIMIT_S, TIER, until

from state import ledger, secrets, service, stack
from state.db import Database, open_database
from state.paths import Home
from state.service import State
from tasks.engines import serving
from tasks.executor import perform
from tasks.kinds import KINDS, new
from tasks.runtime import runtime
from tasks.supervision import lifecycle, probe, services, watchdog
from tasks.system import ports, process
from tasks.worker_status import is_alive

FAKE = Path(__file__).with_name("fake_engine.py")
TASKS = {"start": services.start, "restart": services.restart, "stop": services.stop}
STARTING = (
    lifecycle.spawn,
    lifecycle.adopt_orphan,
    lifecycle._record,
    lifecycle.write_start_marker,
    process.spawn,
    process._first_word,
)
"""The functions in which every line is a step: the SQL alone does not tell a process from no process."""
LIVE = "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')"
CODES: set[CodeType] = {function.__code__ for function in STARTING}


class Bomb:
    """Counts steps and kills this process at the `number`-th; never for 0."""

    def __init__(self, number: int) -> None:
        self.left = number

    def step(self, sql: str = "") -> None:
        if sql and not writes(sql):
            return
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        """Count the lines of CODES; the others are not followed."""
        if frame.f_code not in CODES:
            return None
        if event == "line":
            self.step()
        return self.trace


def become_worker(home: Home) -> Database:
    """Let this fork be the worker of `home`, with fake engines."""
    me = process.identify(os.getpid())
    assert me
    runtime.home, runtime.owner = home, process.encode(me)
    serving.argv = lambda served, at: [
        *(at.python, "-I", "-S", str(FAKE)),
        *("--port", str(served.engine.port), "--name", served.engine.name),
    ]
    return runtime.database()


def work(db: Database) -> None:
    """Run every job that can be claimed."""
    while held := ledger.claim(db, "ops", set(TASKS), runtime.owner):
        perform(KINDS[held.kind], TASKS[held.kind], held)


def first_worker(home: Home, number: int) -> None:
    """Start the tier, and die at the `number`-th step."""
    db, bomb, real = become_worker(home), Bomb(number), services._await_ready

    def await_open_port(*args: Any) -> bool:
        """Let the wait begin when it will end at once: a loop would make the number of steps a matter of luck."""
        until(lambda: probe.listening(service.get(db, "fast").port))
        return real(*args)

    services._await_ready = await_open_port
    db.connection.set_trace_callback(bomb.step)
    sys.settrace(bomb.trace)
    work(db)


def next_worker(home: Home) -> None:
    """Rescue, look and work as the worker does, until nothing is left to do."""
    db = become_worker(home)
    ledger.rescue(db, [held for held in ledger.running(db) if not is_alive(held.owner)])
    until_s = time.monotonic() + LIMIT_S
    while (one := service.find(db, "fast")) is None or one.state != State.READY or db.value(LIVE):
        assert time.monotonic() < until_s, one
        work(db)
        watchdog.watch._next_look = 0.0
        watchdog.watch.tick()


def prepared(template: Path, home: Home) -> int:
    """Make a home with one tier and a job that starts it; give the tier's port."""
    shutil.copyfile(template, home.make().database)
    secrets.ensure(home.secrets)
    port = ports.spare()
    db = open_database(home)
    stack.replace(db, [stack.Engine(**vars(TIER) | {"port": port, "weights": str(home.root)})])
    ledger.enqueue(db, new("start", {"service": "fast"}))
    db.close()
    return port


def seen(home: Home, port: int) -> dict[str, Any]:
    """Tell what is there at the end, and end it."""
    db = open_database(home)
    one = service.get(db, "fast")
    there = process.find_orphans(str(home.root), "fast")
    holder = ports.holder(port)
    assert one.identity
    found = {
        "doing": one.state,
        "jobs": sorted({row["state"] for row in db.rows("SELECT state FROM jobs")}),
        "engines": len(there),
        "the recorded one": list(map(process.encode, there)) == [one.identity],
        "on its port": bool(holder and holder.identity and process.encode(holder.identity) == one.identity),
    }
    events = {row["name"] for row in db.rows("SELECT name FROM events")}
    for each in there:
        process.stop(each, 5.0)
    until(lambda: not process.find_shims(home.run, "fast"))
    db.close()
    return found | {"how": "adopted" if "adopted" in events else f"generation {one.generation}"}


def main(template: Path, folder: Path, first: int, every: int) -> None:
    """Enumerate the points, and tell every distinct outcome and how often each way led to it."""
    outcomes: set[str] = set()
    ways: Counter[str] = Counter()
    for number in itertools.count(first, every):
        home = Home(folder / str(number))
        port = prepared(template, home)
        killed = os.WIFSIGNALED(in_a_fork(lambda home=home, number=number: first_worker(home, number)))
        assert in_a_fork(lambda home=home: next_worker(home)) == 0
        found = seen(home, port)
        shutil.rmtree(home.root)
        if not killed:
            break
        ways[found.pop("how")] += 1
        outcomes.add(json.dumps(found))
    print(json.dumps({"points": ways.total(), "outcomes": list(map(json.loads, outcomes)), "ways": ways}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), *map(int, sys.argv[3:]))
