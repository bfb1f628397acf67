"""The guard of an upgrade, a process of its own; tasks/upgrade/back.py says what it is for."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from datetime import datetime

from mlxq import worker_process
from state import files, wakeup
from state.errors import Busy
from state.paths import Home, get_home
from tasks.upgrade import back, installation
from tasks.upgrade import record as records
from tasks.upgrade.back import Watch
from tasks.upgrade.record import Phase, Record

LOOK_S = 0.5


def main() -> None:
    """Guard the upgrade of this home until it is settled; do nothing where another process does."""
    home = get_home().make()
    with (home.run / back.LOCK).open("a") as lock:
        if files.take_lock(lock):
            guard(home)


def guard(home: Home) -> None:
    """Keep a worker running, and go back when the new version fails, until the upgrade is settled."""
    record = records.read(home)
    watch = Watch(record, time.monotonic()) if record else None
    with wakeup.watcher(home, "-guard") as listener:
        while watch and (record := records.read(home)) and record.unsettled:
            with suppress(Busy):  # the worker took a step meanwhile
                _look(home, record, watch)
            listener.wait(LOOK_S)
    _say(f"settled: {record.phase}" if record else "nothing to guard")


def _look(home: Home, record: Record, watch: Watch) -> None:
    """Do what is needed now. Raises Busy."""
    now = time.monotonic()
    watch.look(record, now, running=files.locked(home.worker_lock))
    reason = record.reason if record.phase == Phase.BACK else watch.failure(now)
    if reason:
        _go_back(home, record, reason)
    elif watch.wants_worker(now):
        watch.starts, watch.away_since = watch.starts + 1, None
        _start(home, record)


def _start(home: Home, record: Record) -> None:
    """Start the worker of the version that is used now."""
    python = installation.in_use(home, record).python
    worker_process.ensure(home, python)
    _say(f"started a worker with {python}")


def _go_back(home: Home, record: Record, reason: str) -> None:
    _say(f"going back: {reason}")
    done = back.go(home, record, reason)
    if done.phase == Phase.DONE:
        _say(done.reason)
        worker_process.ensure(home, done.after.python)
        return
    until = time.monotonic() + (back.SYSTEM_S if done.system else 0.0)
    while time.monotonic() < until and not files.locked(home.worker_lock):
        time.sleep(LOOK_S)
    worker_process.ensure(home, done.before.python)
    wakeup.announce(home)
    _say(f"{done.before.version} serves again")


def _say(words: str) -> None:
    """Write a line to the log."""
    at = datetime.now().astimezone().isoformat(timespec="seconds")
    sys.stderr.write(f"{at} {words}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
