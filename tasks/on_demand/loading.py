"""Jobs that load a model in its turn, and that stop one until it is asked for again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from state import desired, event, on_demand, settings, stack
from state import service as rows
from state.db import Database
from state.errors import MlxqError, NotRunning, UsageProblem
from state.paths import Home
from state.service import ALIVE, State
from state.stack import Engine
from tasks import stack_jobs
from tasks.on_demand import admission, inventory, requests
from tasks.plan.on_demand import Evict, Hold, Start, Step, decide
from tasks.queue import Context, job
from tasks.supervision import lifecycle
from tasks.supervision.services import bring_up
from tasks.system import ports
from tasks.system.child import Cancelled, Later

LOOK_S = 0.05
AGAIN_S = 2.0
"""A load that waits for its turn looks again after so long, and whenever an engine has come or gone."""
STOPPING_S = 10.0
"""How long a thread waits for an engine that is being stopped, before it does something else meanwhile."""
MODEL_PORTS = 40
"""Ports of engines on demand, behind those of the stack's."""


@job("load")
def load(context: Context, service: str) -> dict[str, Any]:
    """Load a model: make room for it in its turn, start its engine, and have the gateway find it.

    An engine that was proved before is not asked for a token first: the request that waits for it is answered sooner.
    Several may ask, and one engine starts; a worker that dies leaves a job that the next one continues. Returns
    {"service", "state", "port"}. Raises Later while others have the memory, DoesNotFit where they always will,
    NotFound for weights that are gone, and what a start raises.
    """
    db = context.db
    try:
        engine = stack.engine(db, service)
        if not requests.is_up(db, service):
            _admit(context, engine)
        outcome = bring_up(context, service, proved=on_demand.residency(db, service).proved)
    except (MlxqError, Cancelled):
        _give_up(context, service)
        raise
    with db.transaction():
        on_demand.answered(db, service)
        on_demand.set_asleep(db, service, asleep=False)
        if outcome["state"] in rows.ROUTED:
            on_demand.set_proved(db, service, rows.get(db, service).spec_hash)
    requests.poke(db)
    return {"service": service, "state": outcome["state"], "port": stack.engine(db, service).port}


def _admit(context: Context, engine: Engine) -> None:
    """Hold for the memory of an engine, and take it. Raises Later, DoesNotFit, NotFound."""
    db, waited_s = context.db, 0.0
    while True:
        with admission.deciding:
            _require_wanted(context, engine)
            step = _step(db, context.home, engine)
            if isinstance(step, Start):
                _take(db, context.home, engine)
                return
            if isinstance(step, Evict):
                _evict(db, engine, step)
        if isinstance(step, Hold) and not _is_stopping(db):
            until = step.until or db.now() + AGAIN_S
            raise Later(f"waits {step.reason}", min(AGAIN_S, max(LOOK_S, until - db.now())))
        context.report("makes room")
        context.wait(LOOK_S)
        waited_s += LOOK_S
        if waited_s > STOPPING_S:
            raise Later("waits for an engine to finish its answers", AGAIN_S)


def _require_wanted(context: Context, engine: Engine) -> None:
    """Raise NotRunning where a user stopped an engine, or all, after it was asked for."""
    newest = desired.of_service(context.db, engine.name)
    if newest.value == "down" and newest.seq > context.claim.seq:
        raise NotRunning(f"{engine.name} was stopped before it was loaded.", hint="mlxq up")


def _step(db: Database, home: Home, engine: Engine) -> Step:
    """Decide what is to be done for an engine. Raises DoesNotFit.

    One that is being stopped for another gives its memory first: else it would take back what it has just given away.
    """
    row = rows.find(db, engine.name)
    if row is not None and row.desired == "down" and row.state in ALIVE:
        return Hold("until its last answers have ended")
    requests.require_room(db, engine)
    budget, present = stack_jobs.budget(db, home), admission.residents(db, home, without=engine.name)
    return decide(engine.name, admission.waiting(db, engine), present, budget=budget, now=db.now())


def _is_stopping(db: Database) -> bool:
    return any(row.desired == "down" and row.state in ALIVE for row in rows.listing(db) if row.kind == "engine")


def _evict(db: Database, engine: Engine, step: Evict) -> None:
    for name in step.names:
        event.record(db, "evicted", service=name, cause=f"Its memory is needed for {engine.name}.")
    admission.put_to_sleep(db, step.names)


def _take(db: Database, home: Home, engine: Engine) -> None:
    """Record that an engine is to run, and where; the memory is its own from now on.

    In one step: models are read from the disk meanwhile, and what is stored of one that is not to run is replaced.
    """
    on_disk = any(entry.engine.name == engine.name for entry in on_demand.models(db))
    placed = replace(engine, port=_port(db, home, engine)) if on_disk else engine
    route = inventory.route(db, home, placed) if on_disk else {}
    with db.transaction():
        if on_disk:
            on_demand.set_route(db, placed, route)
        rows.ensure(db, placed.name, "engine", placed.port)
        rows.set_desired(db, placed.name, "up")


def _port(db: Database, home: Home, engine: Engine) -> int:
    """Return the port that an engine had, or the first free one of those for models on demand. Raises UsageProblem."""
    first = settings.load(home)["tier-port-base"] + 2 * settings.TIER_PORTS
    taken = {row.port for row in rows.listing(db) if row.name != engine.name}
    taken |= {entry.port for entry in stack.engines(db)}
    for port in (engine.port, *range(first, first + MODEL_PORTS)):
        if port and port not in taken and ports.free(port):
            return port
    raise UsageProblem(
        f"None of the ports {first} to {first + MODEL_PORTS - 1} is free for a model on demand.",
        hint="mlxq config get tier-port-base",
    )


def _give_up(context: Context, name: str) -> None:
    """Have an engine that could not be loaded sleep again, so that it has no memory and the next request may try."""
    db = context.db
    on_demand.answered(db, name)
    if rows.find(db, name) is None:
        return
    with lifecycle.hold(name, lambda: None):
        with db.transaction():
            on_demand.set_asleep(db, name, asleep=True)
            on_demand.set_proved(db, name, "")
            rows.set_desired(db, name, "down")
        lifecycle.stop(db, context.home, rows.get(db, name))
    requests.poke(db)


@job("unload")
def unload(context: Context, engine: str) -> dict[str, Any]:
    """Stop an engine after its last answer; the next request loads it again. Returns {"engine", "state"}.

    It has another argument than `service`, so that it does not keep the drain from running.
    """
    db = context.db
    row = rows.find(db, engine)
    if row is not None and row.active:
        admission.put_to_sleep(db, [engine])
    while (row := rows.find(db, engine)) is not None and row.state != State.STOPPED and row.desired == "down":
        context.report("draining")
        context.wait(LOOK_S)
    return {"engine": engine, "state": row.state if row else State.STOPPED}
