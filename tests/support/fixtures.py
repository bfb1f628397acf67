"""Fixtures that the unit tests share with the tests that start processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import scene

from state.db import Database, open_database
from state.paths import Home


@pytest.fixture(autouse=True)
def own_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a test out of the developer's home folder: some commands write there, and one test types at random."""
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def rows(home: Home) -> Iterator[Database]:
    """Return the database of a stack in which every service is ready."""
    db = open_database(home)
    scene.all_ready(db)
    yield db
    db.close()
