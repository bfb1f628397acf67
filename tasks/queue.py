"""Huey over state.db: the ledger is the queue, Huey executes and schedules. The only file that knows Huey.

Plain SqliteHuey deletes a message before it runs it and loses it with the process. Here `enqueue` inserts a row of
`jobs` and `dequeue` claims one, so a job that was accepted ends as its states say. Messages are JSON:
a pickle in the database would run code. Ticks of the watchdog never touch the database; they are kept in memory,
one of each at most, and thrown away when they are older than their period.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import structlog

from state import ledger
from state.db import Database, open_database
from state.errors import DeadlinePassed, Internal, MlxqError
from state.job import Claim, Fenced, New, cancel_asked
from state.paths import Home, home
from tasks.kinds import KINDS, Kind, backoff, new
from tasks.world.child import Cancelled, Later

for unused in ("redis", "psycopg"):
    sys.modules.setdefault(unused, None)  # pyright: ignore[reportArgumentType] (None makes the import fail; Huey copes, 18 MB saved)

from huey.api import Huey  # noqa: E402 (after the lines above)
from huey.consumer import Consumer, Scheduler  # noqa: E402
from huey.registry import Message  # noqa: E402
from huey.serializer import Serializer  # noqa: E402
from huey.storage import BlackHoleStorage  # noqa: E402

NAMESPACE = "mlxq"
"""Stored task names are mlxq.<kind>: pinned, so that moving a module never loses a queued job."""
GUARD_S = 5.0
"""An idle lane looks at its queue this often even when no wake-up came."""
PROGRESS_S = 0.4
"""Progress is written at most this often."""
DISK_FULL_WAIT_S = 2.0

log = structlog.get_logger("mlxq")


class Released(Exception):
    """The worker stops; the job goes back to the queue. Later and Cancelled are the other ways to end early."""


class Bell:
    """Lets idle threads sleep until a wake-up; remembers one that came while nobody slept."""

    def __init__(self) -> None:
        self.rung = 0
        self._condition = threading.Condition()

    def ring(self) -> None:
        """Wake every sleeper."""
        with self._condition:
            self.rung += 1
            self._condition.notify_all()

    def wait(self, seen: int, timeout_s: float) -> None:
        """Sleep until somebody rings after `seen` was read, or the time is over."""
        with self._condition:
            self._condition.wait_for(lambda: self.rung != seen, timeout_s)


class Runtime:
    """What every thread of one worker shares."""

    def __init__(self) -> None:
        self.home: Home = home()
        self.owner = ""
        self.bell = Bell()
        self.stopping = threading.Event()
        self._local = threading.local()

    def database(self) -> Database:
        """Give this thread's connection."""
        if not hasattr(self._local, "database"):
            self._local.database = open_database(self.home, checkpoints=True)
        return self._local.database

    def persist(self, write: Callable[[Database], None]) -> None:
        """Write an outcome; while the disk is full, give up the ballast and try again until the worker stops."""
        while True:
            try:
                return write(self.database())
            except sqlite3.OperationalError as problem:
                if "full" not in str(problem):
                    raise
                self.home.ballast.unlink(missing_ok=True)
                log.error("disk_full", database=str(self.home.database))  # noqa: TRY400 (a known state, no traceback)
                if self.stopping.wait(DISK_FULL_WAIT_S):
                    raise Released from problem


runtime = Runtime()


