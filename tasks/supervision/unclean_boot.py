"""Look back at the worker's start, for whether the machine went down under running engines.

A worker that is told to stop signs off, and a shutdown tells it. So a worker's row of another boot means that the
power went, or the kernel panicked.
"""

from __future__ import annotations

from catalog import units
from state import event, safe_mode, service, worker
from state.db import Database
from state.errors import EngineFailed
from state.safe_mode import SafeMode
from state.service import ALIVE, IDENTITY, Service
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
    if last is None or not IDENTITY.fullmatch(last.owner) or process.decode(last.owner).boot == boot:
        return None
    ran = [row for row in service.listing(db) if row.kind == "engine" and _ran(row, boot)]
    if not ran:
        return None
    guess = plan.suspect(ran)
    log.warning("unclean_boot", suspect=guess.name, ran=[row.name for row in ran])
    cause = f"The machine went down while {units.listed([row.name for row in ran])} ran; {guess.name} is the suspect."
    event.record(db, "unclean_boot", service=guess.name, cause=cause)
    for row in ran:
        _enter_safe_mode(db, row, cause, extra=1 if row is guess else 0)
    return guess.name


def _ran(row: Service, boot: str) -> bool:
    identity = lifecycle.identity(row)
    return identity is not None and identity.boot != boot and row.state in ALIVE


def _enter_safe_mode(db: Database, row: Service, cause: str, extra: int) -> None:
    """Hold a tier back, the suspect one level further; one that was as far back as can be is left down."""
    before = safe_mode.of(db, row.name).level
    safe_mode.enter(db, row.name, SafeMode(min(plan.MOST, max(1, before) + extra), "unclean_boot", f"{cause} {LESS}"))
    if extra and before >= plan.MOST:
        problem = EngineFailed(
            f"The machine went down again while {row.name} ran, even in safe mode.",
            hint=f"mlxq restart {row.name}",
        )
        exits.give_up(db, row.name, problem)
