"""The screens that people see most are as they were reviewed: at 80 and 200 columns, and in a pipe.

After a change that is meant: `UPDATE_SNAPSHOTS=1 uv run pytest tests/unit/cli/test_golden.py`, and read the diff.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import golden, typist
from support.golden import COMMANDS, Screens

from state.db import open_database
from state.paths import Home

SNAPSHOTS = Path(__file__).parents[1] / "snapshots" / "screens"
WRITE = bool(os.environ.get("UPDATE_SNAPSHOTS"))


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screens]:
    with typist.a_hub() as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLXQ_HOME", str(tmp_path_factory.mktemp("none")))  # each look names its own
        process = Screens(address)
        yield process
        process.close()


@pytest.fixture
def furnished(home: Home) -> None:
    """Make the home that never changes."""
    db = open_database(home, clock=lambda: golden.NOW)
    golden.furnish(db)
    db.close()


def hold(name: str, screen: str) -> None:
    """Compare a screen with the one that was reviewed, or write it down."""
    file = SNAPSHOTS / f"{name}.txt"
    if WRITE:
        SNAPSHOTS.mkdir(exist_ok=True)
        file.write_text(screen)
    assert screen == file.read_text()


@pytest.mark.usefixtures("furnished")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_screen_is_as_it_was_reviewed(name: str, screens: Screens) -> None:
    for columns in (80, 200):
        hold(f"{name}.{columns}", screens.on_a_terminal(COMMANDS[name], columns))
    hold(f"{name}.pipe", screens.in_a_pipe(COMMANDS[name]))


def test_no_line_of_a_narrow_terminal_is_longer_than_it() -> None:
    lines = [(file.stem, line) for file in SNAPSHOTS.glob("*.80.txt") for line in file.read_text().splitlines()]

    assert len(lines) > 100
    assert [line for line in lines if len(line[1]) > 80] == []
