"""One attempt at a job: what its task is given, and what its end leads to.

A task is `task(context, **arguments)` and ends in one of these ways, and no other:

    returns                the job succeeded; what it returned is kept as JSON
    raises MlxqError       it failed; tried again when the error's class says so and attempts are left
    raises Later           run again in the given number of seconds; no failure is counted
    raises Cancelled       from context.check() or a child: the user cancelled it
    raises Released        from context.check(): the worker stops, the job goes back to the queue
    raises Fenced          the claim was lost; nothing more may be written
    raises anything else   a fault in mlxq: it failed, and the log has the traceback
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from state import ledger
from state.db import Database
from state.errors import DeadlinePassed, Internal, MlxqError
from state.job import Claim, Fenced, NewJob, cancel_asked
from tasks.kinds import Kind, backoff
from tasks.runtime import Released, RunningJob, log, runtime
from tasks.system.child import Cancelled, ChildFault, Later, run_child

PROGRESS_S = 0.4
"""Progress is written at most this often."""

Task = Callable[..., Any]
Outcome = Callable[[Database], None]
"""The write that says how a job ended."""


class Context:
    """What a task is given beside its arguments."""

    def __init__(self, kind: Kind, mine: RunningJob) -> None:
        self.claim = mine.claim
        self.kind = kind
        self.db = runtime.database()
        self.home = runtime.home
        self.fan_out: list[NewJob] = []
        self._mine = mine
        self._reported = 0.0
        self._phase: str | None = None

    @property
    def remaining_s(self) -> float:
        """Seconds until this attempt's time limit."""
        return max(0.0, -self._mine.overdue_s)

    def check(self) -> None:
        """Raise when the job is to stop. Raises Cancelled, Released, DeadlinePassed, Fenced."""
        if cancel_asked(self.db, self.claim):
            raise Cancelled
        if runtime.stopping.is_set():
            raise Released
        if not self.remaining_s:
            raise DeadlinePassed(
                f"Job {self.claim.id} ({self.kind.name}) ran over its limit of {self.kind.limit_s:g} s."
            )

    def cancelled(self) -> bool:
        """Return whether a child process of this job is to be stopped."""
        try:
            self.check()
        except (Cancelled, Released, DeadlinePassed, Fenced):
            return True
        return False

    def wait(self, seconds: float) -> None:
        """Sleep in a task, returning early when the job is to stop. Raises as check does."""
        until = time.monotonic() + seconds
        while (remaining_s := until - time.monotonic()) > 0:
            self.check()
            runtime.stopping.wait(min(remaining_s, 0.25))
        self.check()

    def report(self, phase: str, **progress: Any) -> None:
        """Return how far the job is, e.g. `"fetch", done=10, total=20, unit="bytes"`. Raises as check does."""
        now = time.monotonic()
        if phase == self._phase and now - self._reported < PROGRESS_S:
            return
        self._phase, self._reported = phase, now
        ledger.report(self.db, self.claim, phase, progress)
        self.check()

    def run_child(self, module: str, request: Mapping[str, Any], python: str = sys.executable) -> dict[str, Any]:
        """Return what a child process of this job returns (tasks/system/child.py); its progress is the job's.

        Raises as `run_child` of that file does.
        """
        return run_child(
            module,
            request,
            python=python,
            on_progress=lambda step: self.report(step.pop("phase"), **step),
            cancelled=self.cancelled,
            timeout_s=self.remaining_s,
        )

    def retries(self, problem: MlxqError) -> bool:
        """Return whether the job is tried again when it fails with `problem`."""
        return problem.retry and self.claim.failures + 1 < self.claim.max_attempts

    def then(self, job: NewJob) -> None:
        """Put another job of this chain in when this one succeeds, in the same transaction."""
        self.fan_out.append(job)


def perform(kind: Kind, task: Task, claim: Claim) -> None:
    """Run one claimed job and write how it ended."""
    bound = structlog.contextvars.bound_contextvars(job=claim.id, kind=kind.name, attempt=claim.attempt)
    with bound, runtime.having(claim, kind.limit_s) as mine:
        log.info("job_started", args=claim.args)
        try:
            _write(claim, _outcome(Context(kind, mine), task))
        except Released:
            log.warning("job_left_to_rescue")
        except Fenced:
            log.warning("job_fenced")


def _write(claim: Claim, outcome: Outcome) -> None:
    """Write how a job ended; one that cannot be kept (a result that is no JSON, a fan-out of nonsense) is a failure."""
    try:
        runtime.persist(outcome)
    except (sqlite3.Error, TypeError, ValueError) as problem:
        log.exception("outcome_refused")
        internal = _fault(claim, problem)
        runtime.persist(lambda db: ledger.fail(db, claim, internal))


def _outcome(context: Context, task: Task) -> Outcome:
    """Run the task; return the write that says how it ended."""
    claim = context.claim
    try:
        result = task(context, **claim.args)
    except Later as later:
        return _snoozing(claim, later)
    except (Cancelled, Released) as stopped:
        return _ending(context, stopped)
    except MlxqError as problem:
        if isinstance(problem, ChildFault):
            log.error("child_crashed", traceback=problem.traceback)  # noqa: TRY400 (the child's traceback, not this one)
        return _failing(context, problem)
    except Fenced:
        raise
    except (Exception, SystemExit) as problem:
        log.exception("job_crashed")
        return _failing(context, _fault(claim, problem))
    log.info("job_succeeded")
    return lambda db: ledger.succeed(db, claim, result, context.fan_out)


def _snoozing(claim: Claim, later: Later) -> Outcome:
    log.info("job_snoozed", wait_s=later.after_s, reason=later.reason)
    return lambda db: ledger.snooze(db, claim, later.after_s, later.reason)


def _ending(context: Context, stopped: Exception) -> Outcome:
    """Choose how a stopped job ends: a child says Cancelled for a cancel, a stop of the worker and a time limit."""
    claim = context.claim
    try:
        context.check()
    except Released:
        log.info("job_released")
        return lambda db: ledger.release(db, claim)
    except DeadlinePassed as late:
        return _failed(context.kind, claim, late)
    except Cancelled as cancel:
        stopped = cancel
    log.info("job_cancelled", by=type(stopped).__name__)
    return lambda db: ledger.end_cancelled(db, claim)


def _failing(context: Context, problem: MlxqError) -> Outcome:
    """Choose what an error leads to: the end that was asked for meanwhile, another try, or failure."""
    try:
        context.check()
    except (Cancelled, Released, DeadlinePassed) as stopped:
        return _ending(context, stopped)
    return _failed(context.kind, context.claim, problem)


def _failed(kind: Kind, claim: Claim, problem: MlxqError) -> Outcome:
    log.error("job_failed", code=problem.code, error=problem.message, retry=problem.retry)
    if problem.retry and claim.failures + 1 < claim.max_attempts:
        wait_s = backoff(claim.failures + 1, longest_s=kind.longest_backoff_s)
        return lambda db: ledger.retry_later(db, claim, problem, wait_s)
    return lambda db: ledger.fail(db, claim, problem)


def _fault(claim: Claim, problem: BaseException) -> Internal:
    return Internal(f"{type(problem).__name__} in task {claim.kind}: {problem}", hint="mlxq logs worker")
