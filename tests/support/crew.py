"""A home with real workers (jobworker.py), and the means to feed, watch and hurt them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from state import event, files, ledger, wakeup
from state.db import open_database
from state.job import ENDED, Job, JobState, NewJob, get
from state.paths import Home

SUPPORT = Path(__file__).parent
LIMIT_S = 180.0
"""Waits end long before."""
JOBWORKER = SUPPORT / "jobworker.py"


@dataclass(frozen=True)
class Note:
    """One line that a task wrote."""

    job: int
    attempt: int
    word: str
    at: float
    """Monotonic seconds."""


def start_worker(home: Home, **environment: str) -> subprocess.Popen[bytes]:
    """Start a worker whose log goes where the real one's goes."""
    with home.log("worker").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, JOBWORKER],
            env=os.environ | {"MLXQ_HOME": str(home.root), "PYTHONPATH": str(SUPPORT)} | environment,
            stdout=log,
            stderr=log,
        )


class Crew:
    """Workers of one home, and whoever asks them for work."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.db = open_database(home)
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker."""
        if not self.workers:  # the day's prune job would be counted among the test's own
            ledger.cancel(self.db, ledger.enqueue(self.db, NewJob("prune_jobs"))[0])
        self.workers.append(start_worker(self.home, **environment))
        return self.workers[-1]

    def until_up(self) -> None:
        """Wait until a worker has the home's lock: a command that follows jobs starts one of its own where none has."""
        self.until(lambda: files.locked(self.home.worker_lock))

    def act(self, do: str = "ok", kind: str = "act", **more: Any) -> int:
        """Put one job in."""
        lane = "heavy" if kind == "dig" else "ops"
        return ledger.enqueue(self.db, NewJob(kind, {"do": do} | more, queue=lane, max_attempts=3))[0]

    def let_go(self, *jobs: int) -> None:
        """Let jobs end that are told to hold; their files lie beside the lock, for which a full disk has room."""
        for job in jobs:
            (self.home.run / f"go-{job}").touch()

    def job(self, job: int) -> Job:
        return get(self.db, job)

    def count(self, *states: JobState) -> int:
        marks = ", ".join("?" for _ in states)
        return self.db.value(f"SELECT count(*) FROM jobs WHERE state IN ({marks})", states)

    def until(self, holds: Callable[[], Any], limit_s: float = LIMIT_S) -> None:
        """Wait until it holds; look again at each wake-up."""
        end = time.monotonic() + limit_s
        with wakeup.watcher(self.home, f"-{id(holds)}") as bell:
            while not holds():
                if time.monotonic() > end:
                    raise AssertionError(f"not within {limit_s} s; the worker's log ends:\n{self.log()[-3000:]}")
                bell.wait(0.25)

    def until_running(self, job: int) -> None:
        """Wait until a task has started, not only been claimed."""
        self.until(lambda: any(note.job == job for note in self.notes()))

    def until_ended(self, *jobs: int, limit_s: float = LIMIT_S) -> list[JobState]:
        """Wait for these jobs, or for all, and give how they ended."""
        wanted = jobs or tuple(row["id"] for row in self.db.rows("SELECT id FROM jobs"))
        self.until(lambda: all(self.job(job).state in ENDED for job in wanted), limit_s)
        return [self.job(job).state for job in wanted]

    def notes(self) -> list[Note]:
        """Give what the tasks wrote, in order."""
        path = self.home.root / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [Note(int(job), int(attempt), word, float(at)) for job, attempt, word, at in map(str.split, lines)]

    def events(self, job: int) -> list[str]:
        return [happening.name for happening in event.of_job(self.db, job)]

    def log(self) -> str:
        return self.home.log("worker").read_text()

    def close(self) -> None:
        """End all workers, see that none is left which a command started, and that the database is whole."""
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
        assert not files.locked(self.home.worker_lock), "a command started a worker beside the crew's"
        assert self.db.value("PRAGMA integrity_check") == "ok"
        assert self.db.rows("PRAGMA foreign_key_check") == []
        self.db.close()


@dataclass
class Toll:
    """What a storm of kills cost."""

    jobs: int
    kills: int
    threads: int
    lost: int = 0
    repeats: int = 0
    after_success: int = 0
    rescue_s: list[float] = field(default_factory=list[float])
    """Seconds from a worker's start to each job that it put back."""


def storm(crew: Crew, number: signal.Signals, *, threads: int, jobs: int, kills: int, seconds: float = 0.05) -> Toll:
    """Put `jobs` in and signal the worker `kills` times in the midst of them; give what it cost."""
    ids = [crew.act(seconds=seconds) for _ in range(jobs)]
    toll = Toll(jobs, kills, threads)
    step = max(1, jobs // (2 * kills))
    for round_ in range(1, kills + 1):
        goal = round_ * step
        began, worker = time.time(), crew.start(THREADS=f"{threads} 1")
        crew.until(lambda goal=goal: crew.count(JobState.SUCCEEDED) >= goal and crew.count(JobState.RUNNING))
        worker.send_signal(number)
        worker.wait(20)
        toll.rescue_s += _rescues(crew, began)
    began = time.time()
    crew.start(THREADS=f"{threads} 1")
    crew.until_ended(*ids)
    toll.rescue_s += _rescues(crew, began)
    toll.lost = jobs - crew.count(JobState.SUCCEEDED)
    begun = [note.job for note in crew.notes() if note.word == "started"]
    toll.repeats = len(begun) - len(set(begun))
    toll.after_success = crew.db.value(
        "SELECT count(*) FROM events AS late JOIN events AS won ON won.job = late.job AND won.name = 'succeeded'"
        " WHERE late.id > won.id AND late.job IS NOT NULL"
    )
    return toll


def _rescues(crew: Crew, since: float) -> list[float]:
    rows = crew.db.rows("SELECT at FROM events WHERE name = 'rescued' AND at >= ?", (since,))
    return [row["at"] - since for row in rows]
