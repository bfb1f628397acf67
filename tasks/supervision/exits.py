"""Unexpected exits: the row is brought in line with the machine, the cause found, the next start scheduled."""

from __future__ import annotations

import random
from pathlib import Path

from state import errors, safe_mode, service, settings
from state.db import Database
from state.errors import MlxqError
from state.paths import Home
from state.service import Service, ServiceEvent, State
from tasks.engines import adapters
from tasks.plan import exit_causes, restart
from tasks.plan.exit_causes import Cause
from tasks.plan.safe_mode import MOST
from tasks.supervision import handover_state, lifecycle
from tasks.system import memory, process
from tasks.system.process import Identity

LOG_TAIL_LINES = 16 * 1024
"""Bytes of the log that are searched for a cause."""
kills = memory.OomCounter()
REBOOT = Cause("reboot", "The machine was restarted.", "mlxq status", permanent=False)


def reconcile_row(db: Database, home: Home, one: Service) -> Service:
    """Bring a stale row in line with the machine: finish an interrupted stop, record an exit that was not seen."""
    found = lifecycle.identity(one)
    if found and not process.alive(found):
        record_exit(db, home, one.name, found)  # first, as the end of a successor takes the place of its exit code
    handover_state.settle_handover(db, home, one.name)
    one = service.get(db, one.name)
    if one.state == State.STOPPING:
        lifecycle.stop(db, home, one)
    return service.get(db, one.name)


def record_exit(db: Database, home: Home, name: str, dead: Identity) -> Cause | None:
    """Record an unexpected exit and schedule the restart. Return the cause.

    None when the exit was requested, a replacement serves, it is not the recorded process, or it is recorded already.
    """
    one = service.get(db, name)
    if one.identity != process.encode(dead) or one.state in service.DOWN | {State.STOPPING}:
        return None
    if one.successor and handover_state.promote(db, home, one):
        return None
    code = _exit_code(home, one, dead)
    if one.state == State.DRAINING and code == 0:
        lifecycle.mark_stopped(db, one)
        return None
    why = _cause(home, one, dead, code)
    step, next_try_at, exits = _sentence(db, home, one, why)
    told = {"exit_code": code, "cause_code": why.code, "cause": why.sentence, "hint": why.hint}
    then = {"identity": None, "next_try_at": next_try_at, "exits": exits, "restarts": one.restarts + 1}
    with db.transaction():  # a successor may have taken its place while the shim was waited for
        same = service.get(db, name).identity == one.identity
        buried = same and service.apply(db, name, step, fence=one.generation, **then, **told)
    if buried and why.code == exit_causes.OOM and one.kind == "engine":
        safe_mode.record_oom(db, name, MOST)
    return why if buried else None


def _exit_code(home: Home, one: Service, dead: Identity) -> int | None:
    """Read the code the shim keeps; it writes it a moment after the end."""
    if one.shim:
        process.wait(process.decode(one.shim), process.LAST_WORD_S)
    return process.exit_status(home.run, one.name, dead)


def _cause(home: Home, one: Service, dead: Identity, code: int | None) -> Cause:
    if dead.boot != process.boot():
        return REBOOT
    short = kills.lately() or memory.memory().pressure == memory.Pressure.CRITICAL
    rules = adapters.rules(one.release) if one.kind == "engine" else ()
    return exit_causes.explain(code, log_tail(home.log(one.name)), one.name, rules, memory_short=short)


def log_tail(log: Path) -> str:
    """Return what the latest start wrote last, at most 16 KiB."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_LINES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return text.rpartition(lifecycle.START_MARKER)[2]


def _sentence(db: Database, home: Home, one: Service, why: Cause) -> tuple[ServiceEvent, float | None, list[float]]:
    """Return the event of an exit, when to restart (unix seconds), and the exits that count."""
    now = db.now()
    if why is REBOOT:
        return ServiceEvent.EXITED, now, one.exits
    exits = restart.remember(one.exits, now, now - one.ready_at if one.ready_at else 0.0)
    if why.permanent:
        return ServiceEvent.FAILED, None, exits
    chosen = settings.load(home)
    retry = restart.next_try(
        exits,
        now,
        random.random(),  # noqa: S311 - jitter, no secret
        most=chosen["max-restarts"],
        first_pause_s=chosen["restart-delay"],
    )
    return (ServiceEvent.CRASH_LOOPED if retry.crash_loop else ServiceEvent.EXITED), retry.at, exits


def give_up(db: Database, name: str, problem: MlxqError, next_try_at: float | None = None) -> None:
    """Record that a service cannot be started: until the user acts, or until `next_try_at` (unix seconds)."""
    service.apply(
        db,
        name,
        ServiceEvent.FAILED if next_try_at is None else ServiceEvent.CRASH_LOOPED,
        identity=None,
        next_try_at=next_try_at,
        cause_code=problem.code,
        cause=problem.message,
        hint=problem.hint,
    )


def as_error(one: Service) -> MlxqError:
    """Return the error that says why the service is down."""
    said = f"{one.name} is {one.state}: {one.cause or 'nothing says why'}"
    return errors.rebuild(one.cause_code or "failed", said, one.hint)
