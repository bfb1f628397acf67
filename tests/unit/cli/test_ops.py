"""Commands that tell before they act, and tell afterwards why."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mlxq import cli, service_events
from mlxq.commands import down, restart
from state import job, ledger, secrets, service, settings, stack
from state.db import Database, open_database
from state.job import JobState
from state.paths import Home
from state.service import ServiceEvent
from state.stack import Engine
from tasks import kinds, stack_jobs
from tasks.system import process

FAST = Engine("fast", "smollm2-135m", "int4", "file:/tiny", 9241, 2048, 600 * 2**20, 64 * 2**20, 1)


@pytest.fixture
def db(home: Home, tmp_path: Path) -> Iterator[Database]:
    """Give a ledger with one tier whose weights are a folder, and the gateway's configuration."""
    opened = open_database(home)
    secrets.ensure(home.secrets)
    home.gateway_config.write_text("tiers: {}\n")
    stack.replace(opened, [replace(FAST, weights=str(tmp_path))])
    for name, port in (("fast", 9241), ("gateway", 9242)):
        service.ensure(opened, name, "gateway" if name == "gateway" else "engine", port)
    yield opened
    opened.close()


def died(db: Database, home: Home) -> None:
    """Let the tier start once and be killed, with words in its log."""
    service.set_desired(db, "fast", "up")
    service.request_start(db, "fast", ["engine"], "print", 9241)
    home.log("fast").write_text(
        "=== mlxq: 2026-11-22 10:00:00 fast, start 1\nloading\n\nready\n"
        "=== mlxq: 2026-11-22 10:05:00 fast, start 2\nlater\n"
    )
    cause = {"exit_code": 139, "cause_code": "aborted", "cause": "It crashed.", "hint": "mlxq logs fast"}
    service.apply(db, "fast", ServiceEvent.EXITED, next_try_at=db.now() + 60, **cause)


def test_a_dry_run_shows_the_command_and_no_key(home: Home, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["up", "--dry-run"]) == 0

    out = capsys.readouterr().out
    assert "vllm_mlx_program.py serve" in out
    assert "-m tasks.gateway" in out
    assert "-m mlxq.web 4001" in out
    assert "MLXQ_TIER_KEY=***" in out
    assert not any(key in out for key in secrets.read(home.secrets).values())
    assert db.rows("SELECT id FROM jobs") == []
    assert service.get(db, "fast").desired == "down"


