"""How the process of a service is started, adopted, made ready, drained and stopped. Decisions are in tasks.plan.

One process of a service at a time: every way in goes through `hold`. The intent to start is written before the
process exists, its identity after, and a process found with our marks and no row is adopted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

from state import secrets, service, stack, weights
from state.db import Database
from state.errors import EngineFailed, NotFound, PortTaken
from state.paths import Home
from state.service import Service, ServiceEvent, State
from tasks.front import plan as front
from tasks.plan import page
from tasks.supervision import probe
from tasks.supervision.spec import LaunchSpec
from tasks.system import memory, ports, process
from tasks.system.process import Identity

GRACE_S = 10.0
"""Seconds between SIGTERM and SIGKILL; engine and gateway end their drains before."""
HUNG_GRACE_S = 1.0
"""Seconds between SIGTERM and SIGKILL for a process that hangs: it has nothing to drain."""
TOKEN_S = 120.0
"""The first answer of a fresh engine may compile and page in its whole model."""
_held: dict[str, threading.Lock] = {}


@contextlib.contextmanager
def hold(name: str, check: Callable[[], None]) -> Generator[None]:
    """Be the only one in this worker that starts or stops `name`; `check` may raise while waiting."""
    lock = _held.setdefault(name, threading.Lock())
    while not lock.acquire(timeout=0.2):
        check()
    try:
        yield
    finally:
        lock.release()


def held(name: str) -> bool:
    """Return whether a job of this worker starts or stops `name` at the moment."""
    lock = _held.get(name)
    return lock is not None and lock.locked()


def identity(row: Service) -> Identity | None:
    """Return the recorded process, or None."""
    return process.decode(row.identity) if row.identity else None


def running(row: Service) -> Identity | None:
    """Return the recorded process when it lives, or None."""
    process_identity = identity(row)
    return process_identity if process_identity and process.alive(process_identity) else None


def this_boot(row: Service) -> bool:
    """Return whether the machine has not been restarted since the service was last started; True when it never was."""
    marked = row.identity or row.shim
    return marked is None or process.decode(marked).boot == process.boot()


def spawn(db: Database, home: Home, name: str, plan: LaunchSpec, *, restarted: int = 0) -> Service:
    """Start the process and record it. Raises PortTaken, MlxqError; the caller holds the service.

    `restarted`: the newest request to restart it, which this start meets.
    """
    if not adopt_orphan(db, home, service.get(db, name), plan):
        generation = service.request_start(
            db, name, plan.argv, plan.spec_hash, plan.port, release=plan.release, restarted=restarted
        )
        assert generation is not None, "a service that is held and down can be started"
        _free_port(service.get(db, name))
        write_start_marker(home.log(name), f"{name}, start {generation}")
        spawned = process.spawn(plan.argv, plan.environment(generation), home.log(name), home.run, name)
        _record(db, name, ServiceEvent.SPAWNED, spawned.engine, spawned.shim)
    return service.get(db, name)


def _record(db: Database, name: str, step: ServiceEvent, process_identity: Identity, shim: Identity | None) -> None:
    named = process.encode(shim) if shim else None
    service.apply(db, name, step, identity=process.encode(process_identity), shim=named, started_at=db.now())


def adopt_orphan(db: Database, home: Home, row: Service, plan: LaunchSpec) -> bool:
    """Take over the process of a start that was never recorded; end every other one of this service."""
    for shim in process.find_shims(home.run, row.name):
        process.end_barren(shim)
    adopted = False
    for orphan, generation in strays(home, row).items():
        fits = row.state == State.STARTING and generation == row.generation and row.spec_hash == plan.spec_hash
        if fits and not adopted:
            _record(db, row.name, ServiceEvent.ADOPTED, orphan, process.shim(orphan))
            adopted = True
        else:
            process.stop(orphan, GRACE_S)
    return adopted


def _free_port(row: Service) -> None:
    """Raise PortTaken, naming the program, when another program has the port; it is left alone."""
    if not ports.free(row.port):
        raise port_taken(row)


def may_move(row: Service, plan: LaunchSpec) -> None:
    """Raise PortTaken when a running service is to move to a port that another program has."""
    if plan.port != row.port and not ports.free(plan.port):
        problem = port_taken(replace(row, port=plan.port))
        problem.done = f"It was left alone, and {row.name} stays on port {row.port}."
        raise problem


def port_taken(row: Service) -> PortTaken:
    """Return the error that names who has the port of a service."""
    holder = ports.holder(row.port)
    owner = f"{holder.name} (pid {holder.pid})" if holder and holder.pid else "another program"
    return PortTaken(
        f"Port {row.port}, which {row.name} needs, is taken by {owner}.",
        done="It was left alone.",
        hint=ports.cures(row.name, row.kind, row.port),
    )


def _expect_port(row: Service) -> None:
    """Raise PortTaken when another process was quicker than the service at its port."""
    owner = identity(row)
    if owner and ports.taken_from(row.port, owner):
        raise port_taken(row)


def write_start_marker(log: Path, text: str) -> None:
    """Mark in the log where something begins: what was written before it is no cause of what comes after."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime())
    with process.appended(log) as descriptor:
        os.write(descriptor, f"{START_MARKER}{at} {text}\n".encode())