class LedgerStorage(BlackHoleStorage):
    """Huey's storage over the ledger, for one lane; what Huey would keep elsewhere is not kept."""

    blocking = True

    def __init__(self, name: str, **_: Any) -> None:
        super().__init__(name)
        self.lane = name
        self.kinds: set[str] = set()
        self.ticks: dict[str, tuple[float, bytes]] = {}

    def enqueue(self, data: bytes, priority: float | None = None) -> None:  # noqa: ARG002 (Huey's signature)
        """Put a job in the ledger, or a tick in memory."""
        message = json.loads(data)
        name = message["name"].removeprefix(f"{NAMESPACE}.")
        if name in TICKS:
            self.ticks[name] = (time.monotonic(), data)
            runtime.bell.ring()
        else:
            runtime.persist(lambda db: _ignore(ledger.submit(db, new(name, message["kwargs"]), source="chain")))

    def dequeue(self) -> bytes | None:  # pyright: ignore[reportIncompatibleMethodOverride] (the base says None alone)
        """Give the next tick or job, or None after a sleep in which nothing came."""
        seen = runtime.bell.rung
        found = self._tick() or self._claim()
        if found is None and not runtime.stopping.is_set():
            runtime.bell.wait(seen, self._sleep_s())
        return found

    def queue_size(self) -> int:  # pyright: ignore[reportIncompatibleMethodOverride] (the base says 0 alone)
        """Give the number of jobs that wait in this lane."""
        return int(
            runtime.database().value("SELECT count(*) FROM jobs WHERE state = 'queued' AND lane = ?", (self.lane,))
        )

    def _tick(self) -> bytes | None:
        """Give a tick that is still fresh; a stale one (a busy lane, a sleeping Mac) is dropped."""
        while self.ticks:
            with contextlib.suppress(KeyError):  # another thread was quicker
                name, (at, data) = self.ticks.popitem()
                if time.monotonic() - at <= TICKS[name]:
                    return data
        return None

    def _claim(self) -> bytes | None:
        if runtime.stopping.is_set():
            return None
        held = ledger.claim(runtime.database(), self.lane, self.kinds, runtime.owner)
        if held is None:
            return None
        identifier = f"{held.id}.{held.attempt}"
        return _encode(Message(identifier, f"{NAMESPACE}.{held.kind}", args=[], kwargs={"held": asdict(held)}))

    def _sleep_s(self) -> float:
        due = ledger.next_due(runtime.database(), self.lane)
        return GUARD_S if due is None else min(GUARD_S, due + 0.001)


class JsonSerializer(Serializer):
    """Messages as JSON."""

    def _serialize(self, data: Message) -> bytes:
        return _encode(data)

    def _deserialize(self, data: bytes) -> Message:
        return Message(**json.loads(data))


class EverySecond(Scheduler):
    """Huey looks at periodic tasks once a minute; the watchdog needs seconds (the way huey issue 608 blesses)."""

    periodic_task_seconds = 1


class LaneConsumer(Consumer):
    """Huey's consumer with the quick scheduler."""

    scheduler_class = EverySecond


class Lane(Huey):
    """One set of worker threads with its own queue."""

    storage: LedgerStorage

    def __init__(self, name: str) -> None:
        super().__init__(name, results=False, serializer=JsonSerializer(), storage_class=LedgerStorage)

    def create_consumer(self, **options: Any) -> LaneConsumer:
        """Give the consumer with the quick scheduler."""
        return LaneConsumer(self, **options)


LANES: Mapping[str, Lane] = {"ops": Lane("ops"), "heavy": Lane("heavy")}
TICKS: dict[str, float] = {}
"""Period in seconds of every tick."""


class Context:
    """What a task is given beside its arguments."""

    def __init__(self, held: Claim, kind: Kind) -> None:
        self.held = held
        self.kind = kind
        self.db = runtime.database()
        self.home = runtime.home
        self.fan_out: list[New] = []
        self._until = time.monotonic() + kind.limit_s
        self._reported = 0.0
        self._phase: str | None = None

    @property
    def remaining_s(self) -> float:
        """Seconds until this attempt's time limit."""
        return max(0.0, self._until - time.monotonic())

    def check(self) -> None:
        """Stop here when the job shall end. Raises Cancelled, Released, DeadlinePassed, Fenced."""
        if cancel_asked(self.db, self.held):
            raise Cancelled
        if runtime.stopping.is_set():
            raise Released
        if not self.remaining_s:
            raise DeadlinePassed(
                f"Job {self.held.id} ({self.kind.name}) ran over its limit of {self.kind.limit_s:g} s."
            )

    def cancelled(self) -> bool:
        """Tell a child process's keeper whether it shall stop."""
        try:
            self.check()
        except (Cancelled, Released, DeadlinePassed, Fenced):
            return True
        return False

    def wait(self, seconds: float) -> None:
        """Sleep in a task, waking at once when the job shall end. Raises as check does."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check()
            runtime.stopping.wait(min(left, 0.25))
        self.check()

    def report(self, phase: str, **progress: Any) -> None:
        """Tell how far the job is, e.g. `"fetch", done=10, total=20, unit="bytes"`. Raises Cancelled, Fenced."""
        now = time.monotonic()
        if phase == self._phase and now - self._reported < PROGRESS_S:
            return
        self._phase, self._reported = phase, now
        if ledger.report(self.db, self.held, phase, progress):
            raise Cancelled

    def then(self, job: New) -> None:
        """Put another job of this chain in when this one succeeds, in the same transaction."""
        self.fan_out.append(job)


Task = Callable[..., Any]


def job(name: str) -> Callable[[Task], Task]:
    """Register a task under its pinned name; KINDS says how its jobs behave."""
    kind = KINDS[name]
    lane = LANES[kind.lane]

    def register(function: Task) -> Task:
        def perform(held: dict[str, Any]) -> None:
            _perform(kind, function, Claim(**held))

        lane.task(name=name, __module__=NAMESPACE)(perform)
        lane.storage.kinds.add(name)
        return function

    return register


def tick(name: str, every_s: float) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a periodic task of the watchdog, run every `every_s` seconds by the monotonic clock."""
    TICKS[name] = every_s
    due = {"at": time.monotonic()}

    def is_due(_: object) -> bool:
        now = time.monotonic()
        if now < due["at"]:
            return False
        due["at"] = now + every_s - 0.5  # the scheduler looks once a second
        return True

    def register(function: Callable[[], None]) -> Callable[[], None]:
        LANES["ops"].periodic_task(is_due, name=name, __module__=NAMESPACE)(function)
        return function

    return register


