"""Services: the engine of each tier, and the gateway. What is wanted, what mlxq is doing about it, what is seen.

These are three things. `wanted` is the person's word and survives a reboot; `doing` is a machine with one writer, the
worker; `observed` is what an outsider would say, in five words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from state import event
from state.db import Database, Row
from state.documented_enum import Told
from state.errors import NotFound

Wanted = Literal["up", "down"]
Kind = Literal["engine", "gateway", "page"]


class Doing(Told):
    """What mlxq is doing about a service; `meaning` is the sentence for people."""

    STOPPED = "stopped", "no process, and none is wanted"
    STARTING = "starting", "about to be started; the wish is written down, the process may not be yet"
    LOADING = "loading", "the process lives and reads its weights"
    READY = "ready", "serves requests"
    STALLED = "stalled", "has requests and does not move"
    DEGRADED = "degraded", "serves, but something is wrong"
    DRAINING = "draining", "out of the route; running requests may end"
    STOPPING = "stopping", "was told to end"
    BACKOFF = "backoff", "ended; waits for its next try"
    FLAPPING = "flapping", "ends again and again; out of the route, tried every five minutes"
    FAILED = "failed", "will not be tried again until a person does something"


class Step(Told):
    """What can happen to a service; `meaning` is the sentence for people."""

    INTENDED = "intended", "mlxq is about to start it"
    SPAWNED = "spawned", "its process was started and named"
    ADOPTED = "adopted", "a process that was running already was taken over"
    READIED = "readied", "it made its first token, or one again"
    REPLACED = "replaced", "another process, proven beside it, took its place without a gap"
    STALLED = "stalled", "it has work and does not move"
    DEGRADED = "degraded", "it misses probes"
    DRAINED = "drained", "it gets no new requests"
    ENDING = "ending", "mlxq tells it to end"
    STOPPED = "stopped", "it ended because mlxq told it to"
    DIED = "died", "it ended unasked; it is tried again"
    FLAPPED = "flapped", "it ended unasked too often"
    GAVE_UP = "gave_up", "another try would end the same way"


SERVING = frozenset({Doing.READY, Doing.STALLED, Doing.DEGRADED, Doing.DRAINING})
ALIVE = SERVING | {Doing.STARTING, Doing.LOADING, Doing.STOPPING}
"""Where a process exists or may exist."""
DOWN = frozenset(Doing) - ALIVE
ROUTED = frozenset({Doing.READY, Doing.DEGRADED})
"""Where the gateway may send requests."""

STEPS: Mapping[Step, tuple[frozenset[Doing], Doing]] = {
    Step.INTENDED: (DOWN | {Doing.STARTING}, Doing.STARTING),
    Step.SPAWNED: (frozenset({Doing.STARTING}), Doing.LOADING),
    Step.ADOPTED: (frozenset(Doing), Doing.LOADING),
    Step.READIED: (frozenset({Doing.LOADING, Doing.STALLED, Doing.DEGRADED}), Doing.READY),
    Step.REPLACED: (frozenset(Doing), Doing.READY),
    Step.STALLED: (frozenset({Doing.READY, Doing.DEGRADED}), Doing.STALLED),
    Step.DEGRADED: (frozenset({Doing.READY, Doing.STALLED}), Doing.DEGRADED),
    Step.DRAINED: (SERVING - {Doing.DRAINING}, Doing.DRAINING),
    Step.ENDING: (ALIVE, Doing.STOPPING),
    Step.STOPPED: (frozenset(Doing), Doing.STOPPED),
    Step.DIED: (ALIVE, Doing.BACKOFF),
    Step.FLAPPED: (ALIVE, Doing.FLAPPING),
    Step.GAVE_UP: (frozenset(Doing) - {Doing.FAILED}, Doing.FAILED),
}
"""The whole machine: a step leads from these to that one. docs/states.md is made from it."""


def advance(now: Doing, step: Step) -> Doing:
    """Give what mlxq is doing after `step`. Raises ValueError when the step is not allowed from here."""
    sources, target = STEPS[step]
    if now not in sources:
        raise ValueError(f"a {now} service cannot be {step}")
    return target


class Observed(StrEnum):
    """What an outsider sees of a service."""

    HEALTHY = "healthy"  # it serves
    DEGRADED = "degraded"  # it serves badly, or is about to stop
    DOWN = "down"  # it is wanted, and not there yet
    CRASHED = "crashed"  # it ended unasked
    STOPPED = "stopped"  # it is not wanted


def observe(doing: Doing, wanted: Wanted) -> Observed:
    """Say in one of five words how a service looks from outside."""
    if doing == Doing.READY:
        return Observed.HEALTHY
    if doing in SERVING or doing == Doing.STOPPING:
        return Observed.DEGRADED
    if doing in {Doing.BACKOFF, Doing.FLAPPING, Doing.FAILED}:
        return Observed.CRASHED
    return Observed.DOWN if wanted == "up" or doing != Doing.STOPPED else Observed.STOPPED


@dataclass(frozen=True)
class Service:
    """One row. Times are unix seconds."""

    name: str
    kind: Kind
    wanted: Wanted
    doing: Doing
    observed: Observed
    generation: int
    """Counts starts; a process of an earlier generation is not this one's."""
    argv: list[str]
    fingerprint: str
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
    """argv, fingerprint and port of the latest generation's start, which shall take the running process's place."""
    leaving: list[str] = field(default_factory=list[str])
    """Identities of processes that were replaced; each ends by itself when its last answer is out."""

    @property
    def pid(self) -> int | None:
        """The pid of the process that was recorded."""
        return int(self.identity.split("/")[1]) if self.identity else None


