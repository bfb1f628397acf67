"""The tick that stops idle engines, forgets the services of those that sleep, and sees which weights come and go."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from state import event, on_demand, service
from state.db import Database
from state.errors import DiskUnavailable, NotSetUp
from state.on_demand import Residency
from state.paths import Home
from state.service import Service, State
from tasks.on_demand import admission, inventory, requests
from tasks.plan.on_demand import Resident, idle_s, is_over
from tasks.queue import tick
from tasks.runtime import log, runtime
from tasks.supervision import lifecycle

LOOK_S = 2.0
_seen: list[object] = [None]
"""What the models folder and the room were like when they were read last."""


@tick("on_demand", LOOK_S)
def look() -> None:
    """Look once."""
    db, home = runtime.database(), runtime.home
    with suppress(NotSetUp):
        _read_disk(db, home)
        _stop_idle(db, home)
        _forget_sleeping(db)


def _read_disk(db: Database, home: Home) -> None:
    """Read which models are on this disk, where that may have changed. Raises NotSetUp."""
    now = inventory.fingerprint(db, home)
    if now == _seen[0]:
        return
    _seen[0] = now
    try:
        inventory.refresh(db, home)
    except DiskUnavailable as problem:
        log.warning("models_not_read", cause=problem.message)


def _stop_idle(db: Database, home: Home) -> None:
    """Put to sleep what was not used for as long as it may be unused."""
    uses = on_demand.residencies(db)
    for resident in admission.residents(db, home, asks=False):
        use, row = uses.get(resident.name, Residency(resident.name)), service.find(db, resident.name)
        if row and use.asked_at is None and _is_due(db, use, resident) and not admission.answers(home, row):
            event.record(db, "idle", service=resident.name, cause="It was not used.")
            admission.put_to_sleep(db, [resident.name])


def _is_due(db: Database, use: Residency, resident: Resident) -> bool:
    return is_over(resident, idle_s(use.keep_s, requests.idle_setting(db, resident.name)), db.now())


def _forget_sleeping(db: Database) -> None:
    """Delete the rows of engines on demand that are stopped: they are no services until they are asked for again.

    A model whose weights were deleted while it was loaded is forgotten then; an engine of no model is stopped.
    """
    weights = {entry.engine.name: entry.engine.weights for entry in on_demand.models(db)}
    for row in filter(_is_on_demand, service.listing(db)):
        if row.name not in weights and row.desired == "up":
            _stop_without_model(db, row.name)
        elif _sleeps(row) and not lifecycle.held(row.name):
            _forget(db, row.name)
            if row.name in weights and not Path(weights[row.name]).exists():
                _seen[0] = None


def _stop_without_model(db: Database, name: str) -> None:
    """Stop an engine, unless it has a model now."""
    with db.transaction():
        if on_demand.model(db, name) is None:
            admission.put_to_sleep(db, [name])


def _sleeps(row: Service) -> bool:
    return (row.desired, row.state) == ("down", State.STOPPED)


def _forget(db: Database, name: str) -> None:
    """Delete the row of an engine, unless it was asked for since it was listed."""
    with db.transaction():
        row = service.find(db, name)
        if row is not None and _sleeps(row):
            service.remove(db, name)


def _is_on_demand(row: Service) -> bool:
    """Return whether a service belongs to a model on demand, also one that is gone: those have a dot in their name."""
    return "." in row.name
