"""The ledger: the one transaction that makes each step of a job.

A job's state changes by `UPDATE ... WHERE state IN (the step's sources)` with one row hit, in the same transaction as
its event and everything that follows from it (children unblocked, descendants cancelled). Nobody looks first
and acts later. `attempt` grows with every claim and fences: whoever lost the claim can write nothing more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from state import event
from state.db import Database, Row
from state.errors import Busy, MlxqError, Upstream, WorkerLost
from state.job import ENDED, STEPS, Claim, Fenced, New, Source, State, Step, dependents, get

MAX_RESCUES = 3
"""A job that kills its worker this often is given up, so that it cannot kill it for ever."""
CLOCK_SLACK_S = 1.0
FRESH: Mapping[str, Any] = dict.fromkeys(("cancel_at", "finished_at", "error_code", "error", "hint")) | {
    "failures": 0,
    "rescues": 0,
}
BROKEN_NEED = """
SELECT needs FROM job_deps JOIN jobs ON jobs.id = needs
WHERE job = ? AND NOT soft AND jobs.state IN ('failed', 'cancelled')
"""


# ---------------------------------------------------------------- putting jobs in


def submit(db: Database, new: New, *, source: Source = "person") -> tuple[int, bool]:
    """Put one job in; give its id, and whether it is new (False: a live one with its ukey was there)."""
    made = submit_all(db, [new], source=source)
    return made[new.label or new.kind]


def submit_all(
    db: Database, batch: Sequence[New], *, source: Source = "person", chain: int | None = None
) -> dict[str, tuple[int, bool]]:
    """Put a batch in, in one transaction; give each label's id, and whether it is new.

    Without `chain` the first new job's id names the chain.
    """
    made: dict[str, tuple[int, bool]] = {}
    with db.transaction():
        for new in batch:
            there = _live_with(db, new.ukey)
            if there is None:
                fresh = _insert(db, new, source, chain, {label: pair[0] for label, pair in made.items()})
                chain = chain or fresh
            made[new.label or new.kind] = (there or fresh, there is None)  # pyright: ignore[reportPossiblyUnboundVariable] (fresh is set when there is None)
        db.rouse()
    return made


def _live_with(db: Database, ukey: str | None) -> int | None:
    if ukey is None:
        return None
    return db.value("SELECT id FROM jobs WHERE ukey = ? AND state IN ('blocked', 'queued', 'running')", (ukey,))


def _insert(db: Database, new: New, source: Source, chain: int | None, known: Mapping[str, int]) -> int:
    """Write the row, its needs and its first event."""
    hard = [known.get(need, need) if isinstance(need, str) else need for need in new.needs]
    soft = [known.get(need, need) if isinstance(need, str) else need for need in new.softly]
    now = db.now()
    job = db.insert(
        "jobs",
        {
            "kind": new.kind,
            "args": json.dumps(dict(new.args)),
            "lane": new.lane,
            "priority": new.priority,
            "ukey": new.ukey,
            "chain": chain or 0,
            "source": source,
            "state": State.BLOCKED if hard or soft else State.QUEUED,
            "max_attempts": new.max_attempts,
            "run_at": now + new.wait_s,
            "wait_s": new.wait_s,
            "created_at": now,
        },
    )
    if chain is None:
        db.run("UPDATE jobs SET chain = id WHERE id = ?", (job,))
    for need in hard:
        db.insert("job_deps", {"job": job, "needs": need, "soft": 0})
    for need in soft:
        db.insert("job_deps", {"job": job, "needs": need, "soft": 1})
    event.record(db, "created", job=job)
    if hard or soft:
        _settle_new(db, job)
    return job


def _settle_new(db: Database, job: int) -> None:
    """Unblock or cancel, at once, a job that is born after what it needs has ended."""
    broken = db.value(BROKEN_NEED, (job,))
    if broken is not None:
        _cancel_below(db, broken)
    else:
        _unblock(db, job)


# ---------------------------------------------------------------- the worker's steps


def claim(db: Database, lane: str, kinds: Collection[str], owner: str) -> Claim | None:
    """Take the next job of this lane whose kind is known and whose time has come.

    A row whose wait would have begun in the future is due too: the wall clock was set back.
    """
    known = json.dumps(sorted(kinds))
    due = (
        "SELECT id FROM jobs WHERE state = 'queued' AND lane = :lane AND kind IN (SELECT value FROM json_each(:kinds))"
        " AND (run_at <= :now OR run_at - wait_s > :now + :slack) ORDER BY priority DESC, id LIMIT 1"
    )
    parameters = {"lane": lane, "kinds": known, "now": db.now(), "slack": CLOCK_SLACK_S}
    if db.value(due, parameters) is None:
        return None  # an idle look takes no write lock
    with db.transaction():
        job = db.value(due, parameters)
        if job is None:
            return None
        row = _step(db, job, Step.CLAIMED, started_at=db.now(), owner=owner, beat_at=db.now(), phase=None)
        db.announce()
        return Claim(
            id=row["id"],
            kind=row["kind"],
            args=json.loads(row["args"]),
            attempt=row["attempt"],
            owner=owner,
            failures=row["failures"],
            max_attempts=row["max_attempts"],
        )


def next_due(db: Database, lane: str) -> float | None:
    """Give the seconds until the next queued job of this lane is due, or None when none waits."""
    at = db.value("SELECT min(run_at) FROM jobs WHERE state = 'queued' AND lane = ?", (lane,))
    return None if at is None else max(0.0, at - db.now())


def succeed(db: Database, held: Claim, result: Any, fan_out: Sequence[New] = ()) -> None:
    """End a job well: keep its result, put in the jobs it asks for, unblock what waited. Raises Fenced."""
    with db.transaction():
        row = _step(db, held.id, Step.SUCCEEDED, held, result=json.dumps(result), finished_at=db.now(), owner=None)
        if fan_out:
            submit_all(db, fan_out, source="chain", chain=row["chain"])
        _after(db, held.id)


def fail(db: Database, held: Claim, problem: MlxqError) -> None:
    """End a job badly, and cancel what needed it. Raises Fenced."""
    with db.transaction():
        _step(db, held.id, Step.FAILED, held, owner=None, finished_at=db.now(), **_error(problem))
        _after(db, held.id)


def retry_later(db: Database, held: Claim, problem: MlxqError, wait_s: float) -> None:
    """Put a failed job back for another try in `wait_s` seconds. Raises Fenced."""
    with db.transaction():
        columns = _wait(db, wait_s) | _error(problem) | {"failures": held.failures + 1}
        _step(db, held.id, Step.RETRIED, held, owner=None, **columns)
        db.rouse()


def snooze(db: Database, held: Claim, wait_s: float, why: str) -> None:
    """Put a job back for later; no failure is counted. Raises Fenced."""
    with db.transaction():
        _step(db, held.id, Step.SNOOZED, held, owner=None, phase=why, **_wait(db, wait_s))
        db.rouse()


def release(db: Database, held: Claim) -> None:
    """Give a job back because the worker stops. Raises Fenced."""
    with db.transaction():
        _step(db, held.id, Step.RELEASED, held, owner=None, **_wait(db, 0.0))
        db.announce()


def end_cancelled(db: Database, held: Claim) -> None:
    """Confirm that a running job stopped as a person asked. Raises Fenced."""
    with db.transaction():
        _step(db, held.id, Step.CANCELLED, held, owner=None, finished_at=db.now())
        _after(db, held.id)


def report(db: Database, held: Claim, phase: str | None, progress: Mapping[str, Any] | None) -> bool:
    """Write how far a job is; give whether its cancel was asked for. Raises Fenced."""
    with db.transaction():
        row = db.row(
            "UPDATE jobs SET phase = coalesce(?, phase), progress = ?, beat_at = ?"
            " WHERE id = ? AND attempt = ? AND owner = ? AND state = 'running' RETURNING cancel_at",
            (phase, json.dumps(dict(progress or {})), db.now(), held.id, held.attempt, held.owner),
        )
        if row is None:
            raise Fenced
        db.announce()
    return row["cancel_at"] is not None


def rescue(db: Database, alive: Callable[[str], bool]) -> list[int]:
    """Put back every running job whose worker is dead, and give their ids.

    `alive` tells by identity whether an owner still runs: a lease alone would run out while a Mac sleeps.
    """
    lost = [
        row["id"] for row in db.rows("SELECT id, owner FROM jobs WHERE state = 'running'") if not alive(row["owner"])
    ]
    for job in lost:
        with db.transaction():
            _rescue_one(db, job)
    return lost


def _rescue_one(db: Database, job: int) -> None:
    row = db.row("SELECT rescues, cancel_at, state FROM jobs WHERE id = ?", (job,))
    if row is None or row["state"] != State.RUNNING:
        return
    if row["cancel_at"] is not None:
        _step(db, job, Step.CANCELLED, owner=None, finished_at=db.now())
        _after(db, job)
    elif row["rescues"] >= MAX_RESCUES:
        problem = WorkerLost(f"The worker died {MAX_RESCUES + 1} times while it ran job {job}.", hint="mlxq doctor")
        _step(db, job, Step.LOST, owner=None, finished_at=db.now(), **_error(problem))
        _after(db, job)
    else:
        wait_s = 0.0 if row["rescues"] == 0 else 2.0 ** row["rescues"]
        _step(db, job, Step.RESCUED, owner=None, rescues=row["rescues"] + 1, **_wait(db, wait_s))
        db.rouse()


# ---------------------------------------------------------------- a person's steps


def cancel(db: Database, job: int) -> State:
    """Ask a job to stop: a waiting one is cancelled at once, a running one is told. Gives its state now.

    Raises NotFound, Busy when it has ended already.
    """
    with db.transaction():
        now = get(db, job).state
        if now in ENDED:
            raise Busy(f"Job {job} has already {_ended_word(now)}.", hint=f"mlxq jobs show {job}")
        if now is State.RUNNING:
            db.run("UPDATE jobs SET cancel_at = coalesce(cancel_at, ?) WHERE id = ?", (db.now(), job))
            event.record(db, "cancel_requested", job=job)
            db.rouse()
            return now
        _step(db, job, Step.CANCELLED, finished_at=db.now())
        _after(db, job)
    return State.CANCELLED


def revive(db: Database, job: int) -> list[int]:
    """Give a failed or cancelled job another try, and with it what its end cancelled; give their ids.

    Raises NotFound, Busy (it has not ended, or the same is already being done), Upstream (a job it needs must be
    revived first).
    """
    with db.transaction():
        found = get(db, job)
        if found.state not in (State.FAILED, State.CANCELLED):
            raise Busy(f"Job {job} is {found.state}; only a failed or cancelled one can be tried again.")
        broken = db.value(BROKEN_NEED, (job,))
        if broken is not None:
            raise Upstream(f"Job {job} needs job {broken}, which did not succeed.", hint=f"mlxq jobs retry {broken}")
        _refuse_twin(db, job)
        _step(db, job, Step.REVIVED, **FRESH)
        revived = [job, *(descendant for descendant in _hard_below(db, job) if _revive_below(db, descendant))]
        for each in revived:
            _unblock(db, each)
        db.rouse()
    return revived


def _revive_below(db: Database, job: int) -> bool:
    """Bring back what an upstream end cancelled, unless another job it needs is still broken.

    Needs have lower ids than what needs them, so in the order of ids every need has been seen before.
    """
    code = db.value("SELECT error_code FROM jobs WHERE id = ? AND state = 'cancelled'", (job,))
    if code != Upstream.code or db.value(BROKEN_NEED, (job,)) is not None:
        return False
    _refuse_twin(db, job)
    _step(db, job, Step.REVIVED, **FRESH)
    return True


def _refuse_twin(db: Database, job: int) -> None:
    twin = _live_with(db, get(db, job).ukey)
    if twin is not None:
        raise Busy(f"The same as job {job} is already being done by job {twin}.", hint=f"mlxq jobs watch {twin}")


def prune(db: Database, *, older_than_s: float = 30 * 86400.0, keep: int = 2000) -> int:
    """Forget ended jobs that are both old and beyond the newest `keep`, with their events; give how many.

    A chain goes as a whole, so that a live job never loses what it needs.
    """
    with db.transaction():
        gone = [
            row["id"]
            for row in db.rows(
                "SELECT id FROM jobs WHERE finished_at < :before"
                " AND id NOT IN (SELECT id FROM jobs ORDER BY id DESC LIMIT :keep)"
                " AND chain NOT IN (SELECT chain FROM jobs WHERE state IN ('blocked', 'queued', 'running'))",
                {"before": db.now() - older_than_s, "keep": keep},
            )
        ]
        marks = json.dumps(gone)
        for statement in (
            "DELETE FROM events WHERE job IN (SELECT value FROM json_each(?))",
            "DELETE FROM job_deps WHERE job IN (SELECT value FROM json_each(?))",
            "DELETE FROM job_deps WHERE needs IN (SELECT value FROM json_each(?))",
            "DELETE FROM jobs WHERE id IN (SELECT value FROM json_each(?))",
        ):
            db.run(statement, (marks,))
    return len(gone)


# ---------------------------------------------------------------- the machinery


def _step(db: Database, job: int, step: Step, held: Claim | None = None, **columns: Any) -> Row:
    """Make one step: the state, the given columns, the event. Raises Fenced when no row was hit."""
    sources, target = STEPS[step]
    columns["state"] = target
    sets = ", ".join(f"{name} = :{name}" for name in columns)
    if step is Step.CLAIMED:
        sets += ", attempt = attempt + 1"
    allowed = ", ".join(f"'{source}'" for source in sorted(sources))
    fence = " AND attempt = :held_attempt AND owner = :held_owner" if held else ""
    row = db.row(
        f"UPDATE jobs SET {sets} WHERE id = :id AND state IN ({allowed}){fence} RETURNING *",  # noqa: S608 (names from the table above)
        columns | {"id": job} | ({"held_attempt": held.attempt, "held_owner": held.owner} if held else {}),
    )
    if row is None:
        raise Fenced
    notes = {"error": columns["error"]} if columns.get("error") else {}
    event.record(db, step, job=job, attempt=row["attempt"], **notes)
    return row


def _after(db: Database, job: int) -> None:
    """Do what follows from a job's end: free what waited for it, cancel what can no longer be."""
    if get(db, job).state is not State.SUCCEEDED:
        _cancel_below(db, job)
    for dependent in dependents(db, job):
        _unblock(db, dependent)
    db.rouse()


