"""Huey over state.db: the ledger is the queue, Huey executes and schedules. The only file that knows Huey.

Plain SqliteHuey deletes a message before it runs it and loses it with the process. Here `enqueue` inserts a row of
`jobs` and `dequeue` claims one, so a job that was accepted ends as its states say. Messages are JSON:
a pickle in the database would run code. Ticks of the watchdog never touch the database; they are kept in memory,
one of each at most, and thrown away when they are older than their period.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, cast

from state import ledger
from state.errors import StateUnavailable, UsageProblem
from state.job import Claim
from tasks.executor import Context, Task, perform
from tasks.kinds import KINDS, new
from tasks.plan.cron import Cron, Matches
from tasks.runtime import AGAIN_S, Released, log, runtime

__all__ = ["QUEUES", "Context", "Released", "crontab", "job", "tick"]

for unused in ("redis", "psycopg"):
    sys.modules.setdefault(unused, None)  # pyright: ignore[reportArgumentType] (None makes the import fail; Huey copes, 18 MB saved)

from huey.api import Huey  # noqa: E402 (after the lines above)
from huey.api import crontab as huey_crontab  # noqa: E402
from huey.consumer import Consumer, Scheduler  # noqa: E402
from huey.registry import Message  # noqa: E402
from huey.serializer import Serializer  # noqa: E402
from huey.storage import BlackHoleStorage  # noqa: E402

NAMESPACE = "mlxq"
"""Stored task names are mlxq.<kind>: pinned, so that moving a module never loses a queued job."""
GUARD_S = 5.0
"""An idle queue looks at its queue this often even when no wake-up came."""


class LedgerStorage(BlackHoleStorage):
    """Huey's storage over the ledger, for one queue; what Huey would keep elsewhere is not kept."""

    blocking = True

    def __init__(self, name: str, **_: Any) -> None:
        super().__init__(name)
        self.queue = name
        self.kinds: set[str] = set()
        self.ticks: dict[str, tuple[float, bytes]] = {}

    def enqueue(self, data: bytes, priority: float | None = None) -> None:  # noqa: ARG002 (Huey's signature)
        """Put a job in the ledger, or a tick in memory."""
        message = json.loads(data)
        name = message["name"].removeprefix(f"{NAMESPACE}.")
        if name in TICKS:
            self.ticks[name] = (time.monotonic(), data)
            runtime.bell.set()
        else:
            ledger.enqueue(runtime.database(), new(name, message["kwargs"]), source="chain")

    def dequeue(self) -> bytes | None:  # pyright: ignore[reportIncompatibleMethodOverride] (the base says None alone)
        """Return the next tick or job, or None after a sleep in which nothing came."""
        rung = runtime.bell.rung
        message = self._tick() or self._claim()
        if message is None and not runtime.stopping.is_set():
            runtime.bell.wait(rung, self._sleep_s())
        return message

    def queue_size(self) -> int:  # pyright: ignore[reportIncompatibleMethodOverride] (the base says 0 alone)
        """Return the number of jobs that wait in this queue."""
        return int(
            runtime.database().value("SELECT count(*) FROM jobs WHERE state = 'queued' AND queue = ?", (self.queue,))
        )

    def _tick(self) -> bytes | None:
        """Return a tick that is still fresh; a stale one (a busy queue, a sleeping Mac) is dropped."""
        while self.ticks:
            with contextlib.suppress(KeyError):  # another thread was quicker
                name, (at, data) = self.ticks.popitem()
                if time.monotonic() - at <= TICKS[name]:
                    return data
        return None

    def _claim(self) -> bytes | None:
        if runtime.stopping.is_set():
            return None
        try:
            claim = ledger.claim(runtime.database(), self.queue, self.kinds, runtime.owner)
        except StateUnavailable as problem:  # the job is still there; the next look is AGAIN_S later
            log.error("not_claimed", error=problem.message, again_s=AGAIN_S)  # noqa: TRY400 (a known state)
            runtime.stopping.wait(AGAIN_S)
            return None
        if claim is None:
            return None
        identifier = f"{claim.id}.{claim.attempt}"
        return _encode(Message(identifier, f"{NAMESPACE}.{claim.kind}", args=[], kwargs={"claim": asdict(claim)}))

    def _sleep_s(self) -> float:
        try:
            due = ledger.next_due(runtime.database(), self.queue, self.kinds)
        except StateUnavailable:  # said where the job is claimed
            return AGAIN_S
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


