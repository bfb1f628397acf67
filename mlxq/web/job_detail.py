"""The details of one job: its events, and the last lines of the worker's and the service's logs."""

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
"""Bytes of the log that are searched."""
TAIL_LINES = 12


@dataclass(frozen=True)
class Detail:
    """A job with its events and logs."""

    job: Job
    events: Sequence[Event]
    log: Sequence[str]
    """Lines of the worker's log about this job."""
    service_log: Sequence[str]
    """Last lines of the log of the job's service."""


def read(db: Database, number: int) -> Detail:
    """Return the details of a job. Raises NotFound."""
    row = job.get(db, number)
    service = row.args.get("service")
    return Detail(
        job=row,
        events=event.of_job(db, number),
        log=[_formatted(line) for line in _last(db.home.log("worker"), f'"job": {number},')],
        service_log=_last(db.home.log(service)) if isinstance(service, str) and service.isidentifier() else [],
    )


def _last(log: Path, marked: str = "") -> list[str]:
    """Return the last lines of a log that contain `marked`; empty if there is no log."""
    return [line for line in tail(log, TAIL_BYTES).splitlines() if marked in line][-TAIL_LINES:]


def _formatted(line: str) -> str:
    """Format a line of the worker's JSON log for people."""
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    rest = "  ".join(f"{name}={value}" for name, value in entry.items() if name not in OMITTED)
    return f"{entry.get('timestamp', '')[11:19]}  {entry.get('event', '')}  {rest}".rstrip()


OMITTED = frozenset({"timestamp", "event", "level", "job", "kind", "attempt"})
"""Keys that the page shows elsewhere."""