START_MARKER = "=== mlxq: "
HEALTH = {"page": page.HEALTH, "front": front.HEALTH}
"""What services that are neither engines nor the gateway answer with 200 once they serve."""


def ready(home: Home, row: Service) -> bool:
    """Return whether the service takes requests: port, model list, and one token. Raises EngineFailed, PortTaken."""
    if row.kind == "engine":
        if listed(home, row):
            probe.one_answer(row.port, _key(home), row.name, TOKEN_S, release=row.release)
            return True
        return False
    answers = probe.answers(row.port, HEALTH[row.kind]) if row.kind in HEALTH else probe.gateway_ready(row.port)
    if answers:
        _expect_port(row)
    return answers


def listed(home: Home, row: Service) -> bool:
    """Return whether an engine listens, with the name that it is asked by.

    Another program at its port is sent no key. Raises EngineFailed where the engine has another name, PortTaken.
    """
    if not probe.listening(row.port):
        return False
    _expect_port(row)
    if row.name not in probe.models(row.port, _key(home), 10.0):
        raise EngineFailed(f"The engine does not list {row.name}.")
    return True


def _key(home: Home) -> str:
    return secrets.read(home.secrets).get(secrets.TIER, "")


def mark_ready(db: Database, row: Service) -> None:
    """Record that a service is ready, its memory in bytes, and that its weights load."""
    process_identity = identity(row)
    weight = memory.resident(process_identity) if process_identity else None
    now = db.now()
    service.apply(
        db,
        row.name,
        ServiceEvent.BECAME_READY,
        fence=row.generation,
        ready_at=now,
        memory_bytes=weight,
        next_try_at=None,
    )
    if row.kind == "engine":
        with contextlib.suppress(NotFound):  # the stack was changed meanwhile
            weights.loaded(db, stack.engine(db, row.name).weights)


def stop(db: Database, home: Home, row: Service, grace_s: float = GRACE_S) -> None:
    """Stop the service's processes and record that it is stopped. `grace_s`: seconds from SIGTERM to SIGKILL."""
    service.apply(db, row.name, ServiceEvent.STOPPING)
    process_identity = identity(row)
    if process_identity:
        process.stop(process_identity, grace_s)
    for stray in strays(home, row):
        process.stop(stray, grace_s)
    mark_stopped(db, row)


def mark_stopped(db: Database, row: Service) -> None:
    """Record, once, that a service stopped as requested."""
    cleared: dict[str, None] = dict.fromkeys(("identity", "shim", "next_try_at", "memory_bytes", "successor"))
    with db.transaction():
        if service.get(db, row.name).state != State.STOPPED:
            service.apply(db, row.name, ServiceEvent.STOPPED, fence=row.generation, **cleared)


def drain(db: Database, row: Service) -> Identity | None:
    """Have an engine refuse new requests and exit after its last response. Return its process, if any."""
    if row.kind == "engine":
        service.apply(db, row.name, ServiceEvent.DRAIN_STARTED, fence=row.generation)
    row = service.get(db, row.name)
    process_identity = running(row) if row.state == State.DRAINING else None
    if process_identity:
        process.send(process_identity, signal.SIGUSR2)
    return process_identity


def strays(home: Home, row: Service) -> dict[Identity, int]:
    """Return the processes that bear a service's marks: identity -> generation.

    Those that were replaced and still answer are left out, unless the service should not run any more.
    """
    spared = set(leaving(row)) if row.desired == "up" else set[Identity]()
    orphans = process.find_orphans(str(home.root), row.name)
    return {stray: generation for stray, generation in orphans.items() if stray not in spared}


def leaving(row: Service) -> list[Identity]:
    """Return the processes that were replaced and are not gone yet."""
    return [
        process_identity for process_identity in map(process.decode, row.leaving) if process.alive(process_identity)
    ]