class QueueConsumer(Consumer):
    """Huey's consumer with the quick scheduler; signals are the worker's."""

    scheduler_class = EverySecond

    def _set_signal_handlers(self) -> None:
        """Take none: Huey stops at SIGTERM without waiting for what runs."""


class TaskQueue(Huey):
    """One set of worker threads with its own queue."""

    storage: LedgerStorage

    def __init__(self, name: str) -> None:
        super().__init__(name, results=False, serializer=JsonSerializer(), storage_class=LedgerStorage)

    def create_consumer(self, **options: Any) -> QueueConsumer:
        """Return the consumer with the quick scheduler."""
        return QueueConsumer(self, **options)


QUEUES: Mapping[str, TaskQueue] = {name: TaskQueue(name) for name in ("ops", "heavy", "bulk")}
TICKS: dict[str, float] = {}
"""Period in seconds of every tick."""


LONGEST_CRON = 100


def crontab(text: str) -> Cron:
    """Return when a cron text is due, as Huey's parser reads it. Raises UsageProblem."""
    fields = text.split() if len(text) <= LONGEST_CRON else []
    try:
        minute, hour, day, month, weekday = fields
        matches = cast("Matches", huey_crontab("*", "*", day, month, weekday, strict=True))
        at = cast("Matches", huey_crontab(minute, hour, "*", "*", "*", strict=True))
    except ValueError as problem:
        raise UsageProblem(
            f"{text!r} is no cron text: minute, hour, day of the month, month and day of the week (0 is Sunday) are "
            "numbers, ranges (1-5), lists (1,15), steps (*/10) or *.",
            hint="mlxq schedule add --help",
        ) from problem
    midnight = datetime(2024, 1, 1)  # noqa: DTZ001 (any day will do)
    return Cron(matches, tuple(minute for minute in range(1440) if at(midnight + timedelta(minutes=minute))))


def job(name: str) -> Callable[[Task], Task]:
    """Register a task under its pinned name; KINDS says how its jobs behave."""
    kind = KINDS[name]
    queue = QUEUES[kind.queue]

    def register(function: Task) -> Task:
        def run(claim: dict[str, Any]) -> None:
            perform(kind, function, Claim(**claim))

        queue.task(name=name, __module__=NAMESPACE)(run)
        queue.storage.kinds.add(name)
        return function

    return register


def tick(name: str, every_s: float) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a periodic task of the watchdog, run every `every_s` seconds by the monotonic clock.

    One that takes longer than its period is not run beside itself: a slow tick must not fill the queue.
    """
    TICKS[name] = every_s
    due = {"at": time.monotonic()}

    def is_due(_: object) -> bool:
        now = time.monotonic()
        if now < due["at"]:
            return False
        due["at"] = now + every_s - 0.5  # the scheduler looks once a second
        return True

    def register(function: Callable[[], None]) -> Callable[[], None]:
        QUEUES["ops"].periodic_task(is_due, name=name, __module__=NAMESPACE)(_alone(function))
        return function

    return register


def _alone(function: Callable[[], None]) -> Callable[[], None]:
    """Make a call do nothing while another one runs.

    What keeps state.db from it, such as a full disk, is logged once until it works again; the next call comes soon.
    """
    busy, logged = threading.Lock(), set[str]()

    @functools.wraps(function)
    def once() -> None:
        if busy.acquire(blocking=False):
            try:
                function()
                logged.clear()
            except StateUnavailable as problem:
                if problem.message not in logged:
                    log.error("tick_failed", error=problem.message)  # noqa: TRY400 (a known state)
                logged.add(problem.message)
            finally:
                busy.release()

    return once


def _encode(message: Message) -> bytes:
    return json.dumps(message._asdict()).encode()