def _unblock(db: Database, job: int) -> None:
    """Queue a blocked job when every hard need succeeded and every soft one ended."""
    waiting = db.value(
        "SELECT count(*) FROM job_deps JOIN jobs ON jobs.id = needs WHERE job = ?"
        " AND (CASE WHEN soft THEN jobs.state IN ('blocked', 'queued', 'running') ELSE jobs.state != 'succeeded' END)",
        (job,),
    )
    blocked = db.value("SELECT state = 'blocked' FROM jobs WHERE id = ?", (job,))
    if blocked and not waiting:
        _step(db, job, Step.UNBLOCKED, **_wait(db, 0.0))


def _cancel_below(db: Database, job: int) -> None:
    """Cancel every blocked job that needs this one, directly or through others; free what waited softly for those."""
    for descendant in _hard_below(db, job):
        if db.value("SELECT state FROM jobs WHERE id = ?", (descendant,)) != State.BLOCKED:
            continue
        problem = Upstream(f"Job {job} did not succeed.", hint=f"mlxq jobs retry {job}")
        _step(db, descendant, Step.CANCELLED, finished_at=db.now(), **_error(problem))
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
    return {"error_code": problem.code, "error": problem.message, "hint": problem.hint}


def _ended_word(now: State) -> str:
    return "been cancelled" if now is State.CANCELLED else str(now)
