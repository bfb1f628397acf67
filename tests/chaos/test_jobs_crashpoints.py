"""Every place where power can fail: before each single SQL statement of a diamond of jobs, and of the migrations."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MEMORY = Path("/dev/shm")
CRASHPOINTS = Path(__file__).parents[1] / "support" / "crashpoints.py"


def enumerate_points(*arguments: str | Path) -> dict[str, Any]:
    argv = [sys.executable, CRASHPOINTS, *map(str, arguments)]
    told = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout.splitlines()[-1])


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Give a folder in memory, where there is one: SIGKILL undoes nothing that was written, so no disk is awaited."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else tmp_path) as made:
        yield Path(made)


def test_a_diamond_ends_in_order_wherever_it_is_cut(folder: Path, empty_database: Path) -> None:
    """The window between a task's effect and its row remains: there the effect comes twice, never more."""
    found = enumerate_points("diamond", empty_database, folder)

    assert found["points"] > 50
    assert found["outcomes"] == [
        {
            "states": ["succeeded"],
            "kinds": ["a", "b", "c", "d", "extra"],
            "in order": True,
            "told once": True,
            "integrity": "ok",
        }
    ]
    assert found["most repeats"] == 1


def test_the_schema_is_made_wherever_the_first_try_is_cut(folder: Path) -> None:
    found = enumerate_points("schema", folder)

    assert found["points"] > 20
    assert found["outcomes"] == [{"tables": True, "current": True, "integrity": "ok"}]
