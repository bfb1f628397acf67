"""Imports every task module, which fills the queues. Only the worker does this."""

from __future__ import annotations

from tasks import (
    assign,
    bench,
    configure,
    detect,
    engine,
    logs,
    prune,
    pull,
    sample,
    schedule,
    score,
    smoke_test,
    tuning,
)
from tasks.batches import answering
from tasks.fleet import announcing, changing
from tasks.fleet import watch as node_watch
from tasks.front import jobs as front
from tasks.notify import deliver, watch
from tasks.on_demand import fetching, idle, loading
from tasks.queue import QUEUES
from tasks.supervision import services, watchdog
from tasks.upgrade import switch

TASKS = (
    *(answering, assign, bench, configure, deliver, detect, engine, logs, prune, pull, sample, score, services),
    *(schedule, smoke_test, switch, tuning, watch, watchdog, fetching, idle, loading),
    *(announcing, changing, node_watch, front),
)
"""Every module with a task; importing it here is what makes its kinds known."""


def known_kinds() -> list[str]:
    """Return the kinds of job that this process can run."""
    return sorted(kind for queue in QUEUES.values() for kind in queue.storage.kinds)
