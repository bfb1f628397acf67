"""One job in full: what it was asked, what happened, the last lines of what its worker and its service wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from state import event, job
from state.db import Database
from state.event import Event
from state.files import tail
from state.job import Job

TAIL_BYTES = 256 * 1024
"""How far back a log is searched."""
TAIL_LINES = 12


@dataclass(frozen=True)
class Detail:
    """One job."""

    job: Job
    events: Sequence[Event]
    log: Sequence[str]
    """Of the worker, about this job."""
    service_log: Sequence[str]
    """Of the service that it is about."""


def look(db: Database, number: int) -> Detail:
    """Read all there is of a job. Raises NotFound."""
    found = job.get(db, number)
    about = found.args.get("service")
    return Detail(
        job=found,
        events=event.of_job(db, number),
        log=[_spoken(line) for line in _last(db.home.log("worker"), f'"job": {number},')],
        service_log=_last(db.home.log(about)) if isinstance(about, str) and about.isidentifier() else [],
    )


def _last(log: Path, marked: str = "") -> list[str]:
    """Give the last lines of a log in which `marked` stands; none when there is no log."""
    return [line for line in tail(log, TAIL_BYTES).splitlines() if marked in line][-TAIL_LINES:]


def _spoken(line: str) -> str:
    """Write a line of the worker's JSON log as a person reads it."""
    try:
        said = json.loads(line)
    except ValueError:
        return line
    rest = "  ".join(f"{name}={value}" for name, value in said.items() if name not in UNSAID)
    return f"{said.get('timestamp', '')[11:19]}  {said.get('event', '')}  {rest}".rstrip()


UNSAID = frozenset({"timestamp", "event", "level", "job", "kind", "attempt"})
"""Keys that say what the reader sees already."""
