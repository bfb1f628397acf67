"""How the command line uses the worker: enqueue jobs, follow their rows, raise the error of one that failed.

A command watches rows, never the worker itself. So Ctrl-C stops the watching and not the job, and a worker that dies
meanwhile is replaced by another that resumes the job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click

from mlxq import render
from state.db import Database, open_database, read_database
from state.errors import Busy, MlxqError, NotSetUp, TimedOut, Upstream, WorkerLost, rebuild
from state.paths import Home

if TYPE_CHECKING:
    import subprocess

    from state.job import Job, NewJob

GUARD_S = 1.0
"""Seconds; the rows are read this often even without a wake-up, and a missing worker is started."""
CANCEL_WINDOW_S = 2.0
"""Seconds after Ctrl-C within which another one cancels the jobs."""
MOST_STARTS = 3
INTERRUPTED = 130

Jobs = Callable[[Database], "Sequence[Job]"]
"""Returns the jobs that are followed; a chain grows while it runs."""


class View(Protocol):
    """Shows jobs while they are followed."""

    def show(self, jobs: Sequence[Job]) -> None:
        """Show what is new."""
        ...

    def tell(self, text: str) -> None:
        """Print something next to the jobs."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


@contextmanager
def writing(home: Home) -> Generator[Database]:
    """Open state.db for one change."""
    db = open_database(home)
    try:
        yield db
    finally:
        db.close()


@contextmanager
def changing(home: Home) -> Generator[Database]:
    """Open state.db for one change of what must exist already. Raises NotSetUp, and makes no home."""
    read_database(home).close()
    with writing(home) as db:
        yield db


def has_stack(home: Home) -> bool:
    """Return whether setup was run. Raises MlxqError where the job database cannot be read."""
    from state import stack

    try:
        with reading(home) as db:
            return bool(stack.tiers(db))
    except NotSetUp:
        return False


@contextmanager
def reading(home: Home) -> Generator[Database]:
    """Open state.db for reading. Raises NotSetUp when there is none."""
    db = read_database(home)
    try:
        yield db
    finally:
        db.close()


def chain(number: int) -> Jobs:
    """Follow a whole chain, with what its jobs enqueue."""
    from state.job import of_chain

    return lambda db: of_chain(db, number)


def these(ids: Sequence[int]) -> Jobs:
    """Follow these jobs and no others."""
    from state.job import get

    return lambda db: [get(db, job) for job in ids]


def with_chains(ids: Sequence[int]) -> Jobs:
    """Follow these jobs and what they enqueue."""
    from state.job import get, of_chain

    return lambda db: [
        job for number in dict.fromkeys(get(db, job).chain for job in ids) for job in of_chain(db, number)
    ]


def enqueue(db: Database, batch: Sequence[NewJob]) -> list[int]:
    """Enqueue jobs, print which of them were queued or running already, and return their ids."""
    from state import ledger

    jobs = ledger.enqueue_all(db, batch)
    for label, (job, new) in jobs.items():
        if not new:
            render.say(f"Job {job} ({label}) is already queued or running.")
    return [job for job, _ in jobs.values()]


def follow(home: Home, jobs: Jobs, view: View, *, timeout_s: float | None = None) -> list[Job]:
    """Show jobs until all have succeeded, and return them as they ended.

    Keeps a worker running meanwhile. Ctrl-C leaves the jobs alone, says how to watch them again and exits 130.
    Raises TimedOut after `timeout_s` seconds, and the error of the first job that failed.
    """
    try:
        ended = _until_ended(home, jobs, view, timeout_s)
    except KeyboardInterrupt:
        view.close()
        _offer_cancel(home, jobs)
        raise click.exceptions.Exit(INTERRUPTED) from None
    finally:
        view.close()
    raise_first(ended)
    return ended


