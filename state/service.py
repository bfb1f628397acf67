"""Services: the engine of each tier, and the gateway. What is wanted, what mlxq is doing about it, what is seen.

These are three things. `desired` is what the user asked for and survives a reboot; `state` has one writer, the
worker; `observed` is what an outsider would say, in five words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from typing import Any, Literal

from state import event
from state.classes import DocumentedEnum, dataclass
from state.db import Database, Row, json_mapping, json_numbers, json_strings, known_columns
from state.errors import NotFound

Desired = Literal["up", "down"]
Kind = Literal["engine", "gateway", "page", "front"]
IDENTITY = re.compile(r"[^/\s]+/[0-9]{1,10}/[^/\s]+")
"""A process: boot, pid and start, as tasks.system.process writes it."""


class State(DocumentedEnum):
    """What mlxq is doing about a service; `meaning` is the sentence for people."""

    STOPPED = "stopped", "not running, and not requested to run"
    STARTING = "starting", "about to start; the intent is recorded, the process may not exist yet"
    LOADING = "loading", "the process is loading its weights"
    READY = "ready", "serving requests"
    STALLED = "stalled", "has requests and makes no progress"
    DEGRADED = "degraded", "serving, but missing probes"
    DRAINING = "draining", "removed from routing; running requests may finish"
    STOPPING = "stopping", "was told to exit"
    BACKOFF = "backoff", "exited; waiting for the next restart"
    DISK_UNAVAILABLE = "disk_unavailable", "the folder of its weights cannot be read; started when it can"
    CRASH_LOOP = "crash_loop", "keeps exiting; removed from routing and retried every five minutes"
    FAILED = "failed", "not retried until an operator acts"


class ServiceEvent(DocumentedEnum):
    """What can happen to a service; `meaning` is the sentence for people."""

    STARTING = "starting", "about to start the process"
    SPAWNED = "spawned", "process started"
    ADOPTED = "adopted", "a running process was adopted"
    BECAME_READY = "became_ready", "produced a token"
    REPLACED = "replaced", "replaced by a tested process; no connection was dropped"
    STALLED = "stalled", "has requests and makes no progress"
    DEGRADED = "degraded", "misses probes"
    DRAIN_STARTED = "drain_started", "gets no new requests"
    STOPPING = "stopping", "was told to exit"
    STOPPED = "stopped", "exited because mlxq stopped it"
    EXITED = "exited", "exited unexpectedly; will be restarted"
    DISK_UNAVAILABLE = "disk_unavailable", "its weights cannot be read at the moment"
    CRASH_LOOPED = "crash_looped", "exited unexpectedly too often"
    FAILED = "failed", "another start would fail the same way"


SERVING = frozenset({State.READY, State.STALLED, State.DEGRADED, State.DRAINING})
ALIVE = SERVING | {State.STARTING, State.LOADING, State.STOPPING}
"""Where a process exists or may exist."""
DOWN = frozenset(State) - ALIVE
GIVEN_UP = frozenset({State.FAILED, State.CRASH_LOOP, State.DISK_UNAVAILABLE})
"""Down for longer than a restart takes: never retried, retried after minutes, or waiting for a disk."""
ROUTED = frozenset({State.READY, State.DEGRADED})
"""Where the gateway may send requests."""

TRANSITIONS: Mapping[ServiceEvent, tuple[frozenset[State], State]] = {
    ServiceEvent.STARTING: (DOWN | {State.STARTING}, State.STARTING),
    ServiceEvent.SPAWNED: (frozenset({State.STARTING}), State.LOADING),
    ServiceEvent.ADOPTED: (frozenset(State), State.LOADING),
    ServiceEvent.BECAME_READY: (frozenset({State.LOADING, State.STALLED, State.DEGRADED}), State.READY),
    ServiceEvent.REPLACED: (frozenset(State), State.READY),
    ServiceEvent.STALLED: (frozenset({State.READY, State.DEGRADED}), State.STALLED),
    ServiceEvent.DEGRADED: (frozenset({State.READY, State.STALLED}), State.DEGRADED),
    ServiceEvent.DRAIN_STARTED: (SERVING - {State.DRAINING}, State.DRAINING),
    ServiceEvent.STOPPING: (ALIVE, State.STOPPING),
    ServiceEvent.STOPPED: (frozenset(State), State.STOPPED),
    ServiceEvent.EXITED: (ALIVE, State.BACKOFF),
    ServiceEvent.DISK_UNAVAILABLE: (frozenset(State) - {State.DISK_UNAVAILABLE}, State.DISK_UNAVAILABLE),
    ServiceEvent.CRASH_LOOPED: (ALIVE, State.CRASH_LOOP),
    ServiceEvent.FAILED: (frozenset(State) - {State.FAILED}, State.FAILED),
}
"""The whole state machine: an event leads from these states to that one. docs/states.md is made from it."""
REQUESTED: Mapping[Desired, str] = {"up": "start_requested", "down": "stop_requested"}
"""The event that records a change of the desired state."""


def transition(now: State, step: ServiceEvent) -> State:
    """Return what mlxq is doing after `step`. Raises ValueError when the step is not allowed from here."""
    sources, target = TRANSITIONS[step]
    if now not in sources:
        raise ValueError(f"a {now} service cannot be {step}")
    return target


class Observed(StrEnum):
    """What an outsider sees of a service."""

    HEALTHY = "healthy"  # it serves
    DEGRADED = "degraded"  # it serves badly, or is about to stop
    DOWN = "down"  # requested to run, and not serving yet
    CRASHED = "crashed"  # exited unexpectedly
    STOPPED = "stopped"  # not requested to run


def observe(state: State, desired: Desired) -> Observed:
    """Return which of the five states a service shows to its users."""
    if state == State.READY:
        return Observed.HEALTHY
    if state in SERVING or state == State.STOPPING:
        return Observed.DEGRADED
    if state in {State.BACKOFF, State.CRASH_LOOP, State.FAILED}:
        return Observed.CRASHED
    return Observed.DOWN if desired == "up" or state != State.STOPPED else Observed.STOPPED


@dataclass(frozen=True)
class Service:
    """One row. Times are unix seconds."""

    name: str
    kind: Kind
    desired: Desired
    state: State
    observed: Observed
    generation: int
    """Counts starts; a process of an earlier generation is not this one's."""
    argv: list[str]
    spec_hash: str
    """What the process was started with; another one means it must be restarted."""
    port: int
    """Where the latest start listens; settings and stack say where the next one will."""
    identity: str | None
    """boot/pid/start of the process, as tasks.system.process encodes it."""
    shim: str | None
    started_at: float | None
    ready_at: float | None
    exits: list[float]
    """When it ended unasked, since it last was ready for ten minutes."""
    restarts: int
    next_try_at: float | None
    exit_code: int | None
    cause_code: str | None
    cause: str | None
    hint: str | None
    memory_bytes: int | None
    updated_at: float
    successor: dict[str, Any] | None = None
    """argv, spec_hash and port of the latest generation's start, which is to replace the running process."""
    leaving: list[str] = field(default_factory=list[str])
    """Identities of processes that were replaced; each ends by itself when its last answer is out."""
    release: str = ""
    """Name and version of the engine that the latest start runs, such as "rapid-mlx 0.16.10"; empty for the others."""
    reused: float | None = None
    """Share of a conversation's earlier part that its second turn did not read again, when a smoke test last asked;
    None before, and after a start with another command line."""
    restarted: int = 0
    """Number of the newest request to restart it that the running process has met (state/desired.py)."""
    asleep: bool = False
    """Whether mlxq stopped it until it is asked for again (state/on_demand.py)."""

    @property
    def active(self) -> bool:
        """Whether its process runs, or is to run."""
        return self.desired == "up" or self.state in ALIVE

    @property
    def pid(self) -> int | None:
        """The pid of the process that was recorded."""
        return int(self.identity.split("/")[1]) if self.identity else None