def _perform(kind: Kind, function: Task, held: Claim) -> None:
    """Run one claimed job and write how it ended."""
    context = Context(held, kind)
    with structlog.contextvars.bound_contextvars(job=held.id, kind=kind.name, attempt=held.attempt):
        log.info("job_started", args=held.args)
        try:
            outcome = _outcome(context, function)
            runtime.persist(outcome)
        except Released:
            log.warning("job_left_to_rescue")
        except Fenced:
            log.warning("job_fenced")


def _outcome(context: Context, function: Task) -> Callable[[Database], None]:
    """Run the task; give the write that says how it ended."""
    held = context.held
    try:
        result = function(context, **held.args)
    except Later as later:
        return _snoozing(held, later)
    except (Cancelled, Released) as stopped:
        return _ending(context, stopped)
    except MlxqError as problem:
        return _failing(context, problem)
    except Fenced:
        raise
    except Exception as problem:
        log.exception("job_crashed")
        return _failing(
            context, Internal(f"{kind_of(problem)} in task {held.kind}: {problem}", hint="mlxq logs worker")
        )
    log.info("job_succeeded")
    return lambda db: ledger.succeed(db, held, result, context.fan_out)


def _snoozing(held: Claim, later: Later) -> Callable[[Database], None]:
    log.info("job_snoozed", wait_s=later.after_s, why=later.reason)
    return lambda db: ledger.snooze(db, held, later.after_s, later.reason)


def _ending(context: Context, stopped: Exception) -> Callable[[Database], None]:
    """Choose how a stopped job ends: a child says Cancelled alike for a person's wish, a stop and a time limit."""
    held = context.held
    try:
        context.check()
    except Released:
        log.info("job_released")
        return lambda db: ledger.release(db, held)
    except DeadlinePassed as late:
        return _failed(held, late)
    except Cancelled as asked:
        stopped = asked
    log.info("job_cancelled", by=kind_of(stopped))
    return lambda db: ledger.end_cancelled(db, held)


def _failing(context: Context, problem: MlxqError) -> Callable[[Database], None]:
    """Choose what an error leads to: the end that was asked for meanwhile, another try, or failure."""
    try:
        context.check()
    except (Cancelled, Released, DeadlinePassed) as stopped:
        return _ending(context, stopped)
    return _failed(context.held, problem)


def _failed(held: Claim, problem: MlxqError) -> Callable[[Database], None]:
    log.error("job_failed", code=problem.code, error=problem.message, retry=problem.retry)
    if problem.retry and held.failures + 1 < held.max_attempts:
        wait_s = backoff(held.failures + 1)
        return lambda db: ledger.retry_later(db, held, problem, wait_s)
    return lambda db: ledger.fail(db, held, problem)


def kind_of(problem: BaseException) -> str:
    """Name an exception as a person would read it in a log."""
    return type(problem).__name__


def _encode(message: Message) -> bytes:
    return json.dumps(message._asdict()).encode()


def _ignore(_: object) -> None:
    return None
