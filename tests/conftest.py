"""What every test stands on: a home of its own, no settings leaking in from outside, Ctrl-C that works, time limits."""

from __future__ import annotations

import faulthandler
import fcntl
import os
import shutil
import signal
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from support import examples, real_home
from support.clock import Clock
from support.scheduling import ByFile
from xdist.remote import Producer

from state import files
from state.db import Database, open_database
from state.paths import Home
from tasks.system import process

GRACE_S = 60.0
"""How much longer than a test's limit one of its phases may take until the process is ended."""
MOST_PROCESSES = 4

real_home.guard()
# Where Python may not store what it compiled, each of thousands of processes compiles what it imports: 0.2 s a command.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# What runs with `&`, under nohup or in many runners ignores SIGINT, and so would each program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# An example that is slow says that the machine is crowded.
hypothesis.settings.register_profile(
    "crowded",
    deadline=None,
    max_examples=examples.share(100),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("crowded")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes run the tests: 0, which is this one, where files or single tests are named."""
    named = any(".py" in argument for argument in config.args)
    return 0 if named else min(os.cpu_count() or 1, MOST_PROCESSES)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile | None:
    return ByFile(config, log) if config.option.dist == "loadfile" else None


def _within_limit(item: pytest.Item) -> Generator[None, object, object]:
    """End this process, with every thread's stack, when a phase of a test outlives the test's limit.

    pytest-timeout fails a test by a signal that comes once; a teardown that hangs after it would hang for ever. xdist
    reports such a test as failed and starts another process for the others. Each phase sets the timer again, because
    pytest clears it when it reports a failure.
    """
    limit_s = _limit_s(item)
    if limit_s and not item.config.getoption("usepdb"):
        stderr = item.config.stash[fault_handler_stderr_fd_key]
        faulthandler.dump_traceback_later(limit_s + GRACE_S, exit=True, file=stderr)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


pytest_runtest_setup = pytest.hookimpl(wrapper=True)(_within_limit)
pytest_runtest_call = pytest.hookimpl(wrapper=True)(_within_limit)
pytest_runtest_teardown = pytest.hookimpl(wrapper=True)(_within_limit)


def _limit_s(item: pytest.Item) -> float:
    """Return the seconds that pytest-timeout allows a test; 0 is no limit."""
    marker = item.get_closest_marker("timeout")
    chosen = item.config.getoption("timeout")
    if marker and marker.args:
        return float(marker.args[0])
    return float(item.config.getini("timeout") if chosen is None else chosen)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take the caller's settings away, and keep a test that names no home out of the person's."""
    for name in list(os.environ):
        if name.startswith("MLXQ_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLXQ_HOME", str(tmp_path / "unnamed-home"))


@pytest.fixture(autouse=True)
def _no_real_home() -> Iterator[None]:
    """Fail the test during which anything, also a thread of an earlier one, reached for the real home."""
    yield
    stacks = real_home.taken()
    assert not stacks, f"the real home was touched:\n{stacks}"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One migrated state.db; making it costs seconds, copying it nothing."""
    home = Home(tmp_path_factory.mktemp("empty") / "home").make()
    db = open_database(home)
    db.run("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return home.database


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of all processes of this run, for what is dear to make and never changed."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def builtin_model(shared_folder: Path) -> Path:
    """Return the built-in model."""
    from tasks.weights import builtin

    with (shared_folder / "builtin.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return builtin.ensure(shared_folder / "builtin")


@pytest.fixture
def home(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """Give a home with an empty database, named by MLXQ_HOME; a worker that a command started there ends with it."""
    made = Home(tmp_path / "home").make()
    shutil.copyfile(empty_database, made.database)
    made.database.chmod(0o600)
    monkeypatch.setenv("MLXQ_HOME", str(made.root))
    yield made
    _end_watchers()
    end_worker(made)


def _end_watchers() -> None:
    """End the thread that waits for the exits of services: one of a later test would be recorded in its home."""
    if repairs := sys.modules.get("tasks.supervision.repairs"):
        while repairs._watchers:
            repairs._watchers.pop().close()


def end_worker(home: Home) -> None:
    """End the worker that a command started in this home; one that is only starting is waited for."""
    until = time.monotonic() + 20.0
    while files.locked(home.run / "starter.lock") and time.monotonic() < until:
        pid = home.worker_lock.read_text().strip() if files.locked(home.worker_lock) else ""
        worker = process.identify(int(pid)) if pid else None
        if worker and worker.pid != os.getpid():
            process.stop(worker, 20.0)
        time.sleep(0.05)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def db(home: Home, clock: Clock) -> Iterator[Database]:
    """Give the ledger of `home`, with the test's clock."""
    opened = open_database(home, clock=clock)
    yield opened
    opened.close()
