"""The ledger: the one transaction that makes each step of a job.

A job's state changes by `UPDATE ... WHERE state IN (the step's sources)` with one row hit, in the same transaction as
its event and everything that follows from it (children unblocked, descendants cancelled). Nothing reads first
and acts later. `attempt` grows with every claim and fences: a worker that lost the claim can write nothing more.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from state import event
from state.db import Database, Row, atomic
from state.errors import Busy, MlxqError, Upstream, WorkerLost
from state.job import (
    ENDED,
    TRANSITIONS,
    Claim,
    Fenced,
    JobEvent,
    JobState,
    NewJob,
    Source,
    cancel_asked,
    dependents,
    get,
)

MAX_RESCUES = 3
"""A job that kills its worker this often is given up, so that it cannot kill it for ever."""
HARMLESS_S = 600.0
"""Who ran this long before the worker died did not kill it: a pull of a day may outlive any number of power cuts."""
CLOCK_SLACK_S = 1.0
NO_ERROR: dict[str, Any] = dict.fromkeys(("error_code", "error", "hint"))
RUNNABLE: Mapping[str, Any] = NO_ERROR | {"cancel_at": None, "finished_at": None, "failures": 0, "rescues": 0}
WAITING = "state = 'queued' AND queue = :queue AND kind IN (SELECT value FROM json_each(:kinds)) AND json_valid(args)"
BROKEN_NEED = """
SELECT needs FROM job_deps JOIN jobs ON jobs.id = needs
WHERE job = ? AND NOT soft AND jobs.state IN ('failed', 'cancelled')
"""


# ---------------------------------------------------------------- putting jobs in


def enqueue(db: Database, new: NewJob, *, source: Source = "person") -> tuple[int, bool]:
    """Enqueue one job; return its id, and whether it is new (False: attached to a live job with its unique_key)."""
    ids = enqueue_all(db, [new], source=source)
    return ids[new.label or new.kind]


@atomic
def enqueue_all(
    db: Database, batch: Sequence[NewJob], *, source: Source = "person", chain: int | None = None
) -> dict[str, tuple[int, bool]]:
    """Enqueue a batch in one transaction; return each label's id, and whether it is new.

    Without `chain` the first new job's id names the chain.
    """
    ids: dict[str, tuple[int, bool]] = {}
    for new in batch:
        job = _live_with(db, new.unique_key)
        if job is not None:
            ids[new.label or new.kind] = (job, False)
            _hurry(db, job, source)
        else:
            job = _insert(db, new, source, chain, {label: pair[0] for label, pair in ids.items()})
            ids[new.label or new.kind] = (job, True)
            chain = chain or job
    db.wake()
    return ids


def _hurry(db: Database, job: int, source: Source) -> None:
    """Make a job in backoff due now, because the user asked for it again."""
    if source == "person":
        db.run("UPDATE jobs SET run_at = ?, wait_s = 0 WHERE id = ? AND state = 'queued'", (db.now(), job))


def _live_with(db: Database, unique_key: str | None) -> int | None:
    if unique_key is None:
        return None
    return db.value(
        "SELECT id FROM jobs WHERE unique_key = ? AND state IN ('blocked', 'queued', 'running')", (unique_key,)
    )


def _insert(db: Database, new: NewJob, source: Source, chain: int | None, ids: Mapping[str, int]) -> int:
    """Write the row, its needs and its first event."""
    needs = [*((need, 0) for need in _ids(new.needs, ids)), *((need, 1) for need in _ids(new.after, ids))]
    now = db.now()
    job = db.insert(
        "jobs",
        {
            "kind": new.kind,
            "args": json.dumps(dict(new.args)),
            "queue": new.queue,
            "priority": new.priority,
            "unique_key": new.unique_key,
            "chain": chain or 0,
            "source": source,
            "state": JobState.BLOCKED if needs else JobState.QUEUED,
            "max_attempts": new.max_attempts,
            "run_at": now + new.wait_s,
            "wait_s": new.wait_s,
            "created_at": now,
        },
    )
    if chain is None:
        db.run("UPDATE jobs SET chain = id WHERE id = ?", (job,))
    for need, soft in needs:
        db.insert("job_deps", {"job": job, "needs": need, "soft": soft})
    event.record(db, "created", job=job)
    if needs:
        _settle_new(db, job)
    return job


def _ids(needs: Sequence[int | str], ids: Mapping[str, int]) -> list[int | str]:
    """Return jobs by their ids, those of the same batch by what they are `ids` as."""
    return [ids.get(need, need) if isinstance(need, str) else need for need in needs]


def _settle_new(db: Database, job: int) -> None:
    """Unblock or cancel, at once, a job that is born after what it needs has ended."""
    broken = db.value(BROKEN_NEED, (job,))
    if broken is not None:
        _cancel_below(db, broken)
    else:
        _unblock(db, job)


# ---------------------------------------------------------------- the worker's steps


def claim(db: Database, queue: str, kinds: Collection[str], owner: str) -> Claim | None:
    """Take the next job of this queue whose kind is known and whose time has come."""
    if _due(db, queue, kinds) is None:
        return None  # an idle look takes no write lock
    return _claim(db, queue, kinds, owner)


@atomic
def _claim(db: Database, queue: str, kinds: Collection[str], owner: str) -> Claim | None:
    job = _due(db, queue, kinds)
    if job is None:
        return None
    now = db.now()
    row = _step(db, job, JobEvent.CLAIMED, started_at=now, owner=owner, beat_at=now, phase=None, progress=None)
    db.announce()
    return _held(row)


def _due(db: Database, queue: str, kinds: Collection[str]) -> int | None:
    """Return the job to take next. One whose wait would begin in the future is due too: the wall clock was set back."""
    return db.value(
        f"SELECT id FROM jobs WHERE {WAITING}"  # noqa: S608 (the text above)
        " AND (run_at <= :now OR run_at - wait_s > :now + :slack) ORDER BY priority DESC, id LIMIT 1",
        _waiting(queue, kinds) | {"now": db.now(), "slack": CLOCK_SLACK_S},
    )


def next_due(db: Database, queue: str, kinds: Collection[str]) -> float | None:
    """Return the seconds until the next job of this queue and these kinds is due, or None when none waits."""
    at = db.value(f"SELECT min(run_at) FROM jobs WHERE {WAITING}", _waiting(queue, kinds))  # noqa: S608 (the text above)
    return None if at is None else max(0.0, at - db.now())


def _waiting(queue: str, kinds: Collection[str]) -> dict[str, Any]:
    return {"queue": queue, "kinds": json.dumps(sorted(kinds))}


def _held(row: Row) -> Claim:
    return Claim(
        id=row["id"],
        kind=row["kind"],
        args=json.loads(row["args"]),
        attempt=row["attempt"],
        owner=row["owner"],
        failures=row["failures"],
        max_attempts=row["max_attempts"],
    )


@atomic
def succeed(db: Database, claim: Claim, result: Any, fan_out: Sequence[NewJob] = ()) -> None:
    """Record a success: keep the result, enqueue follow-up jobs, unblock dependents. Raises Fenced."""
    columns = NO_ERROR | {"result": json.dumps(result), "finished_at": db.now(), "owner": None}
    row = _step(db, claim.id, JobEvent.SUCCEEDED, claim, **columns)
    if fan_out:
        enqueue_all(db, fan_out, source="chain", chain=row["chain"])
    _after(db, claim.id)


@atomic
def fail(db: Database, claim: Claim, problem: MlxqError) -> None:
    """Record a failure and cancel the jobs that need this one. Raises Fenced."""
    _step(db, claim.id, JobEvent.FAILED, claim, owner=None, finished_at=db.now(), **_error(problem))
    _after(db, claim.id)


@atomic
def retry_later(db: Database, claim: Claim, problem: MlxqError, wait_s: float) -> None:
    """Put a failed job back for another try in `wait_s` seconds. Raises Fenced."""
    columns = _wait(db, wait_s) | _error(problem) | {"failures": claim.failures + 1}
    _put_back(db, claim, JobEvent.RETRIED, **columns)


@atomic
def snooze(db: Database, claim: Claim, wait_s: float, reason: str) -> None:
    """Put a job back for later; no failure is counted. Raises Fenced."""
    _put_back(db, claim, JobEvent.SNOOZED, phase=reason, **_wait(db, wait_s))


@atomic
def release(db: Database, claim: Claim) -> None:
    """Requeue a running job because the worker stops. Raises Fenced."""
    _put_back(db, claim, JobEvent.RELEASED, **_wait(db, 0.0))


def _put_back(db: Database, claim: Claim, step: JobEvent, **columns: Any) -> None:
    """Queue a running job again, or end it here when its cancel was requested: no later step would."""
    if cancel_asked(db, claim):
        end_cancelled(db, claim)
    else:
        _step(db, claim.id, step, claim, owner=None, **columns)
        db.wake()


@atomic
def end_cancelled(db: Database, claim: Claim) -> None:
    """Record that a running job was cancelled as requested. Raises Fenced."""
    _step(db, claim.id, JobEvent.CANCELLED, claim, owner=None, finished_at=db.now())
    _after(db, claim.id)


@atomic
def report(db: Database, claim: Claim, phase: str, progress: Mapping[str, Any]) -> None:
    """Write how far a job is. Raises Fenced."""
    hit = db.run(
        "UPDATE jobs SET phase = ?, progress = ?, beat_at = ?"
        " WHERE id = ? AND attempt = ? AND owner = ? AND state = 'running'",
        (phase, json.dumps(dict(progress)), db.now(), claim.id, claim.attempt, claim.owner),
    )
    if not hit:
        raise Fenced
    db.announce()


def running(db: Database) -> list[Claim]:
    """Return every live claim."""
    return [_held(row) for row in db.rows("SELECT * FROM jobs WHERE state = 'running' ORDER BY id")]


def rescue(db: Database, lost: Iterable[Claim]) -> list[int]:
    """Requeue the jobs whose worker is dead, and return their ids.

    The caller knows by the owner's identity who is dead; a lease would run out while a Mac sleeps.
    """
    rescued: list[int] = []
    for claim in lost:
        with suppress(Fenced):  # it ended meanwhile
            _rescue(db, claim)
            rescued.append(claim.id)
    return rescued


@atomic
def _rescue(db: Database, claim: Claim) -> None:
    if cancel_asked(db, claim):
        end_cancelled(db, claim)
        return
    rescues = _rescues(db, claim.id)
    if rescues >= MAX_RESCUES:
        problem = WorkerLost(f"The worker died {rescues + 1} times while it ran job {claim.id}.", hint="mlxq doctor")
        _step(db, claim.id, JobEvent.LOST, claim, owner=None, finished_at=db.now(), **_error(problem))
        _after(db, claim.id)
    else:
        wait_s = 0.0 if rescues == 0 else 2.0**rescues
        _step(db, claim.id, JobEvent.RESCUED, claim, owner=None, rescues=rescues + 1, **_wait(db, wait_s))
        db.wake()


def _rescues(db: Database, job: int) -> int:
    """Return how often the job was rescued in a row, which is what it may have killed."""
    row = get(db, job)
    ran_s = (row.beat_at or 0.0) - (row.started_at or 0.0)
    return 0 if ran_s > HARMLESS_S else row.rescues


# ---------------------------------------------------------------- the user's steps


@atomic
def cancel(db: Database, job: int) -> JobState:
    """Ask a job to stop: a waiting one is cancelled at once, a running one is asked to. Returns its state now.

    Raises NotFound, Busy when it has ended already.
    """
    now = get(db, job).state
    if now in ENDED:
        raise Busy(f"Job {job} has already {_ended_word(now)}.", hint=f"mlxq jobs show {job}")
    if now is JobState.RUNNING:
        db.run("UPDATE jobs SET cancel_at = ? WHERE id = ?", (db.now(), job))
        event.record(db, "cancel_requested", job=job)
        db.wake()
        return now
    _step(db, job, JobEvent.CANCELLED, finished_at=db.now())
    _after(db, job)
    return JobState.CANCELLED


@atomic
def revive(db: Database, job: int) -> list[int]:
    """Requeue a failed or cancelled job and the jobs that its end cancelled; return their ids.

    Raises NotFound, Busy (it has not ended, or the same is already being done), Upstream (a job it needs must be
    revived first).
    """
    row = get(db, job)
    if row.state not in (JobState.FAILED, JobState.CANCELLED):
        raise Busy(f"Job {job} is {row.state}; only a failed or cancelled one can be tried again.")
    broken = db.value(BROKEN_NEED, (job,))
    if broken is not None:
        raise Upstream(f"Job {job} needs job {broken}, which did not succeed.", hint=f"mlxq jobs retry {broken}")
    _refuse_twin(db, job)
    _step(db, job, JobEvent.REVIVED, **RUNNABLE)
    revived = [job, *(descendant for descendant in _hard_below(db, job) if _revive_below(db, descendant))]
    for revived_id in revived:
        _unblock(db, revived_id)
    db.wake()
    return revived


def _revive_below(db: Database, job: int) -> bool:
    """Bring back what an upstream end cancelled, unless another job it needs is still broken.

    Needs have lower ids than what needs them, so in the order of ids every need has been seen before.
    """
    code = db.value("SELECT error_code FROM jobs WHERE id = ? AND state = 'cancelled'", (job,))
    if code != Upstream.code or db.value(BROKEN_NEED, (job,)) is not None:
        return False
    _refuse_twin(db, job)
    _step(db, job, JobEvent.REVIVED, **RUNNABLE)
    return True


def _refuse_twin(db: Database, job: int) -> None:
    twin = _live_with(db, get(db, job).unique_key)
    if twin is not None:
        raise Busy(f"The same as job {job} is already being done by job {twin}.", hint=f"mlxq jobs watch {twin}")


@atomic
def prune(db: Database, *, older_than_s: float = 30 * 86400.0, keep: int = 2000) -> int:
    """Forget ended jobs that are both old and beyond the newest `keep`, with their events; return how many.

    A chain with a live job is kept whole. Old events of services are deleted too.
    """
    limits = {"before": db.now() - older_than_s, "keep": keep}
    deleted = db.rows(
        "DELETE FROM jobs WHERE finished_at < :before"
        " AND id NOT IN (SELECT id FROM jobs ORDER BY id DESC LIMIT :keep)"
        " AND chain NOT IN (SELECT chain FROM jobs WHERE state IN ('blocked', 'queued', 'running')) RETURNING id",
        limits,
    )
    db.run("DELETE FROM events WHERE job IS NOT NULL AND job NOT IN (SELECT id FROM jobs)")
    db.run(
        "DELETE FROM events WHERE job IS NULL AND at < :before"
        " AND id NOT IN (SELECT id FROM events WHERE job IS NULL ORDER BY id DESC LIMIT :keep)",
        limits,
    )
    return len(deleted)


# ---------------------------------------------------------------- the machinery


def _step(db: Database, job: int, step: JobEvent, claim: Claim | None = None, **columns: Any) -> Row:
    """Make one step: the state, the given columns, the event. Raises Fenced when no row was hit."""
    sources, target = TRANSITIONS[step]
    columns["state"] = target
    sets = ", ".join(f"{name} = :{name}" for name in columns)
    if step is JobEvent.CLAIMED:
        sets += ", attempt = attempt + 1"
    allowed = ", ".join(f"'{source}'" for source in sorted(sources))
    fence = " AND attempt = :held_attempt AND owner = :held_owner" if claim else ""
    row = db.row(
        f"UPDATE jobs SET {sets} WHERE id = :id AND state IN ({allowed}){fence} RETURNING *",  # noqa: S608 (names from the table above)
        columns | {"id": job} | ({"held_attempt": claim.attempt, "held_owner": claim.owner} if claim else {}),
    )
    if row is None:
        raise Fenced
    notes = {"error": columns["error"]} if columns.get("error") else {}
    event.record(db, step, job=job, attempt=row["attempt"], **notes)
    return row


def _after(db: Database, job: int) -> None:
    """Do what follows from a job's end: free what waited for it, cancel what can no longer be."""
    if get(db, job).state is not JobState.SUCCEEDED:
        _cancel_below(db, job)
    for dependent in dependents(db, job):
        _unblock(db, dependent)
    db.wake()


