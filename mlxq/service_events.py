"""What happened to the services, as reason and message, and what each wrote last before it exited."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxq import render
from state import event, service, stack
from state.classes import dataclass
from state.db import Database
from state.errors import MlxqError, NotFound, NotRunning
from state.event import Event
from state.files import tail
from state.ports import BESIDE
from state.service import ServiceEvent
from tasks.front import plan as front
from tasks.plan import gateway, page

EXITS = frozenset({ServiceEvent.EXITED, ServiceEvent.CRASH_LOOPED, ServiceEvent.FAILED})
"""Events that are shown with the last lines of the log."""
PROBLEMS: Collection[str] = frozenset(
    {
        *EXITS,
        ServiceEvent.DISK_UNAVAILABLE,
        ServiceEvent.STALLED,
        ServiceEvent.DEGRADED,
        "unclean_boot",
        "escalated",
        "cache_purged",
        "safe_mode",
        "engine_changed",
        "engine_fault",
        "tuning_taken_back",
        "logged_out",
    }
)
"""Events of what went wrong, and of what mlxq did about it."""
NODE_EVENTS = ("node_lost", "node_returned")
VERSION_EVENTS = ("engine_refused", "engine_taken_back")
LINES = 3
READ_BYTES = 2**20
"""How much of a log is searched, from its end."""
MOST = 1000
"""How many of the newest events are searched for what went wrong."""
REASONS: Mapping[str, str] = {
    ServiceEvent.STARTING: "Starting",
    ServiceEvent.SPAWNED: "Process started",
    ServiceEvent.ADOPTED: "Adopted",
    ServiceEvent.BECAME_READY: "Ready",
    ServiceEvent.REPLACED: "Handover complete",
    ServiceEvent.STALLED: "No progress",
    ServiceEvent.DEGRADED: "Failing probes",
    ServiceEvent.DRAIN_STARTED: "Draining",
    ServiceEvent.STOPPING: "Stopping",
    ServiceEvent.STOPPED: "Stopped",
    ServiceEvent.EXITED: "Exited",
    ServiceEvent.DISK_UNAVAILABLE: "Disk unavailable",
    ServiceEvent.CRASH_LOOPED: "Crash loop",
    ServiceEvent.FAILED: "Failed",
    "unclean_boot": "Unclean shutdown",
    "escalated": "Escalated",
    "configuration_rewritten": "Configuration rewritten",
    "cache_purged": "Prompt cache cleared",
    "safe_mode": "Safe mode",
    "safe_mode_lifted": "Safe mode lifted",
    "logged_out": "Logged out",
    "engine_changed": "Engine changed",
    "engine_fault": "Engine failed",
    "engine_refused": "Not used",
    "engine_taken_back": "Taken back",
    "tuning_taken_back": "Tuning taken back",
    "idle": "Idle",
    "evicted": "Evicted",
    "handover_started": "Handover started",
    "node_lost": "Node away",
    "node_returned": "Node back",
    "start_requested": "Start requested",
    "stop_requested": "Stop requested",
}
"""What people read in place of an event's name; programs get both."""
MESSAGES: Mapping[str, str] = {
    ServiceEvent.STARTING: "the process is about to be started",
    ServiceEvent.SPAWNED: "loading",
    ServiceEvent.ADOPTED: "it was already running when the worker started",
    ServiceEvent.BECAME_READY: "produced a token",
    ServiceEvent.REPLACED: "no connection was dropped",
    ServiceEvent.STALLED: "it has requests and produces no tokens",
    ServiceEvent.DEGRADED: "it does not answer every probe",
    ServiceEvent.DRAIN_STARTED: "it gets no new requests; running ones may finish",
    ServiceEvent.STOPPING: "the process was told to exit",
    ServiceEvent.STOPPED: "by mlxq",
    ServiceEvent.EXITED: "unexpectedly; it will be restarted",
    ServiceEvent.DISK_UNAVAILABLE: "its weights cannot be read; it starts when they can",
    ServiceEvent.CRASH_LOOPED: "it keeps exiting; removed from routing and retried every five minutes",
    ServiceEvent.FAILED: "it needs attention: another start would fail the same way",
    "unclean_boot": "the machine went down while it was running",
    "configuration_rewritten": "it could not be read",
    "safe_mode_lifted": "it starts with its full cache again",
    "escalated": "every tier is in a crash loop, so the gateway is restarted",
    "cache_purged": "to free memory",
    "safe_mode": "it starts with a smaller cache from now on",
    "engine_changed": "another engine or version serves it from now on",
    "engine_fault": "its engine exits again and again with this model",
    "tuning_taken_back": "it serves without what made its answers faster",
    "logged_out": "it outlived the login session it was started in, and cannot compile GPU kernels any more; replaced",
    "idle": "it sleeps until it is asked for",
    "evicted": "another model needs its memory; it sleeps until it is asked for",
    "handover_started": "a replacement process is being tested",
    "node_lost": "it cannot be asked",
    "node_returned": "it answers again",
    "start_requested": "by user",
    "stop_requested": "by user",
}
"""The message of an event that recorded no cause; a message never restates its reason."""
SERVES = "it answers requests"
"""The message of a service that makes no tokens when it is ready."""


