"""Which of two processes serves: the row during a handover, also where the worker died in the middle of it."""

from __future__ import annotations

from typing import Any

from state import service
from state.db import Database
from state.paths import Home
from state.service import Service, ServiceEvent
from tasks.supervision import lifecycle, socket_handover
from tasks.system import memory, process

SILENCE_S = 30.0
"""How long a replacement that may have taken over has to answer: ending it by mistake would end the service."""


def settle_handover(db: Database, home: Home, name: str) -> None:
    """Make the row say who serves, if a process was started to take the place of another; end one that did not."""
    row = service.get(db, name)
    if row.successor is None or promote(db, home, row):
        return
    for barren in process.find_shims(home.run, name):
        process.end_barren(barren)
    for stray in lifecycle.strays(home, row):
        if stray != lifecycle.identity(row):
            process.stop(stray, 0)
    service.update(db, name, successor=None)
    lifecycle.write_start_marker(home.log(name), f"{name}, start {row.generation}, was given up")


def promote(db: Database, home: Home, row: Service) -> bool:
    """Write down, once, that the successor serves; False when it does not."""
    orphans = process.find_orphans(str(home.root), row.name)
    holder = socket_handover.serving_process(home, SILENCE_S) if row.generation in orphans.values() else None
    if row.successor is None or holder is None or holder.generation != row.generation:
        return False
    successor = process.decode(holder.identity)
    shim = process.shim(successor)
    now = db.now()
    columns: dict[str, Any] = {
        **row.successor,
        "identity": holder.identity,
        "shim": process.encode(shim) if shim else None,
        "leaving": [
            process.encode(predecessor)
            for predecessor in (*lifecycle.leaving(row), lifecycle.running(row))
            if predecessor
        ],
        "memory_bytes": memory.resident(successor),
        **dict.fromkeys(("started_at", "ready_at"), now),
        **dict.fromkeys(("successor", "next_try_at", "exit_code", "cause_code", "cause", "hint")),
    }
    with db.transaction():
        done = service.get(db, row.name).successor is None
        return done or service.apply(db, row.name, ServiceEvent.REPLACED, fence=row.generation, **columns)
