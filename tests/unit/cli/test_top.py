"""The keys of `mlxq top`, and the view on a real terminal."""

from __future__ import annotations

import os
import shlex
import sys

import pexpect
import pytest

from mlxq.top import columns, draw, keys
from mlxq.top.keyboard import DOWN, UP
from mlxq.top.keyboard import keys as read
from mlxq.top.keys import TopAction, TopState, TopView
from mlxq.top.session import tail
from state import job
from state.db import Database

WITHOUT_A_WORKER = """
from mlxq import cli, worker_process
worker_process.ensure = lambda home: None
cli.run(["top"])
"""
NAMES = ("standard", "fast", "gateway")


def pressed(*typed: str) -> tuple[TopState, TopAction | None]:
    """Return the state and the last action after these keys."""
    state, action = TopState(), None
    for key in typed:
        state, action = keys.press(state, key, NAMES)
    return state, action


@pytest.mark.parametrize(
    ("typed", "selected", "view", "action"),
    [
        ([], None, TopView.MAIN, None),
        ([DOWN, "j", DOWN, "k"], "fast", TopView.MAIN, None),
        ([UP], "standard", TopView.MAIN, None),
        (["?"], "standard", TopView.HELP, None),
        (["?", "q"], "standard", TopView.MAIN, None),
        (["l", DOWN], "fast", TopView.LOG, None),
        (["l", "l"], "standard", TopView.MAIN, None),
        (["l", "escape"], "standard", TopView.MAIN, None),
        (["r"], "standard", TopView.CONFIRM, None),
        (["r", "n"], "standard", TopView.MAIN, None),
        (["r", "r"], "standard", TopView.MAIN, None),
        ([DOWN, "r", "y"], "fast", TopView.MAIN, TopAction.RESTART),
        (["q"], "standard", TopView.MAIN, TopAction.QUIT),
        (["x", "\x1b[5~"], "standard", TopView.MAIN, None),
    ],
)
def test_what_keys_do(typed: list[str], selected: str | None, view: TopView, action: TopAction | None) -> None:
    state, last = pressed(*typed)
    assert (state.selected, state.view, last) == (selected, view, action)


def test_a_service_that_left_is_no_longer_selected() -> None:
    assert keys.settled(TopState("gone"), NAMES).selected == "standard"
    assert keys.settled(TopState("gone"), ()).selected == "gone"
    assert keys.press(TopState(), "r", ())[0].view is TopView.MAIN


def test_keys_are_read_one_by_one() -> None:
    assert read("\x1b[A\x1bOBq\x1b[5~jä\x1b") == ["up", "down", "q", "\x1b[5~", "j", "ä", "escape"]


def test_the_view_obeys_and_the_terminal_is_as_before(rows: Database) -> None:
    home = rows.home
    home.log("fast").write_text("old\n" * 9 + "the last line \x1b[2J\n")
    program = shlex.join([sys.executable, "-P", "-c", WITHOUT_A_WORKER])
    child = pexpect.spawn(
        "/bin/sh",
        ["-c", f"stty -a > {home.root}/before; {program}; stty -a > {home.root}/after"],
        env=os.environ | {"MLXQ_HOME": str(home.root), "TERM": "xterm-256color"},
        timeout=60,
        dimensions=(24, 80),
        encoding="utf-8",
    )
    child.expect_exact("q quit")
    child.send("\x1b[B")
    child.send("l")
    child.expect_exact(r"the last line \x1b[2J")
    child.send("lr")
    child.expect_exact("Restart fast? y yes")
    child.send("y")
    child.expect(r"Job \d+ restarts fast")
    child.send("q")
    child.expect(pexpect.EOF)

    assert [row.args for row in job.listing(rows) if row.kind == "restart"] == [{"service": "fast"}]
    assert (home.root / "before").read_text() == (home.root / "after").read_text()


def test_a_log_that_is_not_there_is_said(rows: Database) -> None:
    assert tail(rows.home.log("nosuch"), 5) == ["There is nothing to read: No such file or directory."]


@pytest.mark.parametrize("width", range(40, 140, 5))
def test_a_figure_is_whole_or_not_there_in_any_width(width: int) -> None:
    """The state alone is cut; the newest minutes of the chart are those at its end."""
    chart = "".join(str(minute % 10) for minute in range(30))
    row = ["standard", "✗ crashed, restarting in 29s", "12", "3", "1,116.2", "12.5s", "31m29s", "13.9 GB", "17", "100%"]
    lines = [line.plain for line in columns.table(draw.TIER_COLUMNS, [[*row, chart]], width, marked=0)]
    assert all(len(line) <= width for line in lines)
    heads, cells = lines
    shown = [place for place, column in enumerate(draw.TIER_COLUMNS) if column.head in heads]
    assert {0, 1} <= set(shown)
    assert width == 40 or 2 in shown
    assert len(shown) == len(heads.replace("LAST 30 MIN", "LAST").split())
    assert [place for place in shown if place != 1 and [*row, chart][place] not in cells] == []
    assert cells.count("…") == (row[1] not in cells)