def _until_ended(home: Home, jobs: Jobs, view: View, timeout_s: float | None) -> list[Job]:
    from state import wakeup

    until = None if timeout_s is None else time.monotonic() + timeout_s
    starter, woken = WorkerStarter(home, view.tell), False
    with wakeup.watcher(home) as listener, reading(home) as db:
        while True:
            now = list(jobs(db))
            view.show(now)
            live = [job for job in now if job.live]
            if not live:
                return now
            if not woken:
                starter.ensure()
            remaining_s = GUARD_S if until is None else until - time.monotonic()
            if remaining_s <= 0:
                raise TimedOut(
                    f"Not done after {render.span(timeout_s)}; job {live[0].id} continues.",
                    hint=f"mlxq jobs watch {live[0].id}",
                )
            woken = listener.wait(min(GUARD_S, remaining_s))


class WorkerStarter:
    """Keeps a worker running while a command waits for jobs."""

    def __init__(self, home: Home, tell: Callable[[str], None] = render.say) -> None:
        self.home = home
        self.tell = tell
        self.starts = 0
        self.started: subprocess.Popen[bytes] | None = None

    def ensure(self) -> None:
        """Start a worker when none is running. Raises WorkerLost when each one exits at once."""
        from mlxq import worker_process

        if self.starts == MOST_STARTS and self.started and self.started.poll() is not None:
            raise WorkerLost(
                f"The worker exited {MOST_STARTS} times, last with exit code {self.started.returncode}.",
                done="The jobs are kept.",
                hint=f"tail {self.home.log('worker')}",
            )
        if self.starts < MOST_STARTS and (started := worker_process.ensure(self.home)):
            again = " again" if self.starts else ""
            self.starts += 1
            self.started = started
            self.tell(f"Started the worker{again} (pid {started.pid}, log {self.home.log('worker')}).")


def ensure_worker(home: Home) -> None:
    """Make sure that a worker runs what was enqueued, without waiting for it."""
    WorkerStarter(home).ensure()


def _offer_cancel(home: Home, jobs: Jobs) -> None:
    """Say that the jobs continue; cancel them when Ctrl-C comes again at once."""
    with reading(home) as db:
        live = [job.id for job in jobs(db) if job.live]
    if not live:
        return
    try:
        render.say(
            f"\nStopped watching; job {live[0]} continues. Ctrl-C again within {CANCEL_WINDOW_S:g} s cancels it.\n"
            f"Watch it again: mlxq jobs watch {live[0]}"
        )
        time.sleep(CANCEL_WINDOW_S)
    except KeyboardInterrupt:
        cancel(home, live)
        render.say(f"Cancelled job {live[0]} and the jobs that need it.")


def cancel(home: Home, ids: Sequence[int]) -> None:
    """Cancel jobs; those that have ended meanwhile are skipped."""
    from state import ledger

    with writing(home) as db:
        for job in ids:
            try:
                ledger.cancel(db, job)
            except Busy:
                continue


def raise_first(ended: Sequence[Job]) -> None:
    """Raise the error of the first job that did not succeed; those cancelled because of it come last."""
    from state.job import JobState

    failed = sorted((job for job in ended if job.state is not JobState.SUCCEEDED), key=_failed_upstream)
    if failed:
        raise _error(failed[0])


def _failed_upstream(job: Job) -> bool:
    """Return whether a job ended because of another."""
    return job.error_code == Upstream.code


def _error(job: Job) -> MlxqError:
    """Return the error of a job that did not succeed, as it was raised in the worker."""
    from state.job import JobState

    if job.state is JobState.CANCELLED and not _failed_upstream(job):
        return MlxqError(f"Job {job.id} ({job.words}) was cancelled.", hint=f"mlxq jobs retry {job.id}")
    return rebuild(job.error_code or "failed", job.error or "", job.hint or f"mlxq jobs show {job.id}")


def stop_idle_worker(home: Home) -> bool:
    """Stop a worker that a command started, unless jobs of the user are left; the watchdog enqueues its own again.

    Return whether one was stopped.
    """
    from mlxq import worker_process
    from state import worker

    with reading(home) as db:
        live = db.value(
            "SELECT count(*) FROM jobs WHERE state IN ('blocked', 'queued', 'running') AND source <> 'watchdog'"
        )
        current = worker.current(db)
    if live:
        render.say(
            f"The worker keeps running: {live} {'job is' if live == 1 else 'jobs are'} not done yet (mlxq jobs)."
        )
    return not live and current is not None and worker_process.stop(home, current.owner)
