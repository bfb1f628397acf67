"""The worker: the one always-on process of a home. It holds the lock, rescues, runs the lanes, and beats."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import version
from types import FrameType
from typing import Any

import structlog

from state import ledger, wake
from state.db import Database
from state.errors import Busy, Internal
from state.paths import Home
from tasks.queue import LANES, log, runtime
from tasks.registry import known_kinds
from tasks.world import notify, process

THREADS = {"ops": 4, "heavy": 3}
BEAT_S = 5.0
"""How often the worker's row says that it is alive; a hung worker stops saying so."""
STOP_GRACE_S = 12.0
"""How long running jobs may take to give their work back; below launchd's ExitTimeOut of 20 s."""
BALLAST_BYTES = 16 * 1024 * 1024
HEALTH_S = 10.0


def run(home: Home) -> None:
    """Work until SIGTERM or SIGINT. Raises Busy when a worker of this home already runs."""
    home.make()
    with _only_one(home):
        _log_to_stderr()
        runtime.home = home
        runtime.owner = _owner()
        db = runtime.database()
        _lay_ballast(home)
        rescued = ledger.rescue(db, lambda owner: owner == runtime.owner)
        _say_alive(db, started=True)
        log.info(
            "worker_started", pid=os.getpid(), version=version("mlxq"), rescued=rescued, kinds=sorted(known_kinds())
        )
        stop = _stop_on_signals()
        _work(home, stop)
        db.run("DELETE FROM worker WHERE owner = ?", (runtime.owner,))
        log.info("worker_stopped")


def _owner() -> str:
    """Give this process's identity as text; it outlives no reboot and no reuse of the pid."""
    me = process.identify(os.getpid())
    if me is None:
        raise Internal("This process cannot find itself in the process table.")
    return process.encode(me)


def _work(home: Home, stop: threading.Event) -> None:
    """Run both lanes, the listener and the beat until `stop`; then let jobs give their work back."""
    with wake.worker_listener(home) as listener:
        threading.Thread(target=_listen, args=(listener,), name="listener", daemon=True).start()
        threading.Thread(target=_beat, name="beat", daemon=True).start()
        consumers = [
            LANES[name].create_consumer(
                workers=count, periodic=name == "ops", scheduler_interval=1 if name == "ops" else 60
            )
            for name, count in THREADS.items()
        ]
        for consumer in consumers:
            consumer.start()
        _take_signals(stop)
        notify.notify(notify.READY)
        while not stop.wait(HEALTH_S):
            for consumer in consumers:
                consumer.check_worker_health()
        _wind_down(consumers)


def _wind_down(consumers: list[Any]) -> None:
    notify.notify(notify.STOPPING)
    runtime.stopping.set()
    runtime.bell.ring()
    until = time.monotonic() + STOP_GRACE_S
    for consumer in consumers:
        consumer.stop_flag.set()
    for consumer in consumers:
        for _, thread in consumer.worker_threads:
            thread.join(max(0.0, until - time.monotonic()))


@contextmanager
def _only_one(home: Home) -> Generator[None]:
    """Hold the worker's lock; the kernel frees it when this process dies, however it dies."""
    with home.worker_lock.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            lock.seek(0)
            raise Busy(
                f"A worker of {home.root} already runs (pid {lock.read().strip()}).", hint="mlxq status"
            ) from problem
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _listen(listener: wake.Listener) -> None:
    while not runtime.stopping.is_set():
        if listener.wait(None):
            runtime.bell.ring()


def _beat() -> None:
    while not runtime.stopping.wait(BEAT_S):
        _say_alive(runtime.database(), started=False)
        notify.notify(notify.ALIVE)


def _say_alive(db: Database, *, started: bool) -> None:
    """Write the worker's row; a beat may be lost at power loss, so it does not wait for the disk."""
    db.connection.execute(f"PRAGMA synchronous={'FULL' if started else 'NORMAL'}")
    now = db.now()
    runtime.persist(
        lambda db: _ignore(
            db.run(
                "INSERT INTO worker (id, owner, pid, version, started_at, beat_at) VALUES (1, ?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET beat_at = excluded.beat_at,"
                " started_at = CASE WHEN owner = excluded.owner THEN started_at ELSE excluded.started_at END,"
                " owner = excluded.owner, pid = excluded.pid, version = excluded.version",
                (runtime.owner, os.getpid(), version("mlxq"), now, now),
            )
        )
    )


def _lay_ballast(home: Home) -> None:
    """Keep some disk in reserve, so that a full one can be recorded and left again."""
    if home.ballast.exists():
        return
    try:
        with home.ballast.open("wb") as file:
            file.write(b"\0" * BALLAST_BYTES)
    except OSError as problem:
        home.ballast.unlink(missing_ok=True)
        log.warning("no_ballast", error=str(problem))


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    _take_signals(stop)
    return stop


def _take_signals(stop: threading.Event) -> None:
    """Take the signals back: starting a Huey consumer claims them."""

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)


def _log_to_stderr() -> None:
    """JSON lines, ours and Huey's warnings alike; whoever starts the worker points stderr at logs/worker.log."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def _ignore(_: object) -> None:
    return None