@pytest.mark.parametrize("left", [None, b"model_list: []\n", b"\xff\xfe"], ids=["none", "an older one", "damaged"])
def test_a_dry_run_shows_the_configuration_that_a_start_would_write(
    home: Home, db: Database, left: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    home.secrets.unlink()
    home.gateway_config.unlink()
    if left is not None:
        home.gateway_config.write_bytes(left)
    for argv in (["up", "-n"], ["up", "gateway", "-n"]):
        assert cli.run(argv) == 0
        shown = capsys.readouterr().out
        assert f"# write {home.gateway_config}\n# start gateway\n" in shown
        assert "LITELLM_MASTER_KEY=***" in shown
    assert not home.secrets.exists()
    assert home.gateway_config.exists() is (left is not None)


def test_what_a_dry_run_prints_can_be_run(home: Home, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """The line is one for a shell: the program it names is there and takes the arguments."""
    cli.run(["up", "--tier", "fast", "--dry-run"])
    line = capsys.readouterr().out.splitlines()[1]

    done = subprocess.run(f"{line} --no-such-flag", shell=True, capture_output=True, text=True, check=False)

    assert done.returncode == 2, done.stderr
    assert "--no-such-flag" in done.stderr


def test_a_dry_run_of_down_names_the_process_it_would_end(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    me = process.identify(os.getpid())
    assert me
    service.set_desired(db, "fast", "up")
    service.request_start(db, "fast", ["engine"], "print", 9241)
    service.apply(db, "fast", ServiceEvent.SPAWNED, identity=process.encode(me))

    assert cli.run(["down", "--dry-run"]) == 0

    assert capsys.readouterr().out.startswith(f"# stop fast\nkill -TERM {me.pid} ")
    assert cli.run(["down", "--drain", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith(f"# stop fast\nkill -USR2 {me.pid} ")
    assert service.get(db, "fast").desired == "up"


def test_restart_leaves_down_what_is_down(db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["restart"]) == 3

    service.set_desired(db, "fast", "up")
    assert restart.requested(db) == ["fast"]


def test_what_runs_beside_the_tiers_is_named_as_they_are(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    service.set_desired(db, "gateway", "up")

    assert restart.requested(db, ["gateway"]) == ["gateway"]
    assert cli.run(["up", "gateway", "-n"]) == 0
    assert "-m tasks.gateway" in capsys.readouterr().out
    assert cli.run(["restart", "page"]) == 3
    assert "mlxq up page" in capsys.readouterr().err
    assert cli.run(["down", "--tier", "nonsense"]) == 1
    assert "there is: fast, gateway, page" in capsys.readouterr().err


def test_tiers_are_drained_before_what_brings_them_requests_goes_down(db: Database) -> None:
    ids = down.begin(db, [], service.listing(db), drain=True)

    jobs = [job.get(db, number) for number in ids]
    assert [(each.kind, each.args["service"]) for each in jobs] == [("drain", "fast"), ("stop", "gateway")]
    assert list(jobs[1].needs) == [ids[0]]
    assert [each.desired for each in service.listing(db)] == ["down", "down"]


def test_a_wish_is_not_lost_to_a_job_of_the_watchdog_that_is_under_way(db: Database) -> None:
    """That one asks again whether anybody wants the service; so the person's word must be there."""
    service.set_desired(db, "fast", "up")
    stale, _ = ledger.enqueue(db, kinds.new("stop", {"service": "fast", "unwanted": True}), source="watchdog")

    assert down.begin(db, ["fast"], [service.get(db, "fast")], drain=False) == [stale]
    assert service.get(db, "fast").desired == "down"


def test_a_plain_down_ends_the_waiting_of_a_drain(db: Database) -> None:
    fast = [service.get(db, "fast")]
    (draining,) = down.begin(db, ["fast"], fast, drain=True)
    held = ledger.claim(db, "ops", {"drain"}, "a/1/1")
    assert held

    (stopping,) = down.begin(db, ["fast"], fast, drain=False)
    assert job.cancel_asked(db, held)
    assert job.get(db, stopping).needs == (draining,)


def test_a_plain_down_takes_the_place_of_a_drain_that_has_not_begun(db: Database) -> None:
    fast = [service.get(db, "fast")]
    (draining,) = down.begin(db, ["fast"], fast, drain=True)

    (stopping,) = down.begin(db, ["fast"], fast, drain=False)
    assert (job.get(db, draining).state, job.get(db, stopping).kind) == (JobState.CANCELLED, "stop")


def test_services_start_anew_one_after_another(db: Database) -> None:
    made = ledger.enqueue_all(db, stack_jobs.restart_in_turn(["a", "b", "c"]))

    ids = [job for job, _ in made.values()]
    needs = [(row["job"], row["needs"]) for row in db.rows("SELECT job, needs FROM job_deps ORDER BY job")]
    assert needs == [(ids[1], ids[0]), (ids[2], ids[1])]


def test_why_tells_the_cause_the_signal_the_last_lines_and_the_next_try(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    died(db, home)

    assert cli.run(["why", "fast"]) == 0

    out, err = capsys.readouterr()
    assert "It crashed. (killed by SIGSEGV) Next try at " in out
    assert "| loading\n" in out
    assert "| ready\n" in out
    assert "later" not in out
    assert "fast (crashed, restarting in 5" in out
    assert "mlxq logs fast" in err


def test_why_knows_what_was_never_started_from_what_there_is_not(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    assert service.remove(db, "fast")

    assert cli.run(["why", "fast"]) == 3
    assert "fast was never started, so nothing has happened to it.\nNext: mlxq up" in capsys.readouterr().err
    assert cli.run(["why", "nope"]) == 1
    assert "There is no service nope." in capsys.readouterr().err


def test_why_speaks_json_and_every_step_has_words(home: Home, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    died(db, home)

    assert cli.run(["why", "--all", "--json"]) == 0

    told = json.loads(capsys.readouterr().out)["events"]
    assert [each["event"] for each in told] == ["start_requested", "starting", "exited"]
    assert told[-1]["last_lines"] == ["loading", "ready"]
    assert set(ServiceEvent) <= set(service_events.REASONS)


def test_why_has_words_for_people_in_place_of_names(
    home: Home, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    died(db, home)

    assert cli.run(["why", "--all"]) == 0

    told = [re.split(" {2,}", line)[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("2")]
    assert told == [
        ["fast", "Start requested"],
        ["fast", "Starting"],
        ["fast", "Exited"],
    ]


def test_the_last_lines_of_a_huge_log_are_found_from_its_end(tmp_path: Path) -> None:
    log = tmp_path / "fast.log"
    log.write_text("x\n" * 2**20 + "=== mlxq: 2026 fast, start 7\none\ntwo\nthree\nfour\n")

    assert service_events.last_lines(log, 7) == ["two", "three", "four"]
    assert service_events.last_lines(log, 6) == []


def test_status_goes_on_at_each_change(home: Home, db: Database) -> None:
    argv = [sys.executable, "-P", "-m", "mlxq", "status", "--watch", "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        first = json.loads(program.stdout.readline())
        service.set_desired(db, "fast", "up")
        later = (json.loads(line) for line in program.stdout)
        changed = next(each for each in later if each["services"] != first["services"])
        program.terminate()

    assert [first["services"][0]["state"], changed["services"][0]["state"]] == ["stopped", "down"]


def test_watch_turns_its_options_into_settings_and_starts_one_worker(home: Home, db: Database) -> None:
    argv = [sys.executable, "-P", "-m", "mlxq", "watch", "--max-restarts", "7", "--daemon"]
    try:
        first = subprocess.run(argv, capture_output=True, text=True, check=True)
        again = subprocess.run(argv, capture_output=True, text=True, check=True)
    finally:
        cli.run(["down"])

    assert settings.load(home)["max-restarts"] == 7
    assert "Started the worker" in first.stderr
    assert "A worker is already running." in again.stderr


def test_install_tells_how_it_stands(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home.root))

    assert cli.run(["install", "--status"]) == 0

    out, err = capsys.readouterr()
    assert str(home.root) in out
    assert "mlxq install" in err


@pytest.mark.parametrize("argv", [["logs", "nope"], ["keys", "create", "x", "--tiers", "nope"]])
def test_a_home_without_a_stack_is_not_set_up_whatever_the_name(
    home: Home, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(argv) == 3
    assert "Next: mlxq setup" in capsys.readouterr().err
