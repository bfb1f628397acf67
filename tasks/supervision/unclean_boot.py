"""Look back at the worker's start, for whether the machine went down under running engines.

A worker that is told to stop signs off, and a shutdown tells it. So a worker's row of another boot means that the
power went, or the kernel panicked.
"""

from __future__ import annotations

from state import event, safe_mode, service, worker
from state.db import Database
from state.errors import EngineFailed
from state.safe_mode import SafeMode
from state.service import ALIVE, Service
from tasks.plan import safe_mode as plan
from tasks.runtime import log
from tasks.supervision import exits, lifecycle
from tasks.system import process

LESS = "It runs with a smaller cache and fewer requests at once."


def handle(db: Database, boot: str) -> str | None:
    """Hold back the engines that ran when the machine went down; return the suspect. `boot`: the id of this boot.

    To be called before this worker writes its own row.
    """
    last = worker.current(db)
    if last is None or process.decode(last.owner).boot == boot:
        return None
    ran = [one for one in service.listing(db) if one.kind == "engine" and _ran(one, boot)]
    if not ran:
        return None
    guess = plan.suspect(ran)
    log.warning("unclean_boot", suspect=guess.name, ran=[one.name for one in ran])
    told = f"The machine went down while {' and '.join(one.name for one in ran)} ran; {guess.name} is the suspect."
    event.record(db, "unclean_boot", service=guess.name, cause=told)
    for one in ran:
        _enter_safe_mode(db, one, told, more=1 if one is guess else 0)
    return guess.name


def _ran(one: Service, boot: str) -> bool:
    found = lifecycle.identity(one)
    return found is not None and found.boot != boot and one.state in ALIVE


def _enter_safe_mode(db: Database, one: Service, told: str, more: int) -> None:
    """Hold a tier back, the suspect one level further; one that was as far back as can be is left down."""
    before = safe_mode.of(db, one.name).level
    safe_mode.enter(db, one.name, SafeMode(min(plan.MOST, max(1, before) + more), "unclean_boot", f"{told} {LESS}"))
    if more and before >= plan.MOST:
        problem = EngineFailed(
            f"The machine went down again while {one.name} ran, even in safe mode.",
            hint=f"mlxq restart {one.name}",
        )
        exits.give_up(db, one.name, problem)
