"""The story of the services: what happened to them, in order, and what each said last before it ended."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxq import render
from state import event, service, stack
from state.db import Database
from state.errors import MlxqError, NotFound, NotRunning
from state.event import Event
from state.files import tail
from state.ports import BESIDE
from state.service import ServiceEvent
from tasks.plan import gateway, page

ENDS = frozenset({ServiceEvent.EXITED, ServiceEvent.CRASH_LOOPED, ServiceEvent.FAILED})
"""Steps that a person wants the last lines of the log for."""
LINES = 3
READ_BYTES = 2**20
"""So much of a log is searched from its end, however long it is."""
WORDS: Mapping[str, str] = {
    ServiceEvent.STARTING: "starting",
    ServiceEvent.SPAWNED: "loading",
    ServiceEvent.ADOPTED: "adopted",
    ServiceEvent.BECAME_READY: "ready",
    ServiceEvent.REPLACED: "replaced",
    ServiceEvent.STALLED: "stalled",
    ServiceEvent.DEGRADED: "degraded",
    ServiceEvent.DRAIN_STARTED: "draining",
    ServiceEvent.STOPPING: "stopping",
    ServiceEvent.STOPPED: "stopped",
    ServiceEvent.EXITED: "exited",
    ServiceEvent.CRASH_LOOPED: "crash loop",
    ServiceEvent.FAILED: "failed",
    "unclean_boot": "unclean shutdown",
    "escalated": "escalated",
    "cache_purged": "prompt cache cleared",
    "safe_mode": "safe mode",
    "handover_started": "handover started",
    "start_requested": "start requested",
    "stop_requested": "stop requested",
}
"""What people read in place of an event's name; programs get the name."""
MEANINGS: Mapping[str, str] = {step.value: step.meaning for step in ServiceEvent} | {
    "start_requested": "requested by user",
    "stop_requested": "requested by user",
    "unclean_boot": "the machine went down while it was running",
    "escalated": "every tier is in a crash loop, so the gateway is restarted",
    "cache_purged": "was told to clear its prompt cache",
    "handover_started": "a replacement process is being tested",
    "safe_mode": "starts with a smaller cache from now on",
}

READY = "it serves"
"""What a service that makes no tokens is when it is ready."""


@dataclass(frozen=True)
class EventView:
    """One thing that happened to a service."""

    at: float
    """Unix seconds."""
    service: str
    what: str
    start: int | None
    """Which start of the service this is about, counted from 1."""
    text: str
    next_try_at: float | None
    last_lines: list[str]


def events(db: Database, name: str | None, *, limit: int) -> list[EventView]:
    """Give the newest chapters of one service, or of all, oldest first. Raises NotFound, NotRunning."""
    if name and service.find(db, name) is None:
        raise _unheard_of(db, name)
    return [_event_view(db, each) for each in event.of_service(db, name, limit=limit)]


def _unheard_of(db: Database, name: str) -> MlxqError:
    """Give the error for a service that has no story: it was never started, or there is no such thing."""
    tiers = {tier.name for tier in stack.tiers(db)}
    if name in tiers or (tiers and name in BESIDE):
        return NotRunning(f"{name} was never started, so nothing has happened to it.", hint="mlxq up")
    return NotFound(f"There is no service {name}.", hint="mlxq status")


def _event_view(db: Database, each: Event) -> EventView:
    name = each.service or ""
    ended = each.name in ENDS and each.attempt is not None
    return EventView(
        at=each.at,
        service=name,
        what=each.name,
        start=each.attempt,
        text=text(each),
        next_try_at=each.data.get("next_try_at"),
        last_lines=last_lines(db.home.log(name), each.attempt or 0) if ended else [],
    )


def word(name: str) -> str:
    """Give what people read in place of an event's name."""
    return WORDS.get(name, name.replace("_", " "))


def text(each: Event) -> str:
    """Say what happened, and how it came."""
    return READY if _serves(each) else sentence(each.name, each.data)


def _serves(each: Event) -> bool:
    """Tell whether this is a service without a model that became ready."""
    return each.name == ServiceEvent.BECAME_READY.value and each.service in {gateway.SERVICE, page.SERVICE}


def sentence(name: str, data: Mapping[str, Any]) -> str:
    """Say an event in words: its cause where it has one, and how the process ended."""
    from tasks.system import process

    told = str(data.get("cause") or MEANINGS.get(name, name))
    code = data.get("exit_code")
    ending = process.sentence(code) if code is not None else ""
    return told if ending.lower() in told.lower() else f"{told} ({ending})"


def last_lines(log: Path, start: int, count: int = LINES) -> list[str]:
    """Give the last lines that one start of a service wrote, from the last 1 MiB of its log; [] when they are gone."""
    from tasks.supervision.lifecycle import START_MARKER

    written = tail(log, READ_BYTES)
    found = re.search(rf"^{START_MARKER}.*, start {start}\n((?:(?!{START_MARKER}).*\n?)*)", written, re.MULTILINE)
    lines = [line for line in found[1].splitlines() if line.strip()] if found else []
    return lines[-count:]


def format_event(chapter: EventView) -> str:
    """Give a chapter's text as a person reads it, with the time of the next try."""
    if chapter.next_try_at is None:
        return chapter.text
    return f"{chapter.text} Next try at {render.clock(chapter.next_try_at)}."
