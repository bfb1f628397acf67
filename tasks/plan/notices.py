"""Which changes are reported, and what a message says. Pure: events in, notices out.

A change is reported once: a tier in a crash loop that is tried every five minutes makes one message, and one more when
it serves again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from state.event import Event
from state.notify.notices import Notice, Severity
from state.service import ServiceEvent

BY_USER = "rolled back by the user"
"""The reason of a rollback that is no news to the user."""
MOST_LINES = 20
"""Changes that a message names; the others are counted."""
LONGEST_LINE = 400
DISK_SHORT_BYTES = 5 * 10**9
"""Free bytes below which a disk is short: the logs, the database and an upgrade of an engine need that."""
DISK_FINE_BYTES = 8 * 10**9
"""Free bytes from which it no longer is; between the two, what was reported last holds."""
RANK: Mapping[Severity, int] = {"ok": 0, "warning": 1, "error": 2}
MINUTES_OF_DAY = 24 * 60

PROBLEMS: Mapping[str, tuple[str, Severity, str]] = {
    ServiceEvent.CRASH_LOOPED: ("crash_loop", "error", "{subject} is in a crash loop"),
    ServiceEvent.FAILED: ("needs_attention", "error", "{subject} needs attention"),
    ServiceEvent.DISK_UNAVAILABLE: ("disk_unavailable", "error", "{subject} waits for the disk of its weights"),
    "disk_short": ("disk_short", "warning", "The disk of {subject} is nearly full"),
    "node_lost": ("node_lost", "error", "The node {subject} cannot be asked"),
}
"""Event -> the problem that begins with it, how bad it is, what is said; each is over some time."""
OVER: Mapping[str, tuple[str, str]] = {
    ServiceEvent.BECAME_READY: ("healthy", "{subject} is healthy again"),
    ServiceEvent.REPLACED: ("healthy", "{subject} is healthy again"),
    "disk_freed": ("disk_freed", "The disk of {subject} has room again"),
    "node_returned": ("node_returned", "The node {subject} answers again"),
}
"""Event -> what is said when a problem is over."""
SINGLE: Mapping[str, tuple[str, Severity, str]] = {
    "unclean_boot": ("unclean_boot", "error", "The machine was not shut down cleanly"),
    "cloud_cap_reached": ("cloud_cap_reached", "warning", "The cloud's cap for today is reached"),
    "engine_taken_back": ("engine_rolled_back", "warning", "{subject} was rolled back"),
    "upgrade_taken_back": ("upgrade_rolled_back", "error", "{subject} was rolled back"),
    "mlxq_newer": ("mlxq_newer", "ok", "{subject} can be installed"),
    "engine_newer": ("engine_newer", "ok", "{subject} can be installed"),
    "schedule_failed": ("schedule_failed", "error", "The scheduled job {subject} failed"),
}
"""Event -> its name for programs, how bad it is, what is said; each is news every time."""
STOPPED_BY_USER = "stop_requested"
WATCHED = frozenset({*PROBLEMS, *OVER, *SINGLE, STOPPED_BY_USER})
"""The events that can be a change."""


def decide(
    events: Iterable[Event], problems: Mapping[str, str], tiers: Mapping[str, Sequence[str]]
) -> tuple[list[Notice], dict[str, str]]:
    """Return what is to be reported of these events, and the problems that are not over then.

    `problems`: subject -> problem, as reported so far. `tiers`: service -> the tiers that it serves.
    """
    notices: list[Notice] = []
    current = dict(problems)
    for event in events:
        subject = _subject(event)
        if event.name == STOPPED_BY_USER:
            current.pop(subject, None)
        elif event.name in PROBLEMS:
            name, severity, sentence = PROBLEMS[event.name]
            if current.get(subject) != name:
                notices.append(_notice(event, name, severity, sentence, tiers))
            current[subject] = name
        elif event.name in OVER and current.pop(subject, None):
            notices.append(_notice(event, OVER[event.name][0], "ok", OVER[event.name][1], tiers))
        elif event.name in SINGLE and event.data.get("cause") != BY_USER:
            notices.append(_notice(event, *SINGLE[event.name], tiers))
    return notices, current


def _subject(event: Event) -> str:
    """Return what an event is about; an engine's version and a folder are in its data."""
    data = event.data
    version = f"{data.get('engine')} {data.get('version')}" if data.get("engine") else ""
    return event.service or str(data.get("subject") or version)


