"""Who has memory, who waits for some, and how an engine is put to sleep. Decisions are in tasks.plan.on_demand."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from contextlib import suppress

from state import ledger, on_demand, secrets, service, settings, stack
from state.db import Database
from state.errors import EngineFailed
from state.on_demand import Residency
from state.paths import Home
from state.service import ROUTED, Service, State
from state.stack import Engine
from tasks import stack_jobs
from tasks.kinds import new
from tasks.on_demand import requests
from tasks.plan.on_demand import Resident, Waiting, victims
from tasks.supervision import probe

STATUS_S = 1.5
STARTING = frozenset({State.STOPPED, State.STARTING, State.LOADING, State.BACKOFF})
"""States of an engine that is to run and does not serve yet; stopped is one that was given its memory a moment ago."""
deciding = threading.Lock()
"""Held from a decision until what it gives away is recorded: two loads must not be given the same memory."""


def residents(db: Database, home: Home, *, without: str = "", asks: bool = True) -> list[Resident]:
    """Return the engines that have memory, or are always to have it, without one of them.

    `asks`: whether each that serves is asked if it answers a request; without it none counts as answering.
    Raises NotSetUp.
    """
    rows, uses = {row.name: row for row in service.listing(db)}, on_demand.residencies(db)
    staying, present = {engine.name for engine in requests.staying(db)}, list[Resident]()
    for engine in stack.engines(db):
        if engine.name in staying:
            present.append(Resident(engine.name, engine.memory_bytes, pinned=True))
        elif row := _up(rows, engine.name):
            present.append(_resident(db, home, engine, row, uses, pinned=False, asks=asks))
    for entry in on_demand.models(db):
        if row := _up(rows, entry.engine.name):
            pinned = requests.is_pinned(home, on_demand.names(entry))
            present.append(_resident(db, home, entry.engine, row, uses, pinned=pinned, asks=asks))
    return [resident for resident in present if resident.name != without]


def _up(rows: Mapping[str, Service], name: str) -> Service | None:
    row = rows.get(name)
    return row if row and row.active else None


def _resident(
    db: Database, home: Home, engine: Engine, row: Service, uses: Mapping[str, Residency], *, pinned: bool, asks: bool
) -> Resident:
    use, ready_at = uses.get(engine.name, Residency(engine.name)), row.ready_at or db.now()
    min_stay: int = settings.load(home)["min-stay"]
    return Resident(
        engine.name,
        engine.memory_bytes,
        pinned=pinned,
        answering=asks and answers(home, row),
        leaving=row.desired == "down",
        starting=row.desired == "up" and row.state in STARTING,
        used_at=max(use.used_at or 0.0, ready_at),
        stays_until=0.0 if use.keep_s == 0 else ready_at + min_stay,
    )


def answers(home: Home, row: Service) -> bool:
    """Return whether an engine has a request. One that does not say how it is has none that could be saved."""
    if row.state not in ROUTED:
        return False
    with suppress(EngineFailed):
        key = secrets.read(home.secrets).get(secrets.TIER, "")
        return probe.status(row.port, key, STATUS_S, release=row.release).has_requests
    return False


def waiting(db: Database, engine: Engine) -> list[Waiting]:
    """Return the models that are asked for and not loaded: `engine`, and those with a live job."""
    live = {row["service"] for row in db.rows(requests.LIVE_LOADS)} | {engine.name}
    line = [
        Waiting(use.engine, stack.engine(db, use.engine).memory_bytes, use.asked_at, use.background)
        for use in on_demand.residencies(db).values()
        if use.engine in live and use.asked_at is not None and not requests.is_up(db, use.engine)
    ]
    if engine.name not in {entry.name for entry in line}:
        line.append(Waiting(engine.name, engine.memory_bytes, db.now()))
    return line


def put_to_sleep(db: Database, names: Collection[str]) -> None:
    """Have engines stopped after their last answers; the next request for one loads it again."""
    with db.transaction():
        for name in names:
            on_demand.set_asleep(db, name, asleep=True)
            service.set_desired(db, name, "down")
            ledger.enqueue(db, new("drain", {"service": name, "unwanted": True}), source="watchdog")


def make_room(db: Database, home: Home, engine: Engine) -> list[str]:
    """Put engines on demand to sleep that have the memory of an engine of the stack; return their names.

    The stack comes first: those that a user pinned give way too, where nothing else does.
    """
    if not on_demand.models(db):
        return []
    with deciding:
        present = residents(db, home, without=engine.name)
        over = sum(resident.bytes for resident in present) + engine.memory_bytes - stack_jobs.budget(db, home)
        stacked = {entry.name for entry in stack.engines(db)}
        movable = [resident for resident in present if resident.name not in stacked and not resident.leaving]
        chosen = victims(over, [resident for resident in movable if not resident.pinned]) or victims(over, movable)
        names = [resident.name for resident in chosen or movable] if over > 0 else []
        put_to_sleep(db, names)
    return names
