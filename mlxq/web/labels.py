"""What is said of a service and of the whole, each word with a shape, so that no meaning hangs on color. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mlxq import service_events, service_status
from state.event import Event
from state.service import ROUTED, Observed, Service, ServiceEvent, State
from tasks.plan.restart import CRASH_LOOP_EXITS
from tasks.worker_status import WorkerState


class Shape(StrEnum):
    """The mark beside a word; each is drawn differently."""

    FULL = "full"  # a filled disc: all is well
    HALF = "half"  # a half disc: on its way
    RING = "ring"  # an empty ring: not there, and not requested
    WARN = "warn"  # a triangle: works badly
    CROSS = "cross"  # a cross: does not work


@dataclass(frozen=True)
class StatusLabel:
    """How something is, for people."""

    shape: Shape
    word: str
    """The state, then the reason: `crashed, restarting`."""
    reason: str = ""
    """The cause; empty when there is nothing to explain."""
    since: float | None = None
    """Unix seconds since when."""
    until: float | None = None
    """Unix seconds of the next start."""
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
    State.DISK_UNAVAILABLE: Shape.CROSS,
    State.CRASH_LOOP: Shape.CROSS,
    State.FAILED: Shape.CROSS,
}
ENDED = frozenset({State.BACKOFF, State.CRASH_LOOP, State.FAILED, State.DISK_UNAVAILABLE})
"""Where it exited unexpectedly or cannot be started, and the cause is all there is to tell."""
NOT_SET_UP = "not set up"
HANGS = "the worker hangs"


def of_service(service: Service) -> StatusLabel:
    """Return the label of a service."""
    status = service_status.of_row(service)
    waiting = status.reason == service_status.WAITING
    return StatusLabel(
        Shape.HALF if waiting else SHAPES[service.state],
        status.words,
        _why(service),
        since=_since(service),
        until=status.next_try_at,
        hint=service.hint if service.state in ENDED else None,
    )


def _why(service: Service) -> str:
    """Return why a service is in its state, where that is not plain from the word."""
    if service.state in {State.READY, State.STOPPED}:
        return ""
    if service.state not in ENDED:
        return service.cause or service.state.meaning
    exits = f"(exit {len(service.exits)} of {CRASH_LOOP_EXITS})"
    counted = service.state == State.BACKOFF and service.exits
    return " ".join(filter(None, (service.cause, exits if counted else "")))


def _since(service: Service) -> float | None:
    """Return since when, where a reader would ask."""
    if service.state == State.FAILED:
        return service.updated_at
    return service.started_at if service.state in {State.STARTING, State.LOADING} else None


ACTIONS: Mapping[State, Sequence[str]] = {
    State.STOPPED: (),
    State.STARTING: ("stop",),
    State.LOADING: ("stop",),
    State.READY: ("restart", "drain", "stop"),
    State.STALLED: ("restart", "drain", "stop"),
    State.DEGRADED: ("restart", "drain", "stop"),
    State.DRAINING: ("stop",),
    State.STOPPING: (),
    State.BACKOFF: ("restart", "stop"),
    State.DISK_UNAVAILABLE: ("stop",),
    State.CRASH_LOOP: ("restart", "stop"),
    State.FAILED: ("start",),
}
"""What can be asked of a service that should run; a failed one neither runs nor is retried, so it can only start."""


def actions(service: Service) -> list[str]:
    """Return what makes sense to ask of a service: start, restart, drain, stop."""
    if service.desired == "down":
        return {State.DRAINING: ["stop"], State.STOPPING: []}.get(service.state, ["start"])
    if service.state == State.STOPPED:
        return ["stop"]  # it waits for its start
    return [verb for verb in ACTIONS[service.state] if verb != "drain" or service.kind == "engine"]


def of_all(services: Sequence[Service], worker: WorkerState, *, chosen: bool) -> StatusLabel:
    """Return the label of the whole; `chosen`: whether there is a stack, which may never have been started."""
    engines = [service for service in services if service.kind == "engine"]
    gateway = next((service for service in services if service.kind == "gateway"), None)
    if not engines and not chosen:
        return StatusLabel(Shape.RING, NOT_SET_UP, hint="mlxq setup")
    if gateway is None or not any(service.desired == "up" for service in (gateway, *engines)):
        return StatusLabel(Shape.RING, Observed.STOPPED, hint="mlxq up")
    label = _requested(gateway, engines)
    if worker is WorkerState.ALIVE:
        return label
    reason = HANGS if worker is WorkerState.HUNG else service_status.NO_WORKER
    return StatusLabel(Shape.WARN, label.word, reason, hint="mlxq status")


def _requested(gateway: Service, engines: Sequence[Service]) -> StatusLabel:
    """Return the label of what is requested to run: healthy, degraded, crashed, or down."""
    requested = [gateway, *(engine for engine in engines if engine.desired == "up")]
    states = {engine.state for engine in requested[1:]}
    reason = "; ".join(
        f"{service.name}: {of_service(service).word}" for service in requested if service.state != State.READY
    )
    if not reason:
        return StatusLabel(Shape.FULL, Observed.HEALTHY)
    if gateway.state in ROUTED and states & ROUTED:
        return StatusLabel(Shape.WARN, Observed.DEGRADED, reason)
    if {State.FAILED, State.DISK_UNAVAILABLE} & (states | {gateway.state}):
        return StatusLabel(Shape.CROSS, Observed.CRASHED, reason, hint="mlxq doctor")
    return StatusLabel(Shape.HALF, Observed.DOWN, reason)


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
    ServiceEvent.DISK_UNAVAILABLE: Shape.CROSS,
    ServiceEvent.CRASH_LOOPED: Shape.CROSS,
    ServiceEvent.FAILED: Shape.CROSS,
    "unclean_boot": Shape.CROSS,
    "configuration_rewritten": Shape.WARN,
    "escalated": Shape.WARN,
    "cache_purged": Shape.HALF,
    "safe_mode": Shape.WARN,
    "safe_mode_lifted": Shape.FULL,
    "logged_out": Shape.WARN,
    "engine_changed": Shape.WARN,
    "engine_fault": Shape.CROSS,
    "tuning_taken_back": Shape.WARN,
    "idle": Shape.RING,
    "evicted": Shape.RING,
    "handover_started": Shape.HALF,
    "start_requested": Shape.HALF,
    "stop_requested": Shape.RING,
}
"""The mark of each event that is shown."""
UNTOLD = frozenset({ServiceEvent.STARTING, ServiceEvent.SPAWNED, ServiceEvent.STOPPING})
"""Events on the way to another, which says enough."""


def timeline(events: Sequence[Event]) -> list[Entry]:
    """Return what happened to the services, newest first."""
    return [_entry(event) for event in reversed(events) if event.name not in UNTOLD]


def _entry(event: Event) -> Entry:
    shape = MARKS.get(event.name, Shape.RING)
    return Entry(
        event.id, event.at, event.service or "", shape, service_events.reason(event.name), service_events.text(event)
    )