def _unblock(db: Database, job: int) -> None:
    """Queue a blocked job when every hard need succeeded and every soft one ended."""
    waiting = db.value(
        "SELECT count(*) FROM job_deps JOIN jobs ON jobs.id = needs WHERE job = ?"
        " AND (CASE WHEN soft THEN jobs.state IN ('blocked', 'queued', 'running') ELSE jobs.state != 'succeeded' END)",
        (job,),
    )
    blocked = db.value("SELECT state = 'blocked' FROM jobs WHERE id = ?", (job,))
    if blocked and not waiting:
        _step(db, job, JobEvent.UNBLOCKED, **_wait(db, 0.0))


def _cancel_below(db: Database, job: int) -> None:
    """Cancel every blocked job that needs this one, directly or through others; free what waited softly for those."""
    for descendant in _hard_below(db, job):
        if db.value("SELECT state FROM jobs WHERE id = ?", (descendant,)) != JobState.BLOCKED:
            continue
        problem = Upstream(f"Job {job} did not succeed.", hint=f"mlxq jobs retry {job}")
        _step(db, descendant, JobEvent.CANCELLED, finished_at=db.now(), **_error(problem))
        for dependent in dependents(db, descendant):
            _unblock(db, dependent)


def _hard_below(db: Database, job: int) -> list[int]:
    rows = db.rows(
        "WITH RECURSIVE below (id) AS ("
        " SELECT job FROM job_deps WHERE needs = ? AND NOT soft"
        " UNION SELECT job FROM job_deps JOIN below ON needs = below.id WHERE NOT soft)"
        " SELECT id FROM below ORDER BY id",
        (job,),
    )
    return [row["id"] for row in rows]


def _wait(db: Database, wait_s: float) -> dict[str, Any]:
    return {"run_at": db.now() + wait_s, "wait_s": wait_s}


def _error(problem: MlxqError) -> dict[str, Any]:
    """Return the columns that keep an error; what mlxq did about it belongs to its message."""
    message = f"{problem.message} {problem.done}" if problem.done else problem.message
    return {"error_code": problem.code, "error": message, "hint": problem.hint}


def _ended_word(now: JobState) -> str:
    return "been cancelled" if now is JobState.CANCELLED else str(now)
