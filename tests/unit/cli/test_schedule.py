"""`mlxq schedule`: what can be scheduled is held to the commands' own parsers."""

from __future__ import annotations

import json

import pytest

from mlxq import cli
from state.db import Database
from state.job import JobState, listing
from state.paths import Home
from state.schedule import schedules


def test_a_schedule_is_added_listed_run_and_removed(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a real worker, which the command starts."""
    assert cli.run(["schedule", "add", "engine", "0 6 * * 1", "--", "engine", "upgrade", "--check"]) == 0
    assert "engine runs next at" in capsys.readouterr().err
    assert cli.run(["schedule", "run", "engine"]) == 0
    assert "engine ran: engine upgrade --check." in capsys.readouterr().err
    assert cli.run(["schedule", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["schedules"]
    assert (row["command"], row["missed"]) == ("engine upgrade --check", "run")
    kinds = {job.kind: job.state for job in listing(db)}
    assert (kinds["run_schedule"], kinds["check_engine"]) == (JobState.SUCCEEDED, JobState.SUCCEEDED)
    assert cli.run(["schedule", "add", "bad", "0 0 30 2 *", "--", "verify"]) == 2
    assert "names a date that never comes" in capsys.readouterr().err
    assert cli.run(["schedule", "add", "nothing", "0 0 * * *", "--", "verify"]) == 0
    assert cli.run(["schedule", "run", "nothing"]) == 1
    assert cli.run(["schedule", "remove", "engine"]) == 0
    assert cli.run(["schedule", "remove", "engine"]) == 1
    assert [schedule.name for schedule in schedules.listing(db)] == ["nothing"]


@pytest.mark.parametrize(
    "words",
    [
        ["rm", "standard"],
        ["engine", "upgrade"],
        ["upgrade"],
        ["upgrade", "--check", "--back"],
        ["catalog", "update"],
        ["engine", "install", "rapid-mlx"],
        ["engine", "upgrade", "--check", "vllm-mlx"],
        ["bench"],
        ["bench", "--history", "x"],
        ["bench", "standard", "--runs", "999"],
        ["verify", "--no-such-option"],
        ["sh", "-c", "true"],
        [],
    ],
)
def test_only_what_is_listed_can_be_scheduled(home: Home, db: Database, words: list[str]) -> None:
    assert cli.run(["schedule", "add", "x", "0 0 * * *", "--", *words]) == 2
    assert listing(db) == []