OF_ONE_START = (
    *("identity", "shim", "started_at", "ready_at", "next_try_at", "memory_bytes"),
    *("exit_code", "cause_code", "cause", "hint", "successor"),
)
"""Columns that tell of one start and are empty at the next."""


SELECTED = "SELECT *, coalesce((SELECT asleep FROM residency WHERE engine = name), 0) AS asleep FROM services"


def listing(db: Database) -> list[Service]:
    """Return all services: engines by port, then the others."""
    return [_service(row) for row in db.rows(f"{SELECTED} ORDER BY kind <> 'engine', port")]


def find(db: Database, name: str) -> Service | None:
    """Return one service, or None."""
    row = db.row(f"{SELECTED} WHERE name = ?", (name,))
    return None if row is None else _service(row)


def get(db: Database, name: str) -> Service:
    """Return one service. Raises NotFound."""
    service = find(db, name)
    if service is None:
        raise NotFound(f"There is no service {name}.", hint="mlxq status")
    return service


def ensure(db: Database, name: str, kind: Kind, port: int) -> None:
    """Make sure the service has a row; a new one is not desired yet. A port is set again by each start alone."""
    db.run(
        "INSERT INTO services (name, kind, desired, port, updated_at) VALUES (?, ?, 'down', ?, ?)"
        " ON CONFLICT (name) DO NOTHING",
        (name, kind, port, db.now()),
    )


def remove(db: Database, name: str) -> bool:
    """Forget a service that is down; False when it is not."""
    return (
        db.run(f"DELETE FROM services WHERE name = ? AND state IN ({_marks(DOWN)})", (name, *sorted(DOWN))) > 0  # noqa: S608 (marks alone)
    )


