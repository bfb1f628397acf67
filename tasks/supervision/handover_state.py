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
    one = service.get(db, name)
    if one.successor is None or promote(db, home, one):
        return
    for barren in process.find_shims(str(home.root), name):
        process.end_barren(barren)
    for stray in lifecycle.strays(home, one):
        if stray != lifecycle.identity(one):
            process.stop(stray, 0)
    service.update(db, name, successor=None)
    lifecycle.write_start_marker(home.log(name), f"{name}, start {one.generation}, was given up")


def promote(db: Database, home: Home, one: Service) -> bool:
    """Write down, once, that the successor serves; False when it does not."""
    there = process.find_orphans(str(home.root), one.name)
    holder = socket_handover.serving_process(home, SILENCE_S) if one.generation in there.values() else None
    if one.successor is None or holder is None or holder.generation != one.generation:
        return False
    found = process.decode(holder.identity)
    shim = process.shim(found)
    now = db.now()
    columns: dict[str, Any] = {
        **one.successor,
        "identity": holder.identity,
        "shim": process.encode(shim) if shim else None,
        "leaving": [process.encode(each) for each in (*lifecycle.leaving(one), lifecycle.running(one)) if each],
        "memory_bytes": memory.resident(found),
        **dict.fromkeys(("started_at", "ready_at"), now),
        **dict.fromkeys(("successor", "next_try_at", "exit_code", "cause_code", "cause", "hint")),
    }
    with db.transaction():
        done = service.get(db, one.name).successor is None
        return done or service.apply(db, one.name, ServiceEvent.REPLACED, fence=one.generation, **columns)
