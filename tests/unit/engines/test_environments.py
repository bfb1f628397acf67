"""A maker that is killed at any line of the change of names leaves a complete environment or none."""

import itertools
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from support.crashpoints import in_a_fork

from tasks.engines import environments

NAME = "rapid-mlx-9.0.0"


def make(engines: Path, text: str, dies_at: int = 0) -> None:
    """Make the environment, and be killed before the n-th line of giving it its name; never for 0."""
    left = [dies_at]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not environments.StagedEnvironment.finish.__code__:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    with environments.hold(engines / NAME) as staging:
        (staging.folder / "engine.json").write_text(text)
        sys.settrace(trace)
        staging.finish()
        sys.settrace(None)


def visible(engines: Path) -> dict[str, str]:
    return {path.name: (path / "engine.json").read_text() for path in engines.iterdir() if path.name[0] != "."}


@pytest.mark.parametrize("first", ["", "old"])
def test_each_line_of_it(tmp_path: Path, first: str) -> None:
    outcomes: set[str] = set()
    for number in itertools.count(1):
        engines = tmp_path / str(number)
        engines.mkdir()
        if first:
            make(engines, first)
        killed = os.WIFSIGNALED(in_a_fork(lambda engines=engines, number=number: make(engines, "new", number)))
        environments.sweep(engines)
        outcomes.add(visible(engines).get(NAME, "none"))
        assert {path.name for path in engines.iterdir()} <= {NAME, environments.LOCKS}
        if not killed:
            break
        make(engines, "next")
        assert visible(engines) == {NAME: "next"}
    assert number > 5
    assert outcomes == ({"old", "new"} if first else {"none", "new"})


def test_leftovers_are_swept_and_what_is_in_the_making_is_not(tmp_path: Path) -> None:
    with environments.hold(tmp_path / NAME) as staging:
        (tmp_path / ".other-1.0.partial").mkdir()
        assert environments.sweep(tmp_path) == ["other-1.0"]
        assert staging.folder.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == [environments.LOCKS]


def test_a_folder_that_is_not_there_has_no_leftovers(tmp_path: Path) -> None:
    assert environments.sweep(tmp_path / "engines") == []
