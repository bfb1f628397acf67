"""What every test stands on: a home of its own, and no settings leaking in from outside."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from state import lock
from state.db import Database, open_database
from state.paths import Home
from tasks.system import process


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take the caller's settings away, and keep a test that names no home out of the person's."""
    for name in list(os.environ):
        if name.startswith("MLXQ_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLXQ_HOME", str(tmp_path / "unnamed-home"))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One migrated state.db; making it costs seconds, copying it nothing."""
    home = Home(tmp_path_factory.mktemp("empty") / "home").make()
    db = open_database(home)
    db.run("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return home.database


@pytest.fixture
def home(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """Give a home with an empty database, named by MLXQ_HOME; a worker that a command started there ends with it."""
    made = Home(tmp_path / "home").make()
    shutil.copyfile(empty_database, made.database)
    made.database.chmod(0o600)
    monkeypatch.setenv("MLXQ_HOME", str(made.root))
    yield made
    end_worker(made)


def end_worker(home: Home) -> None:
    """End the worker that a command started in this home; one that is only starting is waited for."""
    until = time.monotonic() + 20.0
    while lock.held(home.run / "starter.lock") and time.monotonic() < until:
        pid = home.worker_lock.read_text().strip() if lock.held(home.worker_lock) else ""
        worker = process.identify(int(pid)) if pid else None
        if worker and worker.pid != os.getpid():
            process.stop(worker, 20.0)
        time.sleep(0.05)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def db(home: Home, clock: Clock) -> Iterator[Database]:
    """Give the ledger of `home`, with the test's clock."""
    opened = open_database(home, clock=clock)
    yield opened
    opened.close()
