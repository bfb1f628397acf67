"""What is said of a service and of the whole, each word with a shape, so that no meaning hangs on colour. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mlxq import service_events as telling
from state.event import Event
from state.service import ROUTED, Service, ServiceEvent, State
from tasks.plan.restart import CRASH_LOOP_EXITS
from tasks.worker_status import WorkerState


class Shape(StrEnum):
    """The mark beside a word; each is drawn differently."""

    FULL = "full"  # a filled disc: all is well
    HALF = "half"  # a half disc: on its way
    RING = "ring"  # an empty ring: not there, and not wanted
    WARN = "warn"  # a triangle: works badly
    CROSS = "cross"  # a cross: does not work


@dataclass(frozen=True)
class StatusLabel:
    """How something is, for people."""

    shape: Shape
    word: str
    why: str = ""
    """What is known of the reason; empty when there is nothing to explain."""
    since: float | None = None
    """Unix seconds since when."""
    until: float | None = None
    """Unix seconds of the next try."""
    hint: str | None = None
    """The command that helps."""


SHAPES = {
    State.STOPPED: Shape.RING,
    State.STARTING: Shape.HALF,
    State.LOADING: Shape.HALF,
    State.READY: Shape.FULL,
    State.STALLED: Shape.WARN,
    State.DEGRADED: Shape.WARN,
    State.DRAINING: Shape.HALF,
    State.STOPPING: Shape.HALF,
    State.BACKOFF: Shape.CROSS,
    State.CRASH_LOOP: Shape.CROSS,
    State.FAILED: Shape.CROSS,
}
WORDS = {State.BACKOFF: "backing off", State.STALLED: "stalled"}
TRIED_AGAIN = frozenset({State.BACKOFF, State.CRASH_LOOP})
ENDED = TRIED_AGAIN | {State.FAILED}
"""Where it ended unasked, and the cause is all there is to tell."""


def of_service(one: Service) -> StatusLabel:
    """Say how a service is."""
    if one.state == State.STOPPED and one.desired == "up":
        return StatusLabel(Shape.HALF, "down", "wanted, and not started yet")
    return StatusLabel(
        SHAPES[one.state],
        WORDS.get(one.state, str(one.state)),
        _why(one),
        since=_since(one),
        until=one.next_try_at if one.state in TRIED_AGAIN else None,
        hint=one.hint if one.state in ENDED else None,
    )


def _why(one: Service) -> str:
    """Say why a service is as it is, where that is not plain from the word."""
    if one.state in {State.READY, State.STOPPED}:
        return ""
    if one.state not in ENDED:
        return one.cause or one.state.meaning
    exits = f"(exit {len(one.exits)} of {CRASH_LOOP_EXITS})" if one.state == State.BACKOFF and one.exits else ""
    return " ".join(filter(None, (one.cause, exits)))


def _since(one: Service) -> float | None:
    """Say since when, where a person would ask."""
    if one.state == State.FAILED:
        return one.updated_at
    return one.started_at if one.state in {State.STARTING, State.LOADING} else None


def of_all(services: Sequence[Service], worker: WorkerState, *, chosen: bool) -> StatusLabel:
    """Say in one word how the whole is; `chosen`: whether there is a stack, which may never have been started."""
    engines = [one for one in services if one.kind == "engine"]
    gate = next((one for one in services if one.kind == "gateway"), None)
    if not engines and not chosen:
        return StatusLabel(Shape.RING, "not set up", hint="mlxq setup")
    if gate is None or not any(one.desired == "up" for one in (gate, *engines)):
        return StatusLabel(Shape.RING, "stopped", hint="mlxq up")
    told = _serving(gate, engines)
    if worker is WorkerState.ALIVE:
        return told
    return StatusLabel(Shape.WARN, told.word, f"nobody watches over it: {worker.meaning}", hint="mlxq status")


def _serving(gate: Service, engines: Sequence[Service]) -> StatusLabel:
    wanted = [gate, *(one for one in engines if one.desired == "up")]
    doing = {one.state for one in wanted[1:]}
    why = ", ".join(f"{one.name} is {of_service(one).word}" for one in wanted if one.state != State.READY)
    if not why:
        return StatusLabel(Shape.FULL, "serving")
    if gate.state in ROUTED and doing & ROUTED:
        return StatusLabel(Shape.WARN, "degraded", why)
    if State.FAILED in doing | {gate.state}:
        return StatusLabel(Shape.CROSS, "down", why, hint="mlxq doctor")
    return StatusLabel(Shape.HALF, "recovering", why)


@dataclass(frozen=True)
class Entry:
    """One line of the timeline."""

    id: int
    at: float
    service: str
    shape: Shape
    word: str
    text: str


MARKS: Mapping[str, Shape] = {
    ServiceEvent.BECAME_READY: Shape.FULL,
    ServiceEvent.ADOPTED: Shape.HALF,
    ServiceEvent.REPLACED: Shape.FULL,
    ServiceEvent.STALLED: Shape.WARN,
    ServiceEvent.DEGRADED: Shape.WARN,
    ServiceEvent.DRAIN_STARTED: Shape.HALF,
    ServiceEvent.STOPPED: Shape.RING,
    ServiceEvent.EXITED: Shape.CROSS,
    ServiceEvent.CRASH_LOOPED: Shape.CROSS,
    ServiceEvent.FAILED: Shape.CROSS,
    "unclean_boot": Shape.CROSS,
    "escalated": Shape.WARN,
    "cache_purged": Shape.HALF,
    "safe_mode": Shape.WARN,
    "handover_started": Shape.HALF,
    "start_requested": Shape.HALF,
    "stop_requested": Shape.RING,
}
"""The mark of each event that is told."""
UNTOLD = frozenset({ServiceEvent.STARTING, ServiceEvent.SPAWNED, ServiceEvent.STOPPING})
"""Steps on the way to another, which tells enough."""


def timeline(happenings: Sequence[Event]) -> list[Entry]:
    """Tell what happened to the services, newest first."""
    return [_entry(each) for each in reversed(happenings) if each.name not in UNTOLD]


def _entry(each: Event) -> Entry:
    shape = MARKS.get(each.name, Shape.RING)
    return Entry(each.id, each.at, each.service or "", shape, telling.word(each.name), telling.text(each))
