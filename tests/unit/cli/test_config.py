"""`mlxq config` on files that are wrong, and where their problems are shown."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from support.mlxq_home import TIER

from mlxq import cli
from mlxq.doctor import checks
from state import keys, settings, stack
from state.db import open_database
from state.paths import Home

Edit = Callable[[str], None]
WRONG = "litellm-port: high\n"


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Edit:
    """Return what makes $EDITOR a program that replaces the file by a text."""

    def use(text: str) -> None:
        (tmp_path / "new").write_text(text)
        script = tmp_path / "editor"
        script.write_text(f'#!/bin/sh\ncp "{tmp_path}/new" "$1"\n')
        script.chmod(0o755)
        monkeypatch.delenv("VISUAL", raising=False)
        monkeypatch.setenv("EDITOR", str(script))

    return use


def test_edit_puts_a_right_file_in_place_and_keeps_the_old_one(home: Home, editor: Edit) -> None:
    home.config.write_text("log-max-files: 4\n")
    editor("# mine\nlog-max-files: 5\n")

    assert cli.run(["config", "edit"]) == 0

    assert home.config.read_text() == "# mine\nlog-max-files: 5\n"
    assert home.config.with_suffix(".yaml.old").read_text() == "log-max-files: 4\n"
    assert home.config.stat().st_mode & 0o077 == 0
    assert not (home.root / "config.yaml.edit").exists()


def test_edit_keeps_the_old_file_while_the_new_one_is_wrong(
    home: Home, editor: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    home.config.write_text("log-max-files: 4\n")
    editor(WRONG)

    assert cli.run(["config", "edit"]) == 2

    assert home.config.read_text() == "log-max-files: 4\n"
    err = capsys.readouterr().err
    assert "line 1: litellm-port must be a whole number" in err
    assert f"What you wrote is in {home.root}/config.yaml.edit" in err
    editor("log-max-files: 6\n")
    assert cli.run(["config", "edit"]) == 0
    assert settings.load(home)["log-max-files"] == 6


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_bytes(b"a: \xe8\n"), os.mkfifo])
def test_edit_replaces_what_is_no_settings_file(home: Home, editor: Edit, make: Callable[[Path], None]) -> None:
    make(home.config)
    editor("log-max-files: 5\n")

    assert cli.run(["config", "edit"]) == 0
    assert settings.load(home)["log-max-files"] == 5


def test_an_editor_that_fails_changes_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.config.write_text("log-max-files: 4\n")
    monkeypatch.setenv("VISUAL", "false")

    assert cli.run(["config", "edit"]) == 1
    assert home.config.read_text() == "log-max-files: 4\n"


def test_a_file_that_changed_meanwhile_is_left(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "editor"
    script.write_text(f'#!/bin/sh\necho "log-max-files: 8" > {home.config}\necho "log-max-files: 9" > "$1"\n')
    script.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(script))

    assert cli.run(["config", "edit"]) != 0
    assert home.config.read_text() == "log-max-files: 8\n"


@pytest.mark.parametrize(
    "argv", [["config", "list"], ["config", "get", "litellm-port"], ["status"], ["why"], ["doctor"]]
)
def test_the_problem_is_shown_once_with_line_and_cure(
    home: Home, argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "LIMIT_S", 120.0)
    home.config.write_text(WRONG)

    cli.run(argv)

    out, err = capsys.readouterr()
    text = " ".join((out + err).split())
    if argv != ["status"]:  # which says first that nothing is set up
        assert text.count("line 1: litellm-port must be a whole number") == 1
        assert "mlxq config reset litellm-port" in text


def test_every_command_that_can_work_does(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.config.write_text("litellm-port: [\n")

    for argv in (
        ["config", "list"],
        ["config", "get", "page-port"],
        ["models", "--catalog"],
        ["jobs"],
        ["why"],
        ["keys", "list"],
    ):
        assert cli.run(argv) == 0, argv
    capsys.readouterr()
    assert cli.run(["config", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"][0]["hint"] == "mlxq config edit"


def test_damaged_keys_are_told_and_those_that_were_valid_count(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "LIMIT_S", 120.0)
    monkeypatch.setattr(checks, "CHECKS", {"home": checks.CHECKS["home"]})
    path = keys.file(home)
    keys.create(path, "app")
    keys.create(path, "gone")
    keys.revoke(path, "gone")
    path.write_text("[{")

    usable, problem = keys.usable(path)

    assert [key.name for key in usable.values()] == ["app"]
    assert problem
    cli.run(["doctor"])
    assert "keys.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("known", "command"), [("nothing", "mlxq setup"), ("a database", "mlxq setup"), ("a tier", "mlxq up")]
)
@pytest.mark.parametrize("argv", [["config", "set", "litellm-port", "4444"], ["config", "edit"]])
def test_the_next_command_is_one_that_works(
    *, argv: list[str], known: str, command: str, home: Home, editor: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    """`mlxq up` starts what was set up; before, it would only say that nothing was."""
    editor("litellm-port: 4444\n")
    if known == "nothing":
        home.database.unlink()
    if known == "a tier":
        with closing(open_database(home)) as db:
            stack.replace(db, [TIER])

    assert cli.run(argv) == 0

    assert f"Next: {command}\n" in capsys.readouterr().err
    assert settings.load(home)["litellm-port"] == 4444
