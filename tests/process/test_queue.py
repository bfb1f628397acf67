"""One real worker and tasks that behave as told: what each way to end leads to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.crew import Crew

from state import ledger
from state.errors import DiskFull
from state.job import JobState
from state.paths import Home
from tasks import worker_status
from tasks.worker_status import WorkerState


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Crew]:
    """Give a worker that all of these tests share."""
    home = Home(tmp_path_factory.mktemp("crew") / "home").make()
    home.database.write_bytes(empty_database.read_bytes())
    made = Crew(home)
    made.start()
    yield made
    made.close()


def test_what_a_task_returns_is_the_result(crew: Crew) -> None:
    job = crew.act("ok")

    assert crew.until_ended(job) == [JobState.SUCCEEDED]
    assert (crew.job(job).result, crew.events(job)) == ({"attempt": 1}, ["created", "claimed", "succeeded"])


def test_an_error_that_trying_again_cannot_mend_fails_at_once(crew: Crew) -> None:
    job = crew.act("fail")

    assert crew.until_ended(job) == [JobState.FAILED]
    found = crew.job(job)
    assert (found.error, found.attempt) == ("It cannot be. Nothing was changed.", 1)


def test_an_error_that_may_pass_is_tried_again(crew: Crew) -> None:
    job = crew.act("fail", times=1)

    assert crew.until_ended(job) == [JobState.SUCCEEDED]
    assert crew.events(job) == ["created", "claimed", "retried", "claimed", "succeeded"]


def test_a_task_may_ask_to_be_run_later(crew: Crew) -> None:
    job = crew.act("snooze")

    assert crew.until_ended(job) == [JobState.SUCCEEDED]
    assert (crew.events(job)[2], crew.job(job).failures) == ("snoozed", 0)


@pytest.mark.parametrize(
    ("do", "says"),
    [
        ("crash", "KeyError in task act: 'a fault in the task'"),
        ("leave", "SystemExit in task act: 3"),
        ("nonsense", "TypeError in task act: Object of type set is not JSON serializable"),
        ("loose", "IntegrityError in task act: cannot store TEXT value in INTEGER column job_deps.needs"),
    ],
)
def test_a_fault_in_a_task_fails_its_job_and_nothing_else(crew: Crew, do: str, says: str) -> None:
    job = crew.act(do)

    assert crew.until_ended(job) == [JobState.FAILED]
    found = crew.job(job)
    assert (found.error_code, found.error) == ("internal", says)


def test_a_time_limit_ends_a_task_that_looks(crew: Crew) -> None:
    job = crew.act("wait", kind="brief")

    assert crew.until_ended(job) == [JobState.FAILED]
    assert crew.job(job).error_code == "deadline"


@pytest.mark.parametrize(("do", "word"), [("wait", "started"), ("report", "started"), ("run_child", "child")])
def test_cancel_ends_a_running_job_at_once(crew: Crew, do: str, word: str) -> None:
    """Which would run for an hour; benchmarks/jobs.py holds the second that it may take."""
    job = crew.act(do, kind="dig")
    crew.until(lambda: any(note.job == job and note.word.startswith(word) for note in crew.notes()))
    ledger.cancel(crew.db, job)

    assert crew.until_ended(job) == [JobState.CANCELLED]


def test_the_fan_out_of_a_task_runs_after_it_and_before_the_join(crew: Crew) -> None:
    job = crew.act("fan_out")
    crew.until_ended(job)
    chain = [row["id"] for row in crew.db.rows("SELECT id FROM jobs WHERE chain = ? ORDER BY id", (job,))]
    crew.until_ended(*chain)

    started = [note.job for note in crew.notes() if note.job in chain and note.word == "started"]
    assert (started[0], sorted(started[1:-1]), started[-1]) == (chain[0], chain[1:-1], chain[-1])


def test_a_full_heavy_lane_delays_no_job_of_the_other(crew: Crew) -> None:
    digs = [crew.act("wait", kind="dig") for _ in range(4)]
    for dig in digs[:3]:
        crew.until_running(dig)

    assert crew.until_ended(crew.act("ok"), limit_s=30) == [JobState.SUCCEEDED]
    for dig in digs:
        ledger.cancel(crew.db, dig)
    crew.until_ended(*digs)


def test_the_worker_has_a_pulse(crew: Crew) -> None:
    crew.until(lambda: worker_status.read(crew.db) is WorkerState.ALIVE)


def test_a_tick_slower_than_its_period_is_not_run_beside_itself() -> None:
    """Else four late ticks would fill the queue that restarts need."""
    from tasks.queue import _alone

    running, go_on, runs = threading.Event(), threading.Event(), []

    def slow() -> None:
        runs.append(1)
        running.set()
        go_on.wait(60)

    once = _alone(slow)
    first = threading.Thread(target=once)
    first.start()
    assert running.wait(60)
    once()
    go_on.set()
    first.join()
    once()

    assert len(runs) == 2


def test_a_tick_on_a_full_disk_is_one_line_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Huey would log a traceback at every tick; the next one comes by itself."""
    from tasks import queue

    ends: list[str | None] = ["full", "full", "gone", None, "full"]
    lines: list[str] = []

    def look() -> None:
        if end := ends.pop(0):
            raise DiskFull(end)

    monkeypatch.setattr(queue.log, "error", lambda _event, error: lines.append(error))
    once = queue._alone(look)
    for _ in range(5):
        once()

    assert ends == []
    assert lines == ["full", "gone", "full"]


def test_a_stale_tick_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """After sleep one fresh tick is worth more than all that were missed."""
    from tasks import queue

    monkeypatch.setitem(queue.TICKS, "look", 200.0)
    storage = queue.LedgerStorage("ops")
    storage.ticks["look"] = (time.monotonic() - 201.0, b"stale")
    assert storage._tick() is None
    storage.ticks["look"] = (time.monotonic() - 100.0, b"fresh")
    assert storage._tick() == b"fresh"
    assert storage._tick() is None
