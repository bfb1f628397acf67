"""The ledger: the one transaction that makes each step of a job.

A job's state changes by `UPDATE ... WHERE state IN (the step's sources)` with one row hit, in the same transaction as
its event and everything that follows from it (children unblocked, descendants cancelled). Nothing reads first
and acts later. `attempt` grows with every claim and fences: a worker that lost the claim can write nothing more.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import Any

from state import desired, event
from state.db import Database, Row, atomic
from state.errors import Busy, MlxqError, Upstream, WorkerLost
from state.job import (
    AFTER,
    ENDED,
    LIVE,
    TRANSITIONS,
    Claim,
    Fenced,
    JobEvent,
    JobState,
    NewJob,
    Request,
    Source,
    base_key,
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
WAITING = """
state = 'queued' AND queue = :queue AND kind IN (SELECT value FROM json_each(:kinds)) AND json_valid(args)
AND NOT EXISTS (SELECT 1 FROM jobs AS busy WHERE busy.state = 'running' AND busy.service = jobs.service)
"""
"""The second line: one that would only wait for its service must not occupy a thread."""
WAITING_STARTS = """
SELECT id FROM jobs WHERE state IN ('blocked', 'queued') AND request IN ('up', 'restart', 'purge')
AND (? IS NULL OR service = ?)
AND id NOT IN (SELECT needs FROM job_deps JOIN jobs ON jobs.id = job WHERE state = 'blocked')
"""
TWIN = """
SELECT id, state, unique_key FROM jobs WHERE state IN ('blocked', 'queued', 'running')
AND (unique_key = :key OR substr(unique_key, 1, length(:key) + length(:after)) = :key || :after)
"""
LIVE_TWINS = f"{TWIN} AND cancel_at IS NULL ORDER BY state = 'blocked', id"
ENDING_TWINS = f"{TWIN} AND state = 'running' AND cancel_at IS NOT NULL"
RENUMBER = "UPDATE jobs SET seq = max(seq, ?) WHERE id = ? AND (seq = 0 OR service IS NULL)"
"""A change of the stack is as new as the newest request for it. A job of a service keeps the number of the oldest
request that it serves: it still owes the restart that this one may have asked for."""
PENDING = """
SELECT needs FROM job_deps JOIN jobs ON jobs.id = needs WHERE job = ? AND state IN ('blocked', 'queued', 'running')
"""
UNFINISHED = """
SELECT id FROM jobs WHERE id IN (SELECT value FROM json_each(?)) AND state IN ('blocked', 'queued', 'running')
"""
BROKEN_NEED = """
SELECT needs FROM job_deps JOIN jobs ON jobs.id = needs
WHERE job = ? AND NOT soft AND jobs.state IN ('failed', 'cancelled')
"""


# ---------------------------------------------------------------- putting jobs in


def enqueue(db: Database, new: NewJob, *, source: Source = "person") -> tuple[int, bool]:
    """Enqueue one job; return its id, and whether it is new (False: attached, as `enqueue_all` says)."""
    ids = enqueue_all(db, [new], source=source)
    return ids[new.label or new.kind]


@atomic
def enqueue_all(
    db: Database,
    batch: Sequence[NewJob],
    *,
    source: Source = "person",
    chain: int | None = None,
    seq: int | None = None,
) -> dict[str, tuple[int, bool]]:
    """Enqueue a batch in one transaction, and record what it asks; return each label's id, and whether it is new.

    A job attaches to a live one with its unique key that runs, can run, or waits for nothing that the new one would not
    wait for too, unless it has to see what it waits for (`repeats`) and that one may begin before. One whose twin is
    being cancelled waits for that. Without `chain` the first new job's id names the chain. `seq`: the number of the
    request that led to the batch; without it, it is a new request of a user, or none where the watchdog asks.
    """
    if seq is None:
        seq = 0 if source == "watchdog" else desired.next_seq(db)
    ids: dict[str, tuple[int, bool]] = {}
    for new in batch:
        labels = {label: pair[0] for label, pair in ids.items()}
        needs = [*((need, 0) for need in _ids(new.needs, labels)), *((need, 1) for need in _ids(new.after, labels))]
        needs += [(twin, 1) for twin in _ending_twins(db, new.unique_key)]
        job, fresh = _attach(db, new, {need for need, _ in needs}, source, seq), False
        if job is None:
            job, fresh = _insert(db, new, needs, source=source, chain=chain, seq=seq), True
            chain = chain or job
        ids[new.label or new.kind] = (job, fresh)
        _request(db, job, new.service, new.request, seq)
    db.wake()
    return ids


def _request(db: Database, job: int, service: str | None, what: Request | None, seq: int) -> None:
    """Record what a user asks of a service with a job, unless the job was cancelled at once."""
    state = get(db, job).state
    if service and what and state in LIVE:
        desired.request(db, service, what, seq, waits=state is JobState.BLOCKED)
        if what == "down":
            _cancel_starts(db, service)


@atomic
def request_down(db: Database, service: str | None) -> None:
    """Record that users want a service down, without it every service, and cancel the starts that wait."""
    seq = desired.next_seq(db)
    if service is None:
        desired.record(db, desired.EVERY, "down", seq)
        desired.stay_down(db, None)
    else:
        desired.request(db, service, "down", seq)
    _cancel_starts(db, service)


def _cancel_starts(db: Database, service: str | None) -> None:
    """Cancel the waiting starts of a service, or of all, that no job waits for; the others see the request in time."""
    for row in db.rows(WAITING_STARTS, (service, service)):
        cancel(db, row["id"])


def _attach(db: Database, new: NewJob, needs: Collection[int | str], source: Source, seq: int) -> int | None:
    """Return the live job that does the same, or None. A user's request, or a service's repair, ends its backoff."""
    job = _twin(db, new, needs)
    if job is not None:
        if source == "person" or new.service:
            db.run("UPDATE jobs SET run_at = ?, wait_s = 0 WHERE id = ? AND state = 'queued'", (db.now(), job))
        db.run(RENUMBER, (seq, job))
        if new.repeats:
            db.run("UPDATE jobs SET again = 1 WHERE id = ? AND state = 'running'", (job,))
    return job


def _twin(db: Database, new: NewJob, needs: Collection[int | str]) -> int | None:
    """Return the live job with the key of a new one that waits for no more than `needs`; one that can run comes first.

    And for no less, where the new one repeats what it does: it must not have read what those are still to change.
    """
    if new.unique_key is None:
        return None
    own_key = _key(new.unique_key, needs)
    unfinished = _unfinished(db, needs) if new.repeats else set[int | str]()
    for row in db.rows(LIVE_TWINS, {"key": new.unique_key, "after": AFTER}):
        pending = _pending(db, row["id"]) if row["state"] == JobState.BLOCKED else set[int | str]()
        if row["unique_key"] == own_key or unfinished <= pending <= set(needs):
            return row["id"]
    return None


def _unfinished(db: Database, jobs: Collection[int | str]) -> set[int | str]:
    """Return those of `jobs` that have not ended."""
    return {row["id"] for row in db.rows(UNFINISHED, (json.dumps(list(jobs)),))}


def _pending(db: Database, job: int) -> set[int | str]:
    """Return the jobs that a job still waits for."""
    return {row["needs"] for row in db.rows(PENDING, (job,))}


def _insert(
    db: Database, new: NewJob, needs: list[tuple[int | str, int]], *, source: Source, chain: int | None, seq: int
) -> int:
    """Write the row, its needs and its first event."""
    now = db.now()
    job = db.insert(
        "jobs",
        {
            "kind": new.kind,
            "args": json.dumps(dict(new.args)),
            "queue": new.queue,
            "priority": new.priority,
            "unique_key": _key(new.unique_key, [need for need, _ in needs]),
            "chain": chain or 0,
            "source": source,
            "state": JobState.BLOCKED if needs else JobState.QUEUED,
            "max_attempts": new.max_attempts,
            "run_at": now + new.wait_s,
            "wait_s": new.wait_s,
            "created_at": now,
            "service": new.service,
            "request": new.request,
            "seq": seq,
        },
    )
    if chain is None:
        db.run("UPDATE jobs SET chain = id WHERE id = ?", (job,))
    # A job that ends may be named by the caller and by its key; a need by both kinds is the hard one.
    for need, soft in dict(sorted(needs, key=itemgetter(1), reverse=True)).items():
        db.insert("job_deps", {"job": job, "needs": need, "soft": soft})
    event.record(db, "created", job=job)
    if needs:
        _settle_new(db, job)
    return job


def _ids(needs: Sequence[int | str], ids: Mapping[str, int]) -> list[int | str]:
    """Return jobs by their ids, those of the same batch by what they are `ids` as."""
    return [ids.get(need, need) if isinstance(need, str) else need for need in needs]


def _key(unique_key: str | None, needs: Collection[int | str]) -> str | None:
    """Return the key of a new job: what waits has one of its own, so that nothing attaches to it that could run now."""
    return f"{unique_key}{AFTER}{','.join(map(str, sorted(set(needs))))}" if unique_key and needs else unique_key


def _ending_twins(db: Database, unique_key: str | None) -> list[int]:
    """Return the running jobs of this key that were asked to stop."""
    return [row["id"] for row in db.rows(ENDING_TWINS, {"key": unique_key, "after": AFTER})]


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
    row = _step(db, job, JobEvent.CLAIMED, started_at=now, owner=owner, beat_at=now, phase=None, progress=None, again=0)
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
        seq=row["seq"],
    )


@atomic
def succeed(db: Database, claim: Claim, result: Any, fan_out: Sequence[NewJob] = ()) -> None:
    """Record a success: keep the result, enqueue follow-up jobs, unblock dependents. Raises Fenced.

    One that was enqueued again while it ran goes back to the queue instead.
    """
    if _requested_again(db, claim):
        _put_back(db, claim, JobEvent.REPEATED, **_wait(db, 0.0))
        return
    columns = NO_ERROR | {"result": json.dumps(result), "finished_at": db.now(), "owner": None}
    row = _step(db, claim.id, JobEvent.SUCCEEDED, claim, **columns)
    if fan_out:
        enqueue_all(db, fan_out, source="chain", chain=row["chain"], seq=row["seq"])
    _after(db, claim.id)


@atomic
def fail(db: Database, claim: Claim, problem: MlxqError) -> None:
    """Record a failure and cancel the jobs that need this one. Raises Fenced.

    One that was enqueued again while it ran goes back to the queue instead.
    """
    if _requested_again(db, claim):
        _put_back(db, claim, JobEvent.REPEATED, **_wait(db, 0.0))
        return
    _step(db, claim.id, JobEvent.FAILED, claim, owner=None, finished_at=db.now(), **_error(problem))
    _after(db, claim.id)


@atomic
def retry_later(db: Database, claim: Claim, problem: MlxqError, wait_s: float) -> None:
    """Put a failed job back for another try in `wait_s` seconds. Raises Fenced."""
    columns = (
        _wait(db, 0.0 if _requested_again(db, claim) else wait_s) | _error(problem) | {"failures": claim.failures + 1}
    )
    _put_back(db, claim, JobEvent.RETRIED, **columns)


@atomic
def snooze(db: Database, claim: Claim, wait_s: float, reason: str) -> None:
    """Put a job back for later; no failure is counted. Raises Fenced."""
    _put_back(db, claim, JobEvent.SNOOZED, phase=reason, **_wait(db, wait_s))


@atomic
def release(db: Database, claim: Claim) -> None:
    """Requeue a running job because the worker stops. Raises Fenced."""
    _put_back(db, claim, JobEvent.RELEASED, **_wait(db, 0.0))


def _requested_again(db: Database, claim: Claim) -> bool:
    """Return whether a job that runs once more in that case was enqueued again since its claim."""
    return bool(
        db.value("SELECT again FROM jobs WHERE id = ? AND attempt = ?", (claim.id, claim.attempt)),
    )


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
    """Requeue a failed or cancelled job and the jobs that its end cancelled; return their ids. It is a new request.

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
    seq = desired.next_seq(db)
    for revived_id in revived:
        _unblock(db, revived_id)
        db.run("UPDATE jobs SET seq = ? WHERE id = ?", (seq, revived_id))
        row = db.row("SELECT service, request FROM jobs WHERE id = ?", (revived_id,))
        if row:
            _request(db, revived_id, row["service"], row["request"], seq)
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
    row = db.row(TWIN, {"key": get(db, job).unique_key, "after": AFTER})
    if row is not None:
        raise Busy(
            f"The same as job {job} is already being done by job {row['id']}.", hint=f"mlxq jobs watch {row['id']}"
        )


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
        key = base_key(db.value("SELECT unique_key FROM jobs WHERE id = ?", (job,)))
        db.run("UPDATE OR IGNORE jobs SET unique_key = ? WHERE id = ?", (key, job))  # kept while a live job has it


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