@dataclass(frozen=True)
class EventView:
    """One event of a service, as it is shown."""

    at: float
    """Unix seconds."""
    service: str
    event: str
    """The name that programs compare."""
    reason: str
    message: str
    start: int | None
    """Which start of the service this is about, counted from 1."""
    next_try_at: float | None
    """Unix seconds of the next start, where one was planned."""
    last_lines: list[str]
    """What the process wrote last, where it exited."""


def events(db: Database, name: str | None, *, limit: int, everything: bool = True) -> list[EventView]:
    """Return the newest events of one service, or of all, oldest first. Raises NotFound, NotRunning.

    `everything`: not only what went wrong, restarts, and the last change of each service.
    """
    if name and service.find(db, name) is None:
        raise _unknown(db, name)
    recorded = event.of_service(db, name, limit=limit if everything else MOST)
    return [_view(db, event) for event in (recorded if everything else _notable(recorded)[-limit:])]


def of_nodes(db: Database, name: str | None, *, limit: int) -> list[EventView]:
    """Return the newest outages of a node of the fleet, or of all, and their ends, oldest first."""
    recorded = event.of_names(db, NODE_EVENTS, limit=MOST)
    return [
        EventView(entry.at, subject, entry.name, reason(entry.name), text(entry), None, None, [])
        for entry in recorded
        if (subject := str(entry.data.get("subject"))) == name or name is None
    ][-limit:]


def of_engine_versions(db: Database, *, limit: int) -> list[EventView]:
    """Return the newest versions of engines that were not taken into use, or not for long, and why, oldest first."""
    recorded = event.of_names(db, VERSION_EVENTS, limit=limit)
    return [
        EventView(entry.at, str(entry.data.get("engine")), entry.name, reason(entry.name), message, None, None, [])
        for entry in recorded
        if (message := f"{entry.data.get('version')}: {text(entry)}")
    ]


def _notable(recorded: Sequence[Event]) -> list[Event]:
    """Return exits, failures, restarts and the last change of each service, in their order."""
    last = {event.service: event.id for event in recorded}
    return [event for event in recorded if _is_notable(event) or event.id == last[event.service]]


def _is_notable(event: Event) -> bool:
    """Return whether an event tells of a problem, or of a service that serves again after its first start."""
    return event.name in PROBLEMS or (event.name == ServiceEvent.BECAME_READY.value and (event.attempt or 0) > 1)


def _unknown(db: Database, name: str) -> MlxqError:
    """Return the error for a service without events: it was never started, or it does not exist."""
    tiers = {tier.name for tier in stack.tiers(db)}
    if name in tiers or (tiers and name in BESIDE):
        return NotRunning(f"{name} was never started, so nothing has happened to it.", hint="mlxq up")
    return NotFound(f"There is no service {name}.", hint="mlxq status")


def _view(db: Database, event: Event) -> EventView:
    name = event.service or ""
    exited = event.name in EXITS and event.attempt is not None
    return EventView(
        at=event.at,
        service=name,
        event=event.name,
        reason=reason(event.name),
        message=text(event),
        start=event.attempt,
        next_try_at=event.data.get("next_try_at"),
        last_lines=last_lines(db.home.log(name), event.attempt or 0) if exited else [],
    )


def reason(name: str) -> str:
    """Return what people read in place of an event's name."""
    return REASONS.get(name, name.replace("_", " ").capitalize())


def text(event: Event) -> str:
    """Return the message of an event."""
    return SERVES if _serves(event) else sentence(event.name, event.data)


def _serves(event: Event) -> bool:
    """Return whether this is a service without a model that became ready."""
    return event.name == ServiceEvent.BECAME_READY.value and event.service in {
        gateway.SERVICE,
        page.SERVICE,
        front.SERVICE,
    }


def sentence(name: str, data: Mapping[str, Any]) -> str:
    """Return an event's message: its cause where it has one, and how the process ended."""
    from tasks.system import process

    message = str(data.get("cause") or MESSAGES.get(name, name))
    code = data.get("exit_code")
    ending = process.sentence(code) if code is not None else ""
    return message if ending.lower() in message.lower() else f"{message} ({ending})"


def last_lines(log: Path, start: int, count: int = LINES) -> list[str]:
    """Return the last lines that one start of a service wrote, from the last 1 MiB of its log; [] if they are gone."""
    from tasks.supervision.lifecycle import START_MARKER

    written = tail(log, READ_BYTES)
    section = re.search(rf"^{START_MARKER}.*, start {start}\n((?:(?!{START_MARKER}).*\n?)*)", written, re.MULTILINE)
    lines = [line for line in section[1].splitlines() if line.strip()] if section else []
    return lines[-count:]


def format_event(view: EventView) -> str:
    """Return an event's message as a user reads it, with the time of the next start."""
    if view.next_try_at is None:
        return view.message
    return f"{view.message} Next try at {render.clock(view.next_try_at)}."
