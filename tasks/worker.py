"""The worker: the one always-on process of a home. It holds the lock, runs the queues, rescues, and beats."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn, TextIO

import structlog

from state import service, wakeup
from state.errors import Busy, Internal, MlxqError, StateUnavailable
from state.paths import Home
from state.worker import sign_off
from tasks.heartbeat import Heartbeat
from tasks.queue import QUEUES
from tasks.registry import known_kinds
from tasks.runtime import log, runtime
from tasks.supervision import gateway_config, unclean_boot
from tasks.system import open_files, own_log, process, sd_notify
from tasks.upgrade import back

THREADS = {"ops": 12, "heavy": 3, "bulk": 2}
"""A start holds its thread until the service serves, and one job at a time runs for a service: however many services
come up, threads are left for a restart."""
STOP_GRACE_S = 12.0
"""How long running jobs may take to give their work back; below launchd's ExitTimeOut of 20 s."""
HEALTH_S = 10.0
SETTLE_S, LOOK_S = 10.0, 0.1
"""`rm -r` of a home with its models takes seconds, and the keys may be the last to go."""
INHERITED = "MLXQ_WORKER_LOCK"
"""The variable with the descriptor of the lock that a worker leaves to the version after it."""
LOCK_WAIT_S = 1.0
"""A process that asks whether a worker lives holds the lock for a moment."""


def run(home: Home) -> None:
    """Work until SIGTERM or SIGINT, or until the home is deleted, which ends its services too.

    Raises Busy when a worker of this home already runs, NewerState, StateDamaged, and DeadlinePassed when a job could
    not be stopped: a thread cannot be killed, so the worker exits and its supervisor starts a fresh one. When state.db
    was replaced by another file, as by a backup, this process becomes a fresh worker that reads that one; so it does
    for an upgrade, by the new version and without letting go of the lock.
    """
    home.make()
    back.await_turn(home)
    with _only_one(home) as lock:
        _log_to_stderr()
        runtime.home = home
        runtime.owner = _owner()
        _raise_file_limit()
        stop = _stop_on_signals()
        unclean_boot.handle(runtime.database(), process.boot())
        gateway_config.queue_refresh(runtime.database(), home)
        database = OpenedFile(home.database)
        heartbeat = Heartbeat(stop)
        log.info("worker_started", pid=os.getpid(), version=version("mlxq"), kinds=sorted(known_kinds()))
        _work(home, heartbeat, stop, lambda: not _at_home(home, lock) or database.is_other())
        with suppress(StateUnavailable):  # its row then tells of a dead worker
            sign_off(runtime.database(), runtime.owner)
            if _deleted(home, lock):
                _end_services(home)
        replaced = not stop.is_set() and _is_replaced(home, lock, database)
        log.info("worker_stopped", database_replaced=replaced, successor=runtime.successor)
        if runtime.successor:
            _become(runtime.successor, lock)
    if replaced:
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 (its own command line)
    if heartbeat.problem:
        raise heartbeat.problem


def _become(argv: list[str], lock: IO[str]) -> NoReturn:
    """Become another version's worker, which inherits the lock: no other worker can start in between."""
    os.set_inheritable(lock.fileno(), True)
    os.execve(argv[0], argv, os.environ | {INHERITED: str(lock.fileno())})  # noqa: S606 (an interpreter of mlxq's own)


def _raise_file_limit() -> None:
    """Raise the limit of open files before anything is spawned: engines and gateway inherit it."""
    soft, hard = open_files.raise_limit()
    if open_files.too_low(hard):
        log.warning("open_files_limit", soft=soft, hard=hard, least=open_files.LEAST)


def _owner() -> str:
    """Return this process's identity as text; it outlives no reboot and no reuse of the pid."""
    me = process.identify(os.getpid())
    if me is None:
        raise Internal("This process cannot find itself in the process table.")
    return process.encode(me)


class OpenedFile:
    """A file as it was when this process opened it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stat = path.stat()

    def is_other(self) -> bool:
        """Return whether another file, or none, has its place; no one reads what is written to the old one."""
        try:
            return not os.path.samestat(self._stat, self._path.stat())
        except FileNotFoundError:
            return True
        except OSError:
            return False  # one that cannot be looked at is not known to be gone


def _work(home: Home, heartbeat: Heartbeat, stop: threading.Event, ended: Callable[[], bool]) -> None:
    """Run both queues, the listener and the heartbeat until `stop` or until `ended`; jobs release work then."""
    with wakeup.worker_listener(home) as listener:
        ears = threading.Thread(target=_listen, args=(home, listener), name="listener", daemon=True)
        ears.start()
        beating = threading.Thread(target=heartbeat.run, name="heartbeat", daemon=True)
        beating.start()
        consumers = _consumers()
        sd_notify.notify(sd_notify.READY)
        while not stop.wait(HEALTH_S) and not ended():
            for consumer in consumers:
                consumer.check_worker_health()
            if not beating.is_alive():  # nothing beats and rescues: better no worker than one that looks hung for ever
                heartbeat.problem = Internal(
                    "The worker's heartbeat stopped because of a fault.", hint="mlxq logs worker"
                )
                break
        if stop.is_set() and not runtime.successor:  # else the process runs on, and systemd kills a unit that stops
            sd_notify.notify(sd_notify.STOPPING)
        _wind_down(consumers)
        heartbeat.hand_back()
        wakeup.wake(home)
        ears.join(1.0)


def _at_home(home: Home, lock: IO[str]) -> bool:
    """Return whether the home is still the one that this worker locked; it may be gone, or another in its place."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), home.worker_lock.stat())
    except FileNotFoundError:
        return False
    except OSError:
        return True  # one that cannot be looked at is not known to be gone