def set_desired(db: Database, name: str, desired: Desired) -> None:
    """Write down what the user wants; it outlives a reboot. A fresh wish gives a failed service its tries back."""
    with db.transaction():
        service = get(db, name)
        cleared = ", exits = '[]', next_try_at = NULL" if desired == "up" and service.state in DOWN else ""
        db.run(
            f"UPDATE services SET desired = ?, observed = ?, updated_at = ?{cleared} WHERE name = ?",  # noqa: S608 (our own text)
            (desired, observe(service.state, desired), db.now(), name),
        )
        if desired != service.desired:
            event.record(db, REQUESTED[desired], service=name)
        db.announce()


def apply(db: Database, name: str, step: ServiceEvent, *, fence: int | None = None, **columns: Any) -> bool:
    """Make one step and write its event; False when the table does not allow it from where the service is.

    `fence`: the generation the caller acts for; a service that was started again since is left alone.
    `columns`: further columns of the row to set with it, lists and mappings as JSON.
    """
    with db.transaction():
        service = get(db, name)
        if service.state not in TRANSITIONS[step][0] or fence not in {None, service.generation}:
            return False
        state = transition(service.state, step)
        changed = {"state": state, "observed": observe(state, service.desired)} | columns
        update(db, name, **changed)
        details = {key: columns[key] for key in ("cause", "exit_code", "next_try_at") if columns.get(key) is not None}
        event.record(db, step, service=name, attempt=columns.get("generation", service.generation), **details)
        db.announce()
    return True


def update(db: Database, name: str, **columns: Any) -> None:
    """Set columns of a row that are no step: what was seen, what was measured."""
    values = {key: json.dumps(value) if isinstance(value, list | dict) else value for key, value in columns.items()}
    marks = ", ".join(f"{key} = :{key}" for key in values)
    db.run(
        f"UPDATE services SET {marks}, updated_at = :now WHERE name = :name",  # noqa: S608 (our own names)
        values | {"now": db.now(), "name": name},
    )


def request_start(
    db: Database, name: str, argv: list[str], spec_hash: str, port: int, *, release: str = "", restarted: int = 0
) -> int | None:
    """Record the intent to start the service, and return the generation of this start.

    `release`: of an engine, its name and version. `restarted`: the newest request to restart it that this start meets.

    None when it is up or under way already. This comes before the spawn: a crash in between leaves a mark to
    search for, not an unknown process.
    """
    with db.transaction():
        before = get(db, name)
        generation = before.generation + 1
        fresh: dict[str, Any] = {"generation": generation, "argv": argv, "spec_hash": spec_hash, "port": port}
        fresh |= {"release": release, "reused": before.reused if spec_hash == before.spec_hash else None}
        fresh |= {"restarted": restarted}
        fresh |= dict.fromkeys(OF_ONE_START)
        return generation if apply(db, name, ServiceEvent.STARTING, **fresh) else None


def begin_handover(db: Database, name: str, argv: list[str], spec_hash: str, port: int, *, restarted: int = 0) -> int:
    """Record the intent to start a replacement of the running process, and return its generation.

    As with `request_start`, this comes before the spawn. The running process stays the recorded one.
    """
    with db.transaction():
        generation = get(db, name).generation + 1
        planned = {"argv": argv, "spec_hash": spec_hash, "port": port, "restarted": restarted}
        update(db, name, generation=generation, successor=planned)
        event.record(db, "handover_started", service=name, attempt=generation)
    return generation


def _marks(values: frozenset[Any]) -> str:
    return ", ".join("?" * len(values))


def _service(row: Row) -> Service:
    """Return a row; what this mlxq cannot have written in it counts as not there.

    A state that it does not know is one of a newer mlxq: the service is looked for and started again.
    """
    values = known_columns(row, Service)
    state = values["state"] = State(values["state"]) if values["state"] in set(State) else State.BACKOFF
    observed = values["observed"]
    values["observed"] = Observed(observed) if observed in set(Observed) else observe(state, values["desired"])
    values["asleep"] = bool(values["asleep"]) and values["desired"] == "down"
    values["argv"] = json_strings(values["argv"])
    values["exits"] = json_numbers(values["exits"])
    values["leaving"] = [text for text in json_strings(values["leaving"]) if IDENTITY.fullmatch(text)]
    values["successor"] = _successor(values["successor"])
    for column in ("identity", "shim"):
        values[column] = values[column] if IDENTITY.fullmatch(values[column] or "") else None
    return Service(**values)


def _successor(text: str | None) -> dict[str, Any] | None:
    """Return the plan of a replacement; None where there is none that is whole."""
    planned = json_mapping(text)
    return planned if planned.keys() >= {"argv", "spec_hash", "port"} else None
