"""What people type leads somewhere: names of services, words from other tools, and the options of the output."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from support import scene

from mlxq import cli, render
from state import service
from state.db import Database
from state.paths import Home


@pytest.mark.parametrize(("alias", "name"), list(cli.ALIASES.items()))
def test_a_word_of_another_tool_runs_our_command(alias: str, name: str) -> None:
    context = click.Context(cli.mlxq)

    assert cli.mlxq.get_command(context, alias) is cli.mlxq.get_command(context, name)
    assert alias not in cli.mlxq.list_commands(context)


def test_help_and_version_are_commands_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["help"]) == 0
    assert "Services:" in capsys.readouterr().out
    assert cli.run(["help", "jobs", "retry"]) == 0
    assert "Usage: mlxq jobs retry" in capsys.readouterr().out
    assert cli.run(["version"]) == 0
    assert capsys.readouterr().out.startswith("mlxq 0.")


@pytest.mark.parametrize("argv", [["rn"], ["prun"], ["remove"], ["uninstal"], ["jobs", "prun"], ["keys", "revok"]])
def test_no_suggestion_deletes(argv: list[str], home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(argv) == 2
    suggested = capsys.readouterr().err.partition("Did you mean")[2]
    assert not any(word in suggested for word in ("'rm'", "'prune'", "'uninstall'", "'revoke'", "'reset'"))


@pytest.mark.parametrize("argv", [["up", "fast", "longctx", "-n"], ["up", "--tier", "fast", "longctx", "--dry-run"]])
def test_services_are_named_as_arguments(argv: list[str], rows: Database, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.run(argv)

    out, err = capsys.readouterr()
    assert code == 0 or "weights" in err
    assert "# start gateway" not in out
    assert "unexpected extra argument" not in err


def test_restart_takes_several_services_in_their_order(rows: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["down", "longctx", "fast", "-n"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("# stop")] == [
        "# stop fast",
        "# stop longctx",
    ]
    assert cli.run(["down", "nobody"]) == 1


def test_the_usual_letters_mean_the_usual_things() -> None:
    context = click.Context(cli.mlxq)
    for name in cli.mlxq.list_commands(context):
        command = cli.mlxq.get_command(context, name)
        assert command
        children = command.commands.values() if isinstance(command, click.Group) else [command]
        for param in [param for child in children for param in child.params]:
            assert ("--dry-run" in param.opts) <= ("-n" in param.opts), name
            assert ("--yes" in param.opts) <= ("-y" in param.opts), name


def test_no_metavar_is_that_of_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    context = click.Context(cli.mlxq)
    for name in cli.mlxq.list_commands(context):
        cli.run([name, "--help"])
        help_text = capsys.readouterr().out
        assert " RANGE" not in help_text, name
        assert "INTEGER" not in help_text, name


@pytest.mark.parametrize("argv", [["-q", "jobs"], ["jobs", "-q"], ["jobs", "--quiet"]])
def test_quiet_leaves_results_and_errors(argv: list[str], home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["jobs"]) in {0, 3}
    assert capsys.readouterr().err
    code = cli.run(argv)
    out, err = capsys.readouterr()
    assert code == 3 or (out, err) == ("", "")
    assert cli.run(["-q", "status"]) == 3
    assert "Error: " in capsys.readouterr().err
    assert cli.run(["jobs"]) in {0, 3}
    assert capsys.readouterr().err, "the next command is not quiet"
    assert not render.output.quiet


def test_colors_can_be_forced_and_forbidden(
    rows: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    cli.run(["status"])
    assert "\x1b[31m" in capsys.readouterr().out
    cli.run(["status", "--no-color"])
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    cli.run(["status"])
    assert "\x1b" not in capsys.readouterr().out


def test_status_prints_its_document_where_nothing_is_set_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXQ_HOME", str(tmp_path / "none"))

    assert cli.run(["status", "--json"]) == 3

    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["services"] == []
    assert document["jobs"] == []
    assert document["worker"] == {"state": "stopped", "pid": None}
    assert "Next: mlxq setup" in err
    assert not (tmp_path / "none").exists()


def test_status_names_the_jobs_that_are_not_done(rows: Database, capsys: pytest.CaptureFixture[str]) -> None:
    scene.pull(rows)

    assert cli.run(["status", "--json"]) == 0

    jobs = json.loads(capsys.readouterr().out)["jobs"]
    assert (jobs[0]["kind"], jobs[0]["state"]) == ("pull", "running")


def test_why_shows_what_went_wrong_and_the_last_change_of_the_rest(
    rows: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.die(rows, "fast")

    def shown(*argv: str) -> list[tuple[str, str]]:
        assert cli.run(["why", "--json", *argv]) == 0
        return [(event["service"], event["reason"]) for event in json.loads(capsys.readouterr().out)["events"]]

    assert ("fast", "Exited") in shown()
    assert ("fast", "Start requested") not in shown()
    assert {name for name, _ in shown()} == {row.name for row in service.listing(rows)}
    assert ("fast", "Start requested") in shown("--all")
    assert len(shown("--limit", "1")) == 1
