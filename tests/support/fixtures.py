"""Fixtures that the unit tests share with the tests that start processes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import scene

from state.db import Database, open_database
from state.paths import Home
from tasks.system import hardware


@pytest.fixture(autouse=True)
def own_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a test out of the developer's home folder: some commands write there, and one test types at random."""
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="session")
def ready_database(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a state.db of a stack in which every service is ready; a test copies it."""
    home = Home(tmp_path_factory.mktemp("ready") / "home").make()
    shutil.copyfile(empty_database, home.database)
    db = open_database(home)
    scene.all_ready(db)
    db.run("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return home.database


@pytest.fixture
def rows(home: Home, ready_database: Path) -> Iterator[Database]:
    """Return the database of a stack in which every service is ready."""
    shutil.copyfile(ready_database, home.database)
    db = open_database(home)
    yield db
    db.close()


@pytest.fixture(scope="session", autouse=True)
def short_copies() -> Iterator[None]:
    """Measure the speed of memory for a moment: a good figure takes half a second of all cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "COPY_FOR_S", 0.05)
        yield
