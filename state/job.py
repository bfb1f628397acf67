"""Jobs: their states, the steps between them, and how they are read. state/ledger.py makes the steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, Literal

from state.classes import DocumentedEnum, dataclass
from state.db import Database, Row, json_mapping, known_columns
from state.errors import NotFound

Source = Literal["person", "chain", "watchdog"]
Request = Literal["up", "down", "restart", "purge"]
"""What a job asks for its service; "purge" is a restart that also deletes the prompts that its engine keeps on disk."""


class JobState(DocumentedEnum):
    """Where a job stands; `meaning` is the sentence for people."""

    BLOCKED = "blocked", "waits for the jobs it needs"
    QUEUED = "queued", "waits for a worker, or for its time"
    RUNNING = "running", "running on a worker"
    SUCCEEDED = "succeeded", "done; its result is kept"
    FAILED = "failed", "ended with an error"
    CANCELLED = "cancelled", "stopped on request, or because a job it needs did not succeed"


LARGEST_ID = 2**63 - 1
"""SQLite's largest integer; the sqlite3 module takes none beyond it."""
LIVE = frozenset({JobState.BLOCKED, JobState.QUEUED, JobState.RUNNING})
ENDED = frozenset(JobState) - LIVE


class JobEvent(DocumentedEnum):
    """What can happen to a job; `meaning` is the sentence for people."""

    UNBLOCKED = "unblocked", "every job it needs has ended well"
    CLAIMED = "claimed", "a worker took it"
    SUCCEEDED = "succeeded", "its task returned"
    RETRIED = "retried", "its task failed and may try again"
    SNOOZED = "snoozed", "its task asked to be run later"
    RELEASED = "released", "the worker stopped and gave it back"
    REPEATED = "repeated", "requested again while it ran; it runs once more"
    RESCUED = "rescued", "its worker died; it runs again"
    FAILED = "failed", "its task failed for good"
    LOST = "lost", "its worker died too often"
    CANCELLED = "cancelled", "cancelled by the user, or because a job it needs did not succeed"
    REVIVED = "revived", "retried by the user, or because a job it needs was"


TRANSITIONS: Mapping[JobEvent, tuple[frozenset[JobState], JobState]] = {
    JobEvent.UNBLOCKED: (frozenset({JobState.BLOCKED}), JobState.QUEUED),
    JobEvent.CLAIMED: (frozenset({JobState.QUEUED}), JobState.RUNNING),
    JobEvent.SUCCEEDED: (frozenset({JobState.RUNNING}), JobState.SUCCEEDED),
    JobEvent.RETRIED: (frozenset({JobState.RUNNING}), JobState.QUEUED),
    JobEvent.SNOOZED: (frozenset({JobState.RUNNING}), JobState.QUEUED),
    JobEvent.RELEASED: (frozenset({JobState.RUNNING}), JobState.QUEUED),
    JobEvent.REPEATED: (frozenset({JobState.RUNNING}), JobState.QUEUED),
    JobEvent.RESCUED: (frozenset({JobState.RUNNING}), JobState.QUEUED),
    JobEvent.FAILED: (frozenset({JobState.RUNNING}), JobState.FAILED),
    JobEvent.LOST: (frozenset({JobState.RUNNING}), JobState.FAILED),
    JobEvent.CANCELLED: (LIVE, JobState.CANCELLED),
    JobEvent.REVIVED: (frozenset({JobState.FAILED, JobState.CANCELLED}), JobState.BLOCKED),
}
"""The whole machine: a step leads from these states to that one. docs/states.md is made from it."""


def transition(now: JobState, step: JobEvent) -> JobState:
    """Return the state after `step`. Raises ValueError when the step is not allowed from here."""
    sources, target = TRANSITIONS[step]
    if now not in sources:
        raise ValueError(f"a {now} job cannot be {step}")
    return target


@dataclass(frozen=True)
class NewJob:
    """A job to enqueue: a task's kind, its arguments, and what it needs first."""

    kind: str
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    queue: str = "ops"
    priority: int = 0
    unique_key: str | None = None
    """Asking again attaches to the live job that has it, unless that one waits for more than the new one would."""
    max_attempts: int = 1
    needs: Sequence[str | int] = ()
    """Labels within the same batch, or ids: all must succeed first."""
    after: Sequence[str | int] = ()
    """Jobs that must have ended before, however they ended."""
    label: str = ""
    """What others of the batch call it; the kind when empty."""
    wait_s: float = 0.0
    service: str | None = None
    """The service that it starts or stops. One job at a time runs for a service."""
    request: Request | None = None
    """What it asks for that service; recorded as the job is enqueued (state/desired.py)."""
    repeats: bool = False
    """Whether it runs once more when the same is enqueued while it runs: it may have read what has changed since."""


