"""Forget old jobs, once a day."""

from __future__ import annotations

from state import ledger
from state.batches import batches, stored_files
from state.db import Database
from state.notify import notices
from state.schedule import schedules
from tasks.kinds import new
from tasks.queue import Context, job, tick
from tasks.runtime import runtime

DAY_S = 86400.0
LOOK_S = 3600.0


@job("prune_jobs")
def prune_jobs(context: Context) -> dict[str, int]:
    """Forget what is over 30 days old: ended jobs beyond the newest 2,000, notices, batches; return how many jobs."""
    notices.prune(context.db)
    schedules.prune(context.db)
    batches.prune(context.db)
    stored_files.prune(context.db)
    return {"forgotten": ledger.prune(context.db)}


@tick("prune daily", LOOK_S)
def prune_daily() -> None:
    """Put the day's job in."""
    ask_daily(runtime.database())


def ask_daily(db: Database) -> bool:
    """Enqueue a prune job unless one was enqueued within the last day; return whether it was."""
    last = db.value("SELECT max(created_at) FROM jobs WHERE kind = 'prune_jobs' AND created_at <= ?", (db.now(),))
    if last is not None and db.now() - last < DAY_S:
        return False
    return ledger.enqueue(db, new("prune_jobs"), source="watchdog")[1]
