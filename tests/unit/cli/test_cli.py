"""The command line: what is typed leads to the right words and the right exit code."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from support import scene

from mlxq import __version__, cli
from mlxq.commands import setup
from state import ledger
from state.db import Database
from state.errors import EngineFailed, NotRunning
from state.job import NewJob
from state.paths import Home
from tasks import kinds, score

JOB_KEYS = """
id kind args queue priority unique_key chain source state attempt failures max_attempts rescues run_at wait_s owner
beat_at cancel_at phase progress result error_code error hint created_at started_at finished_at needs
"""
HEAVY = {"huey", "sqlite_utils", "httpx", "pandas", "numpy", "litellm", "rich", "yaml", "structlog", "huggingface_hub"}


def put(db: Database, *batch: NewJob) -> list[int]:
    return [job for job, _ in ledger.enqueue_all(db, batch).values()]


def test_the_help_lists_every_command_as_it_describes_itself() -> None:
    with click.Context(cli.mlxq) as ctx:
        said = {name: cli.mlxq.get_command(ctx, name).get_short_help_str(100) for name in cli.mlxq.list_commands(ctx)}

    assert said == {name: text for section in cli.SECTIONS.values() for name, text in section.items()}


def test_no_list_of_commands_is_cut_at_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    with click.Context(cli.mlxq) as ctx:
        commands = {name: cli.mlxq.get_command(ctx, name) for name in cli.mlxq.list_commands(ctx)}
    for name in (name for name, command in commands.items() if isinstance(command, click.Group)):
        assert cli.run([name, "--help"]) == 0
        assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


def test_a_wrong_timeout_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["setup", "--timeout", "abc"]) == 2
    assert "'abc' is not a valid number of seconds." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        ([], 0),
        (["status"], 3),
        (["stauts"], 2),
        (["--frobnicate"], 2),
        (["up"], 3),
        (["down"], 3),
        (["down", "--tier", "fast"], 3),
        (["restart"], 3),
        (["up", "--dry-run"], 3),
        (["why"], 0),
        (["why", "nobody"], 1),
        (["watch"], 3),
        (["watch", "--interval", "0"], 2),
        (["status", "--watch"], 3),
        (["uninstall"], 0),
        (["chat", "hello"], 3),
        (["chat"], 2),
        (["chat", " "], 2),
        (["connect", "env"], 3),
        (["jobs"], 0),
        (["jobs", "show", "99"], 1),
        (["jobs", "show", "x"], 2),
        (["jobs", "show", "-1"], 2),
        (["jobs", "show", "9" * 30], 2),
        (["jobs", "cancel", "99"], 1),
        (["jobs", "retry", "99"], 1),
        (["jobs", "watch", "99"], 1),
        (["jobs", "watch"], 0),
        (["jobs", "--state", "sleeping"], 2),
        (["jobs", "--kind", "sing"], 2),
        (["jobs", "--limit", "0"], 2),
        (["jobs", "prune", "--keep", "-1"], 2),
        (["config"], 2),
        (["config", "get", "litellm-prot"], 2),
        (["config", "set", "memory-budget-pct", "95"], 2),
        (["config", "set", "memory-budget-pct"], 2),
        (["config", "set", "default-quant", "int5"], 2),
        (["config", "set", "litellm-port", "8003"], 2),
        (["config", "set", "tier-port-base", "3999"], 2),
        (["config", "set", "cloud-cap-usd", "-1"], 2),
        (["config", "set", "cloud-cap-usd", "nan"], 2),
        (["config", "set", "openrouter-model", "gpt"], 2),
        (["config", "set", "aliases", "gpt-5"], 2),
        (["config", "set", "aliases", "=fast"], 2),
        (["config", "set", "gateway-host", "here"], 2),
        (["config", "set", "gateway-host", "0.0.0.0"], 2),
        (["config", "reset"], 2),
        (["config", "reset", "memory-budget-pct", "--all"], 2),
        (["setup"], 2),
        (["setup", "--accept-defaults", "--intent", "world-domination"], 2),
        (["setup", "--accept-defaults", "--budget-pct", "9"], 2),
        (["setup", "--accept-defaults", "--budget-pct", "ten"], 2),
        (["completion", "tcsh"], 2),
    ],
)
def test_every_command_line_ends_with_its_documented_code(
    home: Home, argv: list[str], code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home.root))

    assert cli.run(argv) == code

    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert code == 0 or err


def test_the_version_is_that_of_the_installation() -> None:
    assert version("mlxq") == __version__


def test_a_mistyped_command_is_answered_with_the_nearest(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["stauts"])

    assert "Did you mean 'status'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["status"], ["jobs"], ["config", "list"], ["models", "--catalog"], ["--help"], ["--version"], []]
)
def test_what_a_person_reads_often_loads_nothing_heavy(home: Home, argv: list[str]) -> None:
    code = f"import sys; from mlxq.cli import run; run({argv!r}); print(*sys.modules, file=sys.stderr)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert set() == HEAVY & {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}


def test_a_job_s_failure_becomes_the_same_exit_code(home: Home, db: Database) -> None:
    (job,) = put(db, kinds.new("smoke_test"))
    held = ledger.claim(db, "ops", {"smoke_test"}, "a/1/1")
    assert held
    ledger.fail(db, held, NotRunning("Nobody is there.", hint="mlxq up"))

    assert cli.run(["jobs", "watch", str(job)]) == 3


def test_jobs_show_tells_all_there_is(home: Home, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = put(db, kinds.new("start", {"service": "fast"}, label="s"), kinds.new("smoke_test", needs=["s"]))
    held = ledger.claim(db, "ops", {"start"}, "a/1/1")
    assert held
    ledger.fail(db, held, EngineFailed("It did not load.", hint="mlxq logs fast"))
    home.log("worker").write_text(json.dumps({"job": first, "event": "job_failed", "code": "engine_failed"}) + "\n")

    assert cli.run(["jobs", "show", str(first)]) == 0

    out, err = capsys.readouterr()
    for words in ("start fast", "It did not load.", '{"service": "fast"}', "claimed", "job_failed", str(second)):
        assert words in out
    assert "mlxq logs fast" in err


def test_jobs_as_json_bear_a_schema_version(home: Home, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    put(db, kinds.new("detect"))

    cli.run(["jobs", "--json"])

    said = json.loads(capsys.readouterr().out)
    assert said["schema_version"] == 1
    assert [each["kind"] for each in said["jobs"]] == ["detect"]
    assert JOB_KEYS.split() == list(said["jobs"][0])


def test_logs_are_listed_printed_and_never_a_path(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    home.log("fast").write_text("one\ntwo\nthree\n")
    (home.root / "secret.log").write_text("hidden")

    assert [cli.run(["logs"]), cli.run(["logs", "fast", "-n", "2"]), cli.run(["logs", "../secret"])] == [0, 0, 1]

    out, err = capsys.readouterr()
    assert "two\nthree\n" in out
    assert "one" not in out
    assert "there is: fast" in err


@pytest.mark.parametrize("budget", [None, 50])
def test_setup_asks_what_the_task_score_takes(budget: int | None) -> None:
    asked = setup.question("balanced", budget, no_pull=True, no_start=False)

    bound = inspect.signature(score.score).bind(None, **asked)

    assert (bound.arguments["pull"], bound.arguments["start"]) == (False, False)


def test_a_stranger_in_the_working_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text("")

    done = subprocess.run(
        [sys.executable, "-m", "mlxq", "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert str(tmp_path / "tasks.py") in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("argv", [["jobs", "cancel", "3"], ["jobs", "retry", "3"], ["jobs", "prune"]])
def test_where_nothing_is_set_up_no_job_can_be_changed_and_no_home_is_made(home: Home, argv: list[str]) -> None:
    home.database.unlink()

    assert cli.run(argv) == 3
    assert not home.database.exists()


def test_jobs_names_the_newest_failure_as_the_next_to_look_at(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.fail(db)
    scene.succeed(db, "rotate")

    assert cli.run(["jobs"]) == 0

    assert "mlxq jobs show 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("where", "code", "said"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("| true", 0, ""),
        pytest.param(
            ">/dev/full",
            4,
            "Error: The disk is full.\nNext: df -h\n",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's"),
        ),
    ],
)
def test_whoever_listens_no_more_gets_no_traceback(rows: Database, where: str, code: int, said: str) -> None:
    """A command behind cron may have no output at all; its exit code still tells how it went."""
    line = f'set -o pipefail; "{sys.executable}" -P -m mlxq config list {where}'
    env = os.environ | {"MLXQ_HOME": str(rows.home.root)}
    done = subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (code, said)


def test_signs_that_an_alphabet_lacks_become_question_marks(rows: Database) -> None:
    env = os.environ | {"MLXQ_HOME": str(rows.home.root), "PYTHONIOENCODING": "latin-1"}
    line = [sys.executable, "-P", "-m", "mlxq", "top", "--once"]
    done = subprocess.run(line, env=env, capture_output=True, check=False)

    assert (done.returncode, done.stderr) == (0, b"")
    assert b"? healthy" in done.stdout
