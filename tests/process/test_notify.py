"""A real worker tells a real receiver what changes, once, through failures of both."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.crew import Crew
from support.receiver import Receiver, receiving

from mlxq import cli
from state import event, settings
from state.job import JobState
from state.notify import notices
from state.paths import Home
from state.schedule import schedules
from state.schedule.schedules import Schedule
from tasks import schedule

TURN = {"NOTIFY_GROUP_S": "0.2"}


@pytest.fixture
def crew(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crew]:
    home = Home(tmp_path / "crew").make()
    home.database.write_bytes(empty_database.read_bytes())
    monkeypatch.setenv("MLXQ_HOME", str(home.root))
    made = Crew(home)
    yield made
    made.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


def state(crew: Crew) -> tuple[str, int]:
    row = crew.db.row("SELECT state, attempt FROM jobs WHERE kind = 'notify' ORDER BY id DESC LIMIT 1")
    return (row["state"], row["attempt"]) if row else ("", 0)


def subjects(receiver: Receiver) -> list[list[str]]:
    return [[change["subject"] for change in json.loads(request.body)["events"]] for request in receiver.requests]


def test_a_change_is_delivered_after_failures_and_a_killed_worker_once(crew: Crew, receiver: Receiver) -> None:
    """No change is lost or reported twice; what changes meanwhile comes in the same message."""
    receiver.do = "500"
    assert cli.run(["notify", "add", "ops", "webhook", f"{receiver.url}/hook"]) == 0
    worker = crew.start(**TURN)
    event.record(crew.db, "crash_looped", service="fast", cause="It was killed.")
    receiver.wait(2)
    worker.send_signal(signal.SIGKILL)
    worker.wait(20)
    event.record(crew.db, "crash_looped", service="standard")
    failures = len(receiver.requests)
    receiver.do = "200"
    crew.start(**TURN)
    crew.until(lambda: state(crew)[0] == JobState.SUCCEEDED and not notices.pending(crew.db, "ops"))

    delivered = [subject for message in subjects(receiver)[failures:] for subject in message]
    assert delivered == ["fast", "standard"]
    assert all(row["subject"] in {"fast", "standard"} for row in crew.db.rows("SELECT subject FROM notices"))


def test_targets_that_hang_hold_up_no_other_job(crew: Crew, receiver: Receiver) -> None:
    receiver.do = "hang"
    for number in range(5):
        assert cli.run(["notify", "add", f"t{number}", "webhook", f"{receiver.url}/hook"]) == 0
    crew.start(**TURN, THREADS="12 3", NOTIFY_LIMIT_S="3600")
    event.record(crew.db, "crash_looped", service="fast")
    receiver.wait(5)

    assert crew.until_ended(crew.act("ok")) == [JobState.SUCCEEDED]
    assert crew.count(JobState.RUNNING) == 5


def test_quiet_hours_hold_a_message_back_unless_its_target_is_always_told(crew: Crew, receiver: Receiver) -> None:
    now = time.localtime()
    quiet = f"{now.tm_hour:02}:00-{(now.tm_hour + 2) % 24:02}:00"
    settings.write(crew.home, "quiet-hours", quiet)
    cli.run(["notify", "add", "ops", "webhook", f"{receiver.url}/ops"])
    cli.run(["notify", "add", "pager", "webhook", f"{receiver.url}/pager", "--always"])
    crew.start(**TURN)
    event.record(crew.db, "failed", service="fast", cause="Its weights are gone.")
    receiver.wait(1)
    crew.until(lambda: crew.db.value("SELECT count(*) FROM events WHERE name = 'snoozed'"))

    assert [request.line for request in receiver.requests] == ["POST /pager HTTP/1.1"]
    wait_s = crew.db.value("SELECT run_at FROM jobs WHERE kind = 'notify' AND state = 'queued'") - time.time()
    assert 3000 < wait_s <= 7200


def test_a_deadman_is_requested_while_all_serves(crew: Crew, receiver: Receiver) -> None:
    cli.run(["notify", "add", "dead", "deadman", f"{receiver.url}/alive"])
    crew.start(**TURN)

    assert receiver.wait(1)[0].line == "GET /alive HTTP/1.1"


def test_a_test_message_says_how_it_went(crew: Crew, receiver: Receiver, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["notify", "add", "ops", "webhook", f"{receiver.url}/secret-path"])
    crew.start(**TURN)
    crew.until_up()
    secret = capsys.readouterr().out.strip()
    assert cli.run(["notify", "test", "ops"]) == 0
    receiver.do = "302"
    assert cli.run(["notify", "test"]) == 1

    assert "redirects (status 302), which mlxq does not follow" in capsys.readouterr().err
    assert [json.loads(request.body)["events"][0]["event"] for request in receiver.requests] == ["test", "test"]
    rows = "\n".join(
        str(dict(row)) for table in ("jobs", "events", "notices") for row in crew.db.rows(f"SELECT * FROM {table}")
    )
    for text in (secret, "secret-path"):
        assert text not in crew.log()
        assert text not in rows


def test_a_scheduled_batch_that_fails_is_reported(crew: Crew, receiver: Receiver, tmp_path: Path) -> None:
    """From the run of the schedule to the receiver; the tick's own function looks, as its next turn is 20 s away."""
    assert cli.run(["notify", "add", "ops", "webhook", f"{receiver.url}/hook"]) == 0
    args = {"file": str(tmp_path / "gone.jsonl"), "tier": None, "cloud": False}
    now = time.time()
    schedules.put(
        crew.db, Schedule("nightly", "0 1 * * *", "batch run gone.jsonl", "batch", args, "run", now, now + 9e6)
    )
    crew.start(**TURN)
    assert crew.until_ended(schedule.enqueue_run(crew.db, "nightly")) == [JobState.FAILED]
    schedule.look(crew.db)

    crew.until(lambda: any("nightly" in subject for subject in subjects(receiver)))
    changes = [change for request in receiver.requests for change in json.loads(request.body)["events"]]
    (change,) = [change for change in changes if change["event"] == "schedule_failed"]
    assert change["subject"] == "nightly"
    assert "gone.jsonl" in change["message"]