def _deleted(home: Home, lock: IO[str]) -> bool:
    """Return whether the home is gone for good: its very files unlinked, not a lock alone, not moved, not unmounted."""
    until = time.monotonic() + SETTLE_S
    while os.fstat(lock.fileno()).st_nlink == 0 and not home.worker_lock.exists():
        if not home.secrets.exists():  # and not the database: a thread of ours may make a new one
            return True
        if time.monotonic() > until:
            return False
        time.sleep(LOOK_S)
    return False


def _is_replaced(home: Home, lock: IO[str], database: OpenedFile) -> bool:
    """Return whether state.db alone is another file; a home that is being deleted loses its lock too."""
    until = time.monotonic() + SETTLE_S
    while database.is_other() and _at_home(home, lock):
        if home.database.exists() or time.monotonic() > until:
            return True
        time.sleep(LOOK_S)
    return False


def _end_services(home: Home) -> None:
    """End the services of a deleted home: their keys are gone, and no worker could watch or stop them any more.

    The rows can be read as long as this process has the deleted file open. Raises StateUnavailable.
    """
    for row in service.listing(runtime.database()):
        for orphan in process.find_orphans(str(home.root), row.name):
            process.stop(orphan, STOP_GRACE_S)


def _consumers() -> list[Any]:
    """Start a Huey consumer for each queue; the watchdog's ticks belong to ops."""
    consumers = [
        QUEUES[name].create_consumer(
            workers=count, periodic=name == "ops", scheduler_interval=1 if name == "ops" else 60
        )
        for name, count in THREADS.items()
    ]
    for consumer in consumers:
        consumer.start()
    return consumers


def _wind_down(consumers: list[Any]) -> None:
    runtime.stopping.set()
    runtime.bell.set()
    until = time.monotonic() + STOP_GRACE_S
    for consumer in consumers:
        consumer.stop_flag.set()
    for consumer in consumers:
        for _, thread in consumer.worker_threads:
            thread.join(max(0.0, until - time.monotonic()))


@contextmanager
def _only_one(home: Home) -> Generator[IO[str]]:
    """Hold the worker's lock and return it; the kernel frees it when this process dies, however it dies."""
    with _inherited(home) or home.worker_lock.open("a+") as lock:
        if not _taken(lock):
            lock.seek(0)
            raise Busy(f"A worker of {home.root} already runs (pid {lock.read().strip()}).", hint="mlxq status")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock


def _inherited(home: Home) -> IO[str] | None:
    """Return the lock's file that the version before left open for this process; None when there is none."""
    number = os.environ.pop(INHERITED, "")
    try:
        if not number or not os.path.samestat(os.fstat(int(number)), home.worker_lock.stat()):
            return None
        os.set_inheritable(int(number), False)
        return os.fdopen(int(number), "a+")
    except (OSError, ValueError):
        return None


def _taken(lock: IO[str]) -> bool:
    """Take the lock within LOCK_WAIT_S, or say that another worker has it."""
    until = time.monotonic() + LOCK_WAIT_S
    while time.monotonic() < until:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def _listen(home: Home, listener: wakeup.Listener) -> None:
    """Pass wake-ups on, and make the socket and the worker's log again where they were deleted."""
    while not runtime.stopping.is_set():
        if listener.wait(own_log.LOOK_S):
            runtime.bell.set()
        elif _remade(home, listener):
            log.warning("made_again", socket=str(listener.path))
            runtime.bell.set()


def _remade(home: Home, listener: wakeup.Listener) -> bool:
    """Return whether the socket had to be made again; never in a home that is being deleted."""
    if not home.worker_lock.exists():
        return False
    with suppress(OSError, MlxqError):
        own_log.ensure(home.log("worker"))
        return listener.ensure()
    return False


def _stop_on_signals() -> threading.Event:
    stop = runtime.stop

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    return stop


class Unfailing:
    """A stream whose writes may be lost and never raise: a log on a full disk must not cost a job its outcome."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write, or lose it."""
        with runtime.logging, suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, or not."""
        with suppress(OSError):
            self.stream.flush()


def _log_to_stderr() -> None:
    """JSON lines, ours and Huey's warnings alike; its parent points stderr at logs/worker.log."""
    out = Unfailing(sys.stderr)
    logging.basicConfig(stream=out, level=logging.WARNING, format="%(message)s")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=out),  # pyright: ignore[reportArgumentType] (it writes and flushes, no more)
        cache_logger_on_first_use=True,
    )