def _notice(event: Event, name: str, severity: Severity, sentence: str, tiers: Mapping[str, Sequence[str]]) -> Notice:
    subject = _subject(event)
    names = [tier for tier in tiers.get(subject, ()) if tier != subject]
    text = sentence.format(subject=f"{subject} (also {', '.join(names)})" if names else subject)
    cause = str(event.data.get("cause") or "").strip()
    message = f"{text}: {cause}" if cause and severity != "ok" else text
    return Notice(event.at, name, subject, severity, _brief(message))


def _brief(message: str) -> str:
    line = " ".join(message.split())
    line = line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"
    return line if line.endswith((".", "…")) else f"{line}."


@dataclass(frozen=True)
class Notification:
    """One message: the changes since the last one."""

    id: str
    """The same at every try, so that a receiver can drop what it got twice."""
    at: float
    """Unix seconds."""
    host: str
    severity: Severity
    title: str
    text: str
    notices: Sequence[Notice] = ()

    def document(self) -> dict[str, Any]:
        """Return what a webhook and a command get as JSON. `text` is what Slack and Mattermost show."""
        changes = [
            {
                "id": notice.id,
                "at": _utc(notice.at),
                "event": notice.event,
                "subject": notice.subject,
                "severity": notice.severity,
                "message": notice.message,
            }
            for notice in self.notices
        ]
        return {
            "schema_version": 1,
            "id": self.id,
            "at": _utc(self.at),
            "host": self.host,
            "severity": self.severity,
            "title": self.title,
            "text": f"{self.title}\n{self.text}",
            "events": changes,
        }


def _utc(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def compose(
    notices: Sequence[Notice], host: str, now: float, local: Callable[[float], time.struct_time] = time.localtime
) -> Notification:
    """Return one message about these changes, oldest first. `now` in unix seconds; times are shown in local time."""
    shown = notices[-MOST_LINES:]
    lines = [f"{time.strftime('%H:%M', local(notice.at))} {notice.message}" for notice in shown]
    if len(notices) > len(shown):
        lines.insert(0, f"{len(notices) - len(shown)} earlier changes are not shown; see mlxq why.")
    title = notices[0].message.partition(":")[0].rstrip(".") if len(notices) == 1 else f"{len(notices)} changes"
    severity = max(notices, key=lambda notice: RANK[notice.severity]).severity
    identifier = f"msg_{notices[0].id}_{notices[-1].id}_{notices[-1].at:.0f}"
    return Notification(identifier, now, host, severity, f"mlxq on {host}: {title}", "\n".join(lines), shown)


def trial(target: str, host: str, now: float) -> Notification:
    """Return the message of `mlxq notify test`."""
    text = f"This is a test of the target {target}."
    notice = Notice(now, "test", target, "ok", text)
    return Notification(f"msg_test_{now:.0f}", now, host, "ok", f"mlxq on {host}: test", text, [notice])


def quiet_left_s(text: str, hour: int, minute: int) -> int:
    """Return the seconds until quiet hours end, 0 outside of them.

    `text`: the setting, such as 22:00-07:00, or empty; `hour`:`minute` is now.
    """
    if not text:
        return 0
    begin, end = (60 * int(clock[:2]) + int(clock[3:]) for clock in text.split("-"))
    since = (60 * hour + minute - begin) % MINUTES_OF_DAY
    length = (end - begin) % MINUTES_OF_DAY
    return 60 * (length - since) if since < length else 0


def disk_event(free_bytes: int, *, short: bool) -> str | None:
    """Return the event of a disk with that much room: disk_short, disk_freed, or None. `short`: as reported last."""
    if not short and free_bytes < DISK_SHORT_BYTES:
        return "disk_short"
    return "disk_freed" if short and free_bytes >= DISK_FINE_BYTES else None


def serves(desired_states: Sequence[str], routed: frozenset[Any]) -> bool:
    """Return whether everything that should run serves; also where nothing should run."""
    return all(state in routed for state in desired_states)
