"""What every thread of one worker shares: its home, its identity, its connections, the jobs it has in hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from state.db import Database, open_database
from state.errors import StateUnavailable
from state.job import Claim
from state.paths import Home, get_home

AGAIN_S = 2.0
"""Between two tries to write an outcome that could not be written."""

log = structlog.get_logger("mlxq")


class Released(Exception):
    """The worker stops; the job goes back to the queue. Later and Cancelled are the other ways to end early."""


class WakeSignal:
    """Lets idle threads sleep until a wake-up; remembers one that came while no thread slept."""

    def __init__(self) -> None:
        self.rung = 0
        self._condition = threading.Condition()

    def set(self) -> None:
        """Wake every sleeper."""
        with self._condition:
            self.rung += 1
            self._condition.notify_all()

    def wait(self, rung: int, timeout_s: float) -> None:
        """Sleep until a call to `set` after `rung` was read, or the time is over."""
        with self._condition:
            self._condition.wait_for(lambda: self.rung != rung, timeout_s)


@dataclass(frozen=True)
class RunningJob:
    """A job that a thread of this worker is at."""

    claim: Claim
    until: float
    """Monotonic seconds at which its time limit ends."""

    @property
    def overdue_s(self) -> float:
        """Seconds past the time limit; negative before it."""
        return time.monotonic() - self.until


class Runtime:
    """What every thread of one worker shares."""

    def __init__(self) -> None:
        self.home: Home = get_home()
        self.owner = ""
        self.bell = WakeSignal()
        self.stop = threading.Event()
        """Set by who wants the worker to end; `stopping` is set once it does."""
        self.successor: list[str] | None = None
        """The command line that this process becomes when the worker has ended."""
        self.stopping = threading.Event()
        self.logging = threading.Lock()
        """Held while a line is written to the worker's log, and while that log is cut."""
        self.in_hand: dict[tuple[int, int], RunningJob] = {}
        """By job and attempt: a thread that lost its claim may still be at an older attempt."""
        self._local = threading.local()

    def database(self) -> Database:
        """Return this thread's connection."""
        if not hasattr(self._local, "database"):
            self._local.database = open_database(self.home)
        return self._local.database

    def hand_over(self, argv: list[str]) -> None:
        """Have this process become `argv`, with the worker's lock, once running jobs have given back their work."""
        self.successor = argv
        self.stop.set()

    @contextmanager
    def having(self, claim: Claim, limit_s: float) -> Generator[RunningJob]:
        """Count a job as in hand meanwhile."""
        key = (claim.id, claim.attempt)
        self.in_hand[key] = RunningJob(claim, time.monotonic() + limit_s)
        try:
            yield self.in_hand[key]
        finally:
            del self.in_hand[key]

    def persist(self, write: Callable[[Database], None]) -> None:
        """Write an outcome; while state.db cannot be written (disk full, locked), again and again.

        Raises Released when the worker stops before that.
        """
        while True:
            try:
                return write(self.database())
            except StateUnavailable as problem:
                log.error("not_written", error=problem.message, again_s=AGAIN_S)  # noqa: TRY400 (a known state)
                if self.stopping.wait(AGAIN_S):
                    raise Released from problem


runtime = Runtime()
