"""Unexpected exits: the row is brought in line with the machine, the cause found, the next start scheduled."""

from __future__ import annotations

import random
import shlex
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from state import errors, safe_mode, service, settings, stack
from state.db import Database
from state.errors import DiskUnavailable, MlxqError, NotFound, NotSetUp
from state.paths import Home
from state.service import Service, ServiceEvent, State
from tasks.engines import adapters
from tasks.plan import exit_causes, restart
from tasks.plan.exit_causes import Cause
from tasks.plan.safe_mode import MOST
from tasks.supervision import engine_faults, handover_state, lifecycle
from tasks.system import memory, process
from tasks.system.process import Identity
from tasks.weights import manifest, model_dir

LOOK_S = 2.0
"""How long an exit may wait for a disk that says nothing."""
LOG_TAIL_BYTES = 16 * 1024
"""Bytes of the log that are searched for a cause."""
DRAINED = frozenset({0, 128 + signal.SIGUSR2})
"""Exit codes of an engine that was told to drain: it ended after its last answer, or by the signal itself."""
kills = memory.OomCounter()
REBOOT = Cause("reboot", "The machine was restarted.", "mlxq status", permanent=False)


def reconcile_row(db: Database, home: Home, row: Service) -> Service:
    """Bring a stale row in line with the machine: finish an interrupted stop, record an exit that was not seen."""
    identity = lifecycle.identity(row)
    if identity and not process.alive(identity):
        record_exit(db, home, row.name, identity)  # first, as the end of a successor takes the place of its exit code
    handover_state.settle_handover(db, home, row.name)
    row = service.get(db, row.name)
    if row.state == State.STOPPING:
        lifecycle.stop(db, home, row)
    return service.get(db, row.name)


def record_exit(db: Database, home: Home, name: str, dead: Identity) -> Cause | None:
    """Record an unexpected exit and schedule the restart. Return the cause.

    None when the exit was requested, a replacement serves, it is not the recorded process, or it is recorded already.
    """
    row = service.get(db, name)
    if _is_settled(row, dead):
        return None
    if row.successor and handover_state.promote(db, home, row):
        return None
    code = _exit_code(home, row, dead)
    if _has_drained(db, name, dead, code):
        return None
    cause = _cause(db, home, row, dead, code)
    step, next_try_at, exits = _sentence(db, home, row, cause)
    explanation = {"exit_code": code, "cause_code": cause.code, "cause": cause.sentence, "hint": cause.hint}
    columns: dict[str, Any] = {
        "identity": None,
        "next_try_at": next_try_at,
        "exits": exits,
        "restarts": row.restarts + 1,
    }
    with db.transaction():  # a stop, or a successor, may have come meanwhile
        if _is_settled(service.get(db, name), dead):
            return None
        if engine_faults.handle(db, home, row, cause, crash_loop=step == ServiceEvent.CRASH_LOOPED):
            step, columns = ServiceEvent.EXITED, columns | {"next_try_at": db.now(), "exits": list[float]()}
        recorded = service.apply(db, name, step, fence=row.generation, **columns, **explanation)
    if recorded and cause.code == exit_causes.OOM and row.kind == "engine":
        safe_mode.record_oom(db, name, MOST)
    return cause if recorded else None


def _is_settled(row: Service, dead: Identity) -> bool:
    """Return whether an exit is that of another process than the recorded one, was requested, or is recorded."""
    return row.identity != process.encode(dead) or row.state in service.DOWN | {State.STOPPING}


def _has_drained(db: Database, name: str, dead: Identity, code: int | None) -> bool:
    """Return whether an engine ended because it was told to drain, maybe while its code was waited for; record it."""
    row = service.get(db, name)
    drained = row.state == State.DRAINING and code in DRAINED and not _is_settled(row, dead)
    if drained:
        lifecycle.mark_stopped(db, row)
    return drained


