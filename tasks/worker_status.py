"""Whether a worker lives: what `status` says of it. Loads no Huey."""

from __future__ import annotations

import time

from state import worker
from state.classes import DocumentedEnum
from state.db import Database
from state.worker import Worker
from tasks.system import process

HUNG_S = 20.0
"""Four beats missed. A full disk and a locked database both end before that, or are told in its log."""


class WorkerState(DocumentedEnum):
    """How the worker is; `meaning` is the sentence for people."""

    NONE = "none", "no worker was started, or the last one ended in order"
    ALIVE = "alive", "the worker works"
    HUNG = "hung", "its process is there and says nothing"
    DEAD = "dead", "its process died; the next worker takes over what it did"


def read(db: Database) -> WorkerState:
    """Return how the worker of this home is."""
    now = worker.current(db)
    return classify(now, alive=now is not None and is_alive(now.owner), clock=time.monotonic())


def classify(now: Worker | None, *, alive: bool, clock: float) -> WorkerState:
    """Return a worker's state from its row, whether its very process is there, and the monotonic clock."""
    if now is None:
        return WorkerState.NONE
    if not alive:
        return WorkerState.DEAD
    return WorkerState.HUNG if clock - now.beat_clock > HUNG_S else WorkerState.ALIVE


def is_alive(owner: str) -> bool:
    """Return whether the process that `owner` (boot/pid/start) names is there; what names none is not."""
    try:
        return process.alive(process.decode(owner))
    except ValueError:
        return False
