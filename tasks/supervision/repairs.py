"""Restarts that no person asked for: a process that ends is noticed within milliseconds and its restart queued.

The watchdog and the jobs call this; a restart that is queued already is not queued twice.
"""

from __future__ import annotations

import threading
from contextlib import suppress

from state import ledger, service, settings
from state.db import Database
from state.errors import NotFound, StateUnavailable
from state.service import State
from tasks.kinds import new
from tasks.plan import restart
from tasks.plan.reconcile import is_repair
from tasks.runtime import log, runtime
from tasks.supervision import exits, lifecycle
from tasks.system.exit_watcher import ExitWatcher
from tasks.system.process import Identity

_watchers: list[ExitWatcher] = []
"""The thread that waits for exits, once it was needed."""
_starting = threading.Lock()


def follow(name: str, identity: Identity) -> None:
    """Have `handle_exit` called as soon as this process of the service `name` ends."""
    with _starting:
        if not _watchers:
            _watchers.append(ExitWatcher(handle_exit))
            _watchers[0].start()
    _watchers[0].watch(name, identity)


def handle_exit(name: str, identity: Identity) -> None:
    """Record an exit, and queue the restart of the service when it is due at once."""
    with suppress(NotFound, StateUnavailable):  # the next tick finds what cannot be written now
        db = runtime.database()
        cause = exits.record_exit(db, runtime.home, name, identity)
        if cause is None:
            return
        row = service.get(db, name)
        log.warning("service_died", service=name, cause=cause.code, exit_code=row.exit_code, state=row.state)
        if row.state == State.BACKOFF and not restart.left_s(row.next_try_at, db.now()):
            request_restart(db, name, "gone")


def request_restart(db: Database, name: str, reason: str) -> None:
    """Queue a restart of `name`, unless it is a repair and repairs are switched off (`auto-health-check`).

    `reason`: as the job `restart` takes it.
    """
    row = service.get(db, name)
    if settings.load(runtime.home)["auto-health-check"] or not is_repair(
        row, reason, this_boot=lifecycle.this_boot(row)
    ):
        ledger.enqueue(db, new("restart", {"service": name, "reason": reason}), source="watchdog")
