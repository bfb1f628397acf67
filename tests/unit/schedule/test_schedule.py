"""What is due when, that each run is enqueued once, and how it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from support.batching import line

from mlxq import cli, jobs_client
from state import event, job, ledger
from state.batches import batches, stored_files
from state.db import Database
from state.errors import MlxqError, UsageProblem
from state.schedule import schedules
from state.schedule.schedules import Missed, Schedule
from tasks import schedule as task
from tasks.queue import crontab

HOUR = 3600.0


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set a zone with summer time."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("text", "now", "due"),
    [
        ("30 3 * * *", "2026-11-29T03:29", "2026-11-29T03:30"),
        ("30 3 * * *", "2026-11-29T03:30", "2026-11-30T03:30"),
        ("*/20 * * * *", "2026-11-29T23:45", "2026-11-30T00:00"),
        ("0 9 * * 1", "2026-11-29T12:00", "2026-11-30T09:00"),
        ("0 9 * * 7", "2026-11-29T09:00", "2026-12-06T09:00"),
        ("0 0 29 2 *", "2026-11-29T12:00", "2028-02-29T00:00"),
        ("0 0 29 2 0", "2026-11-29T12:00", "2032-02-29T00:00"),
        ("0 0 13 * 5", "2026-11-29T12:00", "2027-08-13T00:00"),
    ],
)
def test_the_next_time(text: str, now: str, due: str) -> None:
    assert crontab(text).next(at(now)) == at(due)


@pytest.mark.parametrize("text", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 31 2-2 *"])
def test_a_date_that_never_comes(text: str) -> None:
    assert crontab(text).next(at("2026-11-29T12:00")) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8"),
        *("x * * * *", "*/0 * * * *", "1-5/0 * * * *", "-1 * * * *", "1,,2 * * * *", "@daily", "* * * * mon"),
        *("² * * * *", "* " * 500),
    ],
)
def test_what_is_no_cron_text_is_refused(text: str) -> None:
    with pytest.raises(UsageProblem, match="is no cron text"):
        crontab(text)


def put(db: Database, cron: str, missed: Missed = "run") -> None:
    row = Schedule("nightly", cron, "restart", "restart", {}, missed, db.now(), 0.0)
    schedules.put(db, row)


def runs(db: Database) -> int:
    return db.value(
        "SELECT count(*) FROM events JOIN jobs ON jobs.id = job WHERE name = 'created' AND kind = 'run_schedule'"
    )


def end(db: Database, problem: MlxqError | None = None) -> None:
    claim = ledger.claim(db, "ops", {"run_schedule"}, "boot/1/1")
    assert claim
    if problem:
        ledger.fail(db, claim, problem)
    else:
        ledger.succeed(db, claim, {})


def local(text: str) -> float:
    return at(text).timestamp()


def test_what_is_due_runs_once_and_not_before(db: Database, clock: Any) -> None:
    clock.now = local("2026-11-29T03:00")
    put(db, "30 3 * * *")
    task.look(db)
    assert runs(db) == 0
    clock.now = local("2026-11-29T03:30:05")
    task.look(db)
    task.look(db)
    end(db)
    task.look(db)
    assert runs(db) == 1
    assert schedules.get(db, "nightly").next_due == local("2026-11-30T03:30")
    run = schedules.last_run(db, "nightly")
    assert run
    assert run.outcome == "succeeded"


@pytest.mark.parametrize(("missed", "count"), [("run", 1), ("skip", 0)])
def test_after_days_of_sleep_a_missed_run_is_made_up_for_once_or_skipped(
    db: Database, clock: Any, missed: Missed, count: int
) -> None:
    clock.now = local("2026-11-25T12:00")
    put(db, "*/10 * * * *", missed)
    clock.now = local("2026-11-29T12:06")
    task.look(db)
    task.look(db)
    assert runs(db) == count
    clock.now = local("2026-11-29T12:10:03")
    if count:
        end(db)
    task.look(db)
    assert runs(db) == count + 1


def test_a_clock_that_was_set_back_stops_no_schedule(db: Database, clock: Any) -> None:
    clock.now = local("2031-01-01T12:00")
    put(db, "30 3 * * *")
    task.look(db)
    clock.now = local("2026-11-29T12:00")
    task.look(db)
    clock.now = local("2026-11-30T03:30:01")
    task.look(db)
    assert runs(db) == 1


def test_a_time_that_summer_time_skips_is_due_after_it_and_one_that_comes_twice_once(db: Database, clock: Any) -> None:
    clock.now = local("2026-03-28T12:00")
    put(db, "30 2 * * *")
    clock.now = local("2026-03-29T03:30:05")
    task.look(db)
    assert runs(db) == 1
    end(db)
    clock.now = local("2026-10-24T12:00")
    put(db, "30 2 * * *")
    first = local("2026-10-25T02:30:05")
    for clock.now in (first, first + HOUR):
        task.look(db)
    assert runs(db) == 2


def test_a_run_that_fails_is_an_event_once(db: Database, clock: Any) -> None:
    clock.now = local("2026-11-29T03:00")
    put(db, "30 3 * * *")
    task.enqueue_run(db, "nightly")
    end(db, MlxqError("Nothing that the schedule restarts should run."))
    task.look(db)
    task.look(db)

    (failure,) = event.since(db, 0, {"schedule_failed"})
    assert failure.data["subject"] == "nightly"
    assert "Nothing that the schedule restarts" in failure.data["cause"]


def test_a_run_beside_one_that_still_goes_is_the_same(db: Database) -> None:
    put(db, "* * * * *")
    assert task.enqueue_run(db, "nightly") == task.enqueue_run(db, "nightly")
    assert len(job.listing(db, kind="run_schedule")) == 1


def test_a_batch_is_created_over_its_file_as_it_is_at_that_time(
    rows: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_client, "ensure_worker", lambda _: None)
    path = tmp_path / "requests.jsonl"
    path.write_text(line("a"))
    assert cli.run(["schedule", "add", "nightly", "0 1 * * *", "--timeout", "0", "--", "batch", "run", str(path)]) == 5
    args = json.loads(rows.value("SELECT args FROM jobs WHERE kind = 'add_schedule'"))
    assert (args["kind"], args["args"]) == ("batch", {"file": str(path), "out": None, "tier": None, "cloud": False})

    path.write_text(line("b") + "\n")
    new, write = task.RUNS["batch"](rows, args["args"] | {"out": "/answers.jsonl"})
    (batch,) = batches.listing(rows)
    assert (write.kind, write.args, write.needs) == (
        "write_batch_output",
        {"batch": batch.id, "out": "/answers.jsonl"},
        ["batch"],
    )
    assert (new.kind, new.args, new.queue) == ("batch", {"batch": batch.id}, "bulk")
    assert stored_files.path(rows.home, batch.input_file).read_text() == line("b") + "\n"


def test_a_newer_mlxq_can_be_looked_for(rows: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_client, "ensure_worker", lambda _: None)
    assert cli.run(["schedule", "add", "mlxq", "0 8 * * 1", "--timeout", "0", "--", "upgrade", "--check"]) == 5
    args = json.loads(rows.value("SELECT args FROM jobs WHERE kind = 'add_schedule'"))
    (check,) = task.RUNS[args["kind"]](rows, args["args"])
    assert (check.kind, check.args) == ("check_upgrade", {})


@pytest.mark.parametrize("words", [["-"], ["requests.jsonl", "--tier", "nope"]])
def test_a_batch_that_cannot_be_scheduled(rows: Database, words: list[str]) -> None:
    assert cli.run(["schedule", "add", "nightly", "0 1 * * *", "--", "batch", "run", *words]) in {1, 2}
    assert rows.value("SELECT count(*) FROM jobs WHERE kind = 'add_schedule'") == 0