OF_ONE_START = (
    *("identity", "shim", "started_at", "ready_at", "next_try_at", "memory_bytes"),
    *("exit_code", "cause_code", "cause", "hint", "successor"),
)
"""Columns that tell of one start and are empty at the next."""


def listing(db: Database) -> list[Service]:
    """Give all services: engines by port, then the gateway and the page."""
    return [_service(row) for row in db.rows("SELECT * FROM services ORDER BY kind <> 'engine', port")]


def find(db: Database, name: str) -> Service | None:
    """Give one service, or None."""
    row = db.row("SELECT * FROM services WHERE name = ?", (name,))
    return None if row is None else _service(row)


def get(db: Database, name: str) -> Service:
    """Give one service. Raises NotFound."""
    found = find(db, name)
    if found is None:
        raise NotFound(f"There is no service {name}.", hint="mlxq status")
    return found


def ensure(db: Database, name: str, kind: Kind, port: int) -> None:
    """Make sure the service has a row; a new one is not wanted yet. A port is set anew by each start alone."""
    db.run(
        "INSERT INTO services (name, kind, wanted, port, updated_at) VALUES (?, ?, 'down', ?, ?)"
        " ON CONFLICT (name) DO NOTHING",
        (name, kind, port, db.now()),
    )


def remove(db: Database, name: str) -> bool:
    """Forget a service that is down; False when it is not."""
    return (
        db.run(f"DELETE FROM services WHERE name = ? AND doing IN ({_marks(DOWN)})", (name, *sorted(DOWN))) > 0  # noqa: S608 (marks alone)
    )


def want(db: Database, name: str, wanted: Wanted) -> None:
    """Write down what the person wants; it outlives a reboot. A fresh wish gives a failed service its tries back."""
    with db.transaction():
        service = get(db, name)
        cleared = ", exits = '[]', next_try_at = NULL" if wanted == "up" and service.doing in DOWN else ""
        db.run(
            f"UPDATE services SET wanted = ?, observed = ?, updated_at = ?{cleared} WHERE name = ?",  # noqa: S608 (our own text)
            (wanted, observe(service.doing, wanted), db.now(), name),
        )
        if wanted != service.wanted:
            event.record(db, f"wanted_{wanted}", service=name)
        db.announce()


def step(db: Database, name: str, what: Step, *, fence: int | None = None, **columns: Any) -> bool:
    """Make one step and write its event; False when the table does not allow it from where the service is.

    `fence`: the generation the caller acts for; a service that was started again since is left alone.
    `columns`: further columns of the row to set with it, lists and mappings as JSON.
    """
    with db.transaction():
        service = get(db, name)
        if service.doing not in STEPS[what][0] or fence not in {None, service.generation}:
            return False
        doing = advance(service.doing, what)
        changed = {"doing": doing, "observed": observe(doing, service.wanted)} | columns
        update(db, name, **changed)
        told = {key: columns[key] for key in ("cause", "exit_code", "next_try_at") if columns.get(key) is not None}
        event.record(db, what, service=name, attempt=columns.get("generation", service.generation), **told)
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


def intend(db: Database, name: str, argv: list[str], fingerprint: str, port: int) -> int | None:
    """Write down that the service is about to be started, and give the generation of this start.

    None when it is up or under way already. This comes before the spawn: a crash in between leaves a mark to
    search for, not a process nobody knows.
    """
    with db.transaction():
        generation = get(db, name).generation + 1
        fresh: dict[str, Any] = {"generation": generation, "argv": argv, "fingerprint": fingerprint, "port": port}
        fresh |= dict.fromkeys(OF_ONE_START)
        return generation if step(db, name, Step.INTENDED, **fresh) else None


def foresee(db: Database, name: str, argv: list[str], fingerprint: str, port: int) -> int:
    """Write down that a process is about to be started which shall take the running one's place; give its generation.

    As with `intend`, this comes before the spawn. The running process stays the recorded one.
    """
    with db.transaction():
        generation = get(db, name).generation + 1
        planned = {"argv": argv, "fingerprint": fingerprint, "port": port}
        update(db, name, generation=generation, successor=planned)
        event.record(db, "foreseen", service=name, attempt=generation)
    return generation


def _marks(values: frozenset[Any]) -> str:
    return ", ".join("?" * len(values))


def _service(row: Row) -> Service:
    values = dict(row)
    values["doing"] = Doing(values["doing"])
    values["observed"] = Observed(values["observed"])
    values["argv"] = json.loads(values["argv"])
    for key in ("exits", "leaving"):
        values[key] = json.loads(values[key])
    values["successor"] = json.loads(values["successor"]) if values["successor"] else None
    return Service(**values)