def _exit_code(home: Home, row: Service, dead: Identity) -> int | None:
    """Read the code the shim keeps; it writes it a moment after the end."""
    if row.shim:
        process.wait(process.decode(row.shim), process.LAST_WORD_S)
    return process.exit_status(home.run, row.name, dead)


def _cause(db: Database, home: Home, row: Service, dead: Identity, code: int | None) -> Cause:
    if dead.boot != process.boot():
        return REBOOT
    short = kills.lately() or memory.memory().pressure == memory.Pressure.CRITICAL
    rules = adapters.rules(row.release) if row.kind == "engine" else ()
    cause = exit_causes.explain(code, log_tail(home.log(row.name)), row.name, rules, memory_short=short)
    return _about_weights(db, row, cause) if cause.code in exit_causes.WEIGHTS else cause


def _about_weights(db: Database, row: Service, cause: Cause) -> Cause:
    """Return why an engine says that its weights are damaged: their disk may be away; and what repairs them."""
    try:
        path = Path(stack.engine(db, row.name).weights)
    except (NotFound, NotSetUp):
        return cause
    if problem := model_dir.problem_of_weights(db, path, LOOK_S):
        return Cause(problem.code, problem.message, problem.hint or cause.hint, permanent=False)
    return replace(cause, hint=_repair(path) or cause.hint)


def _repair(path: Path) -> str | None:
    """Return the command that repairs some weights; None where the disk does not tell."""
    with suppress(DiskUnavailable):
        exists, record = model_dir.read(path.parent, lambda: (path.is_dir(), manifest.read(path)), LOOK_S)
        return f"mlxq verify {shlex.quote(path.name)}" if record else "mlxq models" if exists else "mlxq setup"
    return None


def log_tail(log: Path) -> str:
    """Return what the latest start wrote last, at most 16 KiB."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return text.rpartition(lifecycle.START_MARKER)[2]


def _sentence(db: Database, home: Home, row: Service, cause: Cause) -> tuple[ServiceEvent, float | None, list[float]]:
    """Return the event of an exit, when to restart (unix seconds), and the exits that count."""
    now = db.now()
    if cause is REBOOT:
        return ServiceEvent.EXITED, now, row.exits
    exits = restart.remember(row.exits, now, now - row.ready_at if row.ready_at else 0.0)
    if cause.code == DiskUnavailable.code:
        return ServiceEvent.DISK_UNAVAILABLE, None, row.exits
    if cause.permanent:
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
    """Record that a service cannot be started: until the user acts, or until `next_try_at` (unix seconds).

    One whose weights are on a disk that is away waits for that disk, however often it is tried meanwhile.
    """
    reason: dict[str, Any] = {"cause_code": problem.code, "cause": problem.message, "hint": problem.hint}
    if not isinstance(problem, DiskUnavailable):
        event = ServiceEvent.FAILED if next_try_at is None else ServiceEvent.CRASH_LOOPED
        service.apply(db, name, event, identity=None, next_try_at=next_try_at, **reason)
    elif not service.apply(db, name, ServiceEvent.DISK_UNAVAILABLE, identity=None, next_try_at=None, **reason):
        service.update(db, name, **reason)


def try_again(db: Database, name: str, problem: MlxqError) -> None:
    """Record that a service is started again at once, by another engine: its earlier exits count no more."""
    service.apply(
        db,
        name,
        ServiceEvent.EXITED,
        identity=None,
        next_try_at=db.now(),
        exits=list[float](),
        cause_code=problem.code,
        cause=problem.message,
        hint=problem.hint,
    )


def as_error(row: Service) -> MlxqError:
    """Return the error that says why the service is down."""
    happened = {State.CRASH_LOOP: "keeps exiting", State.DISK_UNAVAILABLE: "cannot start"}.get(row.state, "failed")
    message = f"{row.name} {happened}: {row.cause or 'nothing says why'}"
    return errors.rebuild(row.cause_code or "failed", message, row.hint)
