"""What is said of a service and of the whole, each word with a shape, so that no meaning hangs on colour. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mlxq import service_events as telling
from state.event import Happening
from state.service import ROUTED, Doing, Service, Step
from tasks.plan.restart import FLAPPING_EXITS
from tasks.worker_status import Pulse


class Shape(StrEnum):
    """The mark beside a word; each is drawn differently."""

    FULL = "full"  # a filled disc: all is well
    HALF = "half"  # a half disc: on its way
    RING = "ring"  # an empty ring: not there, and not wanted
    WARN = "warn"  # a triangle: works badly
    CROSS = "cross"  # a cross: does not work


@dataclass(frozen=True)
class Told:
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
    Doing.STOPPED: Shape.RING,
    Doing.STARTING: Shape.HALF,
    Doing.LOADING: Shape.HALF,
    Doing.READY: Shape.FULL,
    Doing.STALLED: Shape.WARN,
    Doing.DEGRADED: Shape.WARN,
    Doing.DRAINING: Shape.HALF,
    Doing.STOPPING: Shape.HALF,
    Doing.BACKOFF: Shape.CROSS,
    Doing.FLAPPING: Shape.CROSS,
    Doing.FAILED: Shape.CROSS,
}
WORDS = {Doing.BACKOFF: "backing off", Doing.STALLED: "stalled"}
TRIED_AGAIN = frozenset({Doing.BACKOFF, Doing.FLAPPING})
ENDED = TRIED_AGAIN | {Doing.FAILED}
"""Where it ended unasked, and the cause is all there is to tell."""


def of_service(one: Service) -> Told:
    """Say how a service is."""
    if one.doing == Doing.STOPPED and one.wanted == "up":
        return Told(Shape.HALF, "down", "wanted, and not started yet")
    return Told(
        SHAPES[one.doing],
        WORDS.get(one.doing, str(one.doing)),
        _why(one),
        since=_since(one),
        until=one.next_try_at if one.doing in TRIED_AGAIN else None,
        hint=one.hint if one.doing in ENDED else None,
    )


def _why(one: Service) -> str:
    """Say why a service is as it is, where that is not plain from the word."""
    if one.doing in {Doing.READY, Doing.STOPPED}:
        return ""
    if one.doing not in ENDED:
        return one.cause or one.doing.meaning
    exits = f"(exit {len(one.exits)} of {FLAPPING_EXITS})" if one.doing == Doing.BACKOFF and one.exits else ""
    return " ".join(filter(None, (one.cause, exits)))


def _since(one: Service) -> float | None:
    """Say since when, where a person would ask."""
    if one.doing == Doing.FAILED:
        return one.updated_at
    return one.started_at if one.doing in {Doing.STARTING, Doing.LOADING} else None


def of_all(services: Sequence[Service], worker: Pulse, *, chosen: bool) -> Told:
    """Say in one word how the whole is; `chosen`: whether there is a stack, which may never have been started."""
    engines = [one for one in services if one.kind == "engine"]
    gate = next((one for one in services if one.kind == "gateway"), None)
    if not engines and not chosen:
        return Told(Shape.RING, "not set up", hint="mlxq setup")
    if gate is None or not any(one.wanted == "up" for one in (gate, *engines)):
        return Told(Shape.RING, "stopped", hint="mlxq up")
    told = _serving(gate, engines)
    if worker is Pulse.ALIVE:
        return told
    return Told(Shape.WARN, told.word, f"nobody watches over it: {worker.meaning}", hint="mlxq status")


def _serving(gate: Service, engines: Sequence[Service]) -> Told:
    wanted = [gate, *(one for one in engines if one.wanted == "up")]
    doing = {one.doing for one in wanted[1:]}
    why = ", ".join(f"{one.name} is {of_service(one).word}" for one in wanted if one.doing != Doing.READY)
    if not why:
        return Told(Shape.FULL, "serving")
    if gate.doing in ROUTED and doing & ROUTED:
        return Told(Shape.WARN, "degraded", why)
    if Doing.FAILED in doing | {gate.doing}:
        return Told(Shape.CROSS, "down", why, hint="mlxq doctor")
    return Told(Shape.HALF, "recovering", why)


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
    Step.READIED: Shape.FULL,
    Step.ADOPTED: Shape.HALF,
    Step.REPLACED: Shape.FULL,
    Step.STALLED: Shape.WARN,
    Step.DEGRADED: Shape.WARN,
    Step.DRAINED: Shape.HALF,
    Step.STOPPED: Shape.RING,
    Step.DIED: Shape.CROSS,
    Step.FLAPPED: Shape.CROSS,
    Step.GAVE_UP: Shape.CROSS,
    "unclean_boot": Shape.CROSS,
    "escalated": Shape.WARN,
    "cache_purged": Shape.HALF,
    "reduced": Shape.WARN,
    "foreseen": Shape.HALF,
    "wanted_up": Shape.HALF,
    "wanted_down": Shape.RING,
}
"""The mark of each event that is told."""
UNTOLD = frozenset({Step.INTENDED, Step.SPAWNED, Step.ENDING})
"""Steps on the way to another, which tells enough."""


def story(happenings: Sequence[Happening]) -> list[Entry]:
    """Tell what happened to the services, newest first."""
    return [_entry(each) for each in reversed(happenings) if each.name not in UNTOLD]


def _entry(each: Happening) -> Entry:
    shape = MARKS.get(each.name, Shape.RING)
    return Entry(each.id, each.at, each.service or "", shape, telling.word(each.name), telling.text(each))