@dataclass(frozen=True)
class Claim:
    """The right to run a job, and to write to its row."""

    id: int
    kind: str
    args: dict[str, Any]
    attempt: int
    owner: str
    failures: int
    max_attempts: int
    seq: int = 0
    """Number of the request that led to it, as state/desired.py counts; 0 where the watchdog enqueued it."""


@dataclass(frozen=True)
class Job:
    """One row, as people and commands see it."""

    id: int
    kind: str
    args: dict[str, Any]
    queue: str
    priority: int
    unique_key: str | None
    chain: int
    source: str
    state: JobState
    attempt: int
    failures: int
    max_attempts: int
    rescues: int
    run_at: float
    wait_s: float
    owner: str | None
    beat_at: float | None
    cancel_at: float | None
    phase: str | None
    progress: dict[str, Any]
    result: Any
    error_code: str | None
    error: str | None
    hint: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    needs: tuple[int, ...] = ()

    @property
    def words(self) -> str:
        """Its kind, a name in the database, as people read it: `smoke test`."""
        return self.kind.replace("_", " ")

    @property
    def live(self) -> bool:
        """Whether it has not ended yet."""
        return self.state in LIVE


AFTER = " after "
"""Between the unique key of a job that waits and the jobs that it waits for."""


def base_key(unique_key: str | None) -> str | None:
    """Return a unique key without the jobs that its job waits for."""
    return None if unique_key is None else unique_key.partition(AFTER)[0]


class Fenced(Exception):
    """This worker lost the claim; what it did meanwhile must not be written."""


def get(db: Database, job: int) -> Job:
    """Return one job. Raises NotFound."""
    row = db.row("SELECT * FROM jobs WHERE id = ?", (job,)) if job <= LARGEST_ID else None
    if row is None:
        raise NotFound(f"There is no job {job}.", hint="mlxq jobs")
    return _job(db, row)


def of_chain(db: Database, chain: int) -> list[Job]:
    """Return a chain's jobs in the order they were enqueued."""
    return [_job(db, row) for row in db.rows("SELECT * FROM jobs WHERE chain = ? ORDER BY id", (chain,))]


def listing(
    db: Database,
    *,
    state: str | None = None,
    kind: str | None = None,
    chain: int | None = None,
    limit: int = 30,
) -> list[Job]:
    """Return jobs, live ones first, then the newest."""
    rows = db.rows(
        "SELECT * FROM jobs WHERE (:state IS NULL OR state = :state) AND (:kind IS NULL OR kind = :kind)"
        " AND (:chain IS NULL OR chain = :chain)"
        " ORDER BY state IN ('succeeded', 'failed', 'cancelled'), id DESC LIMIT :limit",
        {"state": state, "kind": kind, "chain": chain, "limit": limit},
    )
    return [_job(db, row) for row in rows]


def dependents(db: Database, job: int) -> list[int]:
    """Return the ids of the jobs that need this one."""
    return [row["job"] for row in db.rows("SELECT job FROM job_deps WHERE needs = ? ORDER BY job", (job,))]


def cancel_asked(db: Database, claim: Claim) -> bool:
    """Return whether a running job was asked to stop. Raises Fenced when the claim is lost."""
    row = db.row(
        "SELECT cancel_at FROM jobs WHERE id = ? AND attempt = ? AND owner = ? AND state = 'running'",
        (claim.id, claim.attempt, claim.owner),
    )
    if row is None:
        raise Fenced
    return row["cancel_at"] is not None


def _job(db: Database, row: Row) -> Job:
    values = known_columns(row, Job, without="needs")
    values["unique_key"] = base_key(values["unique_key"])
    values["args"] = json_mapping(values["args"])
    values["state"] = JobState(values["state"])
    values["progress"] = json_mapping(values["progress"])
    values["result"] = json.loads(values["result"]) if values["result"] else None
    needs = db.rows("SELECT needs FROM job_deps WHERE job = ? ORDER BY needs", (values["id"],))
    return Job(**values, needs=tuple(need["needs"] for need in needs))
