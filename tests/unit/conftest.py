"""Unit tests never see the person's own home folder: some commands write there, and one test types at random."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import scene

from state.db import Database, open_database
from state.paths import Home


@pytest.fixture(autouse=True)
def _a_home_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def rows(home: Home) -> Iterator[Database]:
    """Give the database of a stack in which all is ready."""
    db = open_database(home)
    scene.all_ready(db)
    yield db
    db.close()
