"""Real workers, real signals, a real full disk: a job that was accepted ends as its states say."""

from __future__ import annotations

import os
import pickle
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from support import disk
from support.crew import LIMIT_S, Crew, start_worker, storm
from support.suspend import suspend_pid

from state import ledger
from state.db import open_database
from state.errors import DiskFull
from state.job import Claim, JobState, NewJob
from state.paths import Home
from tasks import worker_status
from tasks.worker_status import WorkerState


@pytest.fixture
def crew(home: Home) -> Iterator[Crew]:
    made = Crew(home)
    yield made
    made.close()


# ---------------------------------------------------------------- kills


@pytest.mark.parametrize(("number", "threads"), [(signal.SIGKILL, 8), (signal.SIGTERM, 4)])
def test_no_kill_loses_a_job(crew: Crew, number: signal.Signals, threads: int) -> None:
    """Each signal and each number of threads once: how many threads there are changes no line that a signal runs."""
    toll = storm(crew, number, threads=threads, jobs=120, kills=4)

    assert toll.lost == 0
    assert toll.after_success == 0
    assert toll.repeats <= toll.threads * toll.kills
    if number is signal.SIGKILL:
        assert toll.rescue_s


def test_a_chain_killed_three_times_ends_in_its_order(crew: Crew) -> None:
    """As setup: a first job puts in three side by side and one that needs them all; another waits for that."""
    first = crew.act("fan_out", way="hold")
    last = ledger.enqueue(crew.db, NewJob("act", needs=[first]))[0]
    kill_when(crew, succeeded=0, running=1)
    crew.let_go(first)
    kill_when(crew, succeeded=2, running=3)
    children = [row["id"] for row in crew.db.rows("SELECT id FROM jobs WHERE state = 'running'")]
    crew.let_go(*children[:2])
    kill_when(crew, succeeded=4, running=1)
    crew.let_go(children[2])
    crew.start()
    crew.until_ended(first, last)
    crew.until(lambda: crew.count(JobState.SUCCEEDED) == 6)

    early = crew.db.value(
        "SELECT count(*) FROM job_deps AS d JOIN events AS begun ON begun.job = d.job AND begun.name = 'claimed'"
        " JOIN events AS done ON done.job = d.needs AND done.name = 'succeeded' WHERE begun.id < done.id"
    )
    assert early == 0
    assert crew.db.value("SELECT count(*) FROM events WHERE name = 'succeeded'") == 6


def kill_when(crew: Crew, *, succeeded: int, running: int) -> None:
    """Start a worker, and kill it once `succeeded` jobs have succeeded and `running` jobs are running."""
    worker = crew.start()
    crew.until(lambda: (crew.count(JobState.SUCCEEDED), crew.count(JobState.RUNNING)) == (succeeded, running))
    worker.kill()
    worker.wait()


def test_a_job_that_kills_its_worker_is_given_up(crew: Crew) -> None:
    killer, honest = crew.act("kill"), crew.act("ok")
    for _ in range(ledger.MAX_RESCUES + 1):
        assert crew.start().wait(60) == -signal.SIGKILL
    crew.start()

    assert crew.until_ended(killer, honest) == [JobState.FAILED, JobState.SUCCEEDED]
    assert crew.job(killer).error_code == "worker_lost"


def test_a_stopping_worker_gives_its_jobs_back_in_time(crew: Crew) -> None:
    """Waiting tasks, a child that does not hear SIGTERM, and a thread that never looks: none counts as a failure."""
    waits, child, deaf = crew.act("wait"), crew.act("run_child", kind="dig", deaf=True), crew.act("stuck")
    worker = crew.start(STOP_GRACE_S="8")
    crew.until(lambda: any(note.word.startswith("child") for note in crew.notes()))
    crew.until_running(waits)
    crew.until_running(deaf)
    worker.terminate()

    assert worker.wait(30) == 0
    for job in (waits, child, deaf):
        found = crew.job(job)
        assert (found.state, found.failures, found.rescues) == (JobState.QUEUED, 0, 0)
        assert crew.events(job)[-1] == "released"
    assert worker_status.read(crew.db) is WorkerState.NONE


def test_a_thread_that_cannot_be_stopped_costs_its_worker_and_no_other_job(crew: Crew) -> None:
    stuck, other = crew.act("stuck", kind="brief"), crew.act("wait")
    worker = crew.start(OVERRUN_S="0.5", STOP_GRACE_S="1")

    assert worker.wait(LIMIT_S) != 0
    assert crew.job(stuck).error_code == "deadline"
    assert crew.job(other).state is JobState.QUEUED
    assert "deadline: " in crew.log()


def test_a_child_that_does_not_hear_is_killed_when_its_job_is_cancelled(crew: Crew) -> None:
    job = crew.act("run_child", kind="dig", deaf=True)
    crew.start()
    crew.until(lambda: any(note.word.startswith("child") for note in crew.notes()))
    pid = next(int(note.word.removeprefix("child-")) for note in crew.notes() if note.word.startswith("child"))
    asked = time.monotonic()
    ledger.cancel(crew.db, job)

    assert crew.until_ended(job) == [JobState.CANCELLED]
    assert time.monotonic() - asked > 4  # SIGTERM came first
    assert not psutil.pid_exists(pid)


# ---------------------------------------------------------------- zombies and twins


def test_a_stopped_worker_is_hung_keeps_its_jobs_and_its_lock(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    job = crew.act("hold")
    worker = crew.start()
    crew.until_running(job)
    suspend_pid(worker.pid)

    second = crew.start()
    assert second.wait(LIMIT_S) != 0
    assert re.search(rf"busy: A worker of .* already runs \(pid {worker.pid}\)", crew.log())
    assert crew.job(job).state is JobState.RUNNING
    monkeypatch.setattr(worker_status, "HUNG_S", 0.5)
    crew.until(lambda: worker_status.read(crew.db) is WorkerState.HUNG)

    worker.send_signal(signal.SIGCONT)
    crew.let_go(job)
    assert crew.until_ended(job) == [JobState.SUCCEEDED]
    assert crew.job(job).attempt == 1
    worker.kill()
    worker.wait()
    assert worker_status.read(crew.db) is WorkerState.DEAD


def stop_between_writes(crew: Crew, worker: subprocess.Popen[bytes]) -> None:
    """Suspend a worker while it does not hold the database, which nobody else could write to."""
    while True:
        worker.send_signal(signal.SIGSTOP)
        os.waitpid(worker.pid, os.WUNTRACED)
        if unlocked(crew.home):
            return
        worker.send_signal(signal.SIGCONT)


def unlocked(home: Home) -> bool:
    """Return whether nobody holds the database for writing."""
    with closing(sqlite3.connect(home.database, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        return True


def test_what_a_zombie_writes_is_refused(crew: Crew) -> None:
    """Somebody took the job from a worker that slept; when it wakes, its result is not wanted any more."""
    job = crew.act("hold")
    worker = crew.start()
    crew.until_running(job)
    stop_between_writes(crew, worker)
    ledger.rescue(crew.db, ledger.running(crew.db))
    heir = ledger.claim(crew.db, "ops", {"act"}, "another/1/1")
    assert isinstance(heir, Claim)
    ledger.succeed(crew.db, heir, "the heir's")

    worker.send_signal(signal.SIGCONT)
    crew.let_go(job)
    crew.until(lambda: "job_fenced" in crew.log())

    assert (crew.job(job).result, crew.events(job).count("succeeded")) == ("the heir's", 1)


def test_a_hundred_askers_at_once_make_one_job(crew: Crew) -> None:
    script = (
        "from state import ledger; from state.db import open_database; from state.job import NewJob;"
        "from state.paths import get_home; db = open_database(get_home());"
        "[ledger.enqueue(db, NewJob('act', unique_key='one')) for _ in range(10)]"
    )
    askers = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(10)]

    assert [asker.wait() for asker in askers] == [0] * 10
    assert crew.db.value("SELECT count(*) FROM jobs") == 1


# ---------------------------------------------------------------- the clock, the disk, the file


@pytest.mark.parametrize("hours", [1, -1])
def test_a_wall_clock_that_jumps_an_hour_delays_and_loses_nothing(crew: Crew, tmp_path: Path, hours: int) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0")
    crew.start(CLOCK=str(clock))
    running, retried, snoozed = (
        crew.act("ok", seconds=1.0),
        crew.act("fail", times=1),
        crew.act("snooze", seconds=2.0),
    )
    crew.until_running(running)
    clock.write_text(str(hours * 3600))
    asked_after = crew.act("ok")

    assert crew.until_ended(running, retried, snoozed, asked_after) == [JobState.SUCCEEDED] * 4
    assert crew.job(running).attempt == 1
    assert worker_status.read(crew.db) is WorkerState.ALIVE


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a disk of 2 MB."""
    with disk.mounted(tmp_path / "disk", "2m") as place:
        yield place


@pytest.fixture
def cramped(small_disk: Path, empty_database: Path) -> Iterator[Crew]:
    """Give a crew whose home lies on that disk."""
    home = Home(small_disk / "home").make()
    home.database.write_bytes(empty_database.read_bytes())
    made = Crew(home)
    yield made
    made.close()


def test_a_disk_that_fills_and_empties_costs_time_and_no_job(cramped: Crew, small_disk: Path) -> None:
    crew = cramped
    crew.start()
    held = crew.act("hold")
    crew.until_running(held)
    filler = small_disk / "filler"
    disk.fill(filler)
    with pytest.raises(DiskFull):
        ask_until_full(crew)
    asked = crew.count(*JobState)
    crew.let_go(held)
    crew.until(lambda: [note for note in crew.notes() if (note.job, note.word) == (held, "ended")])
    until = time.monotonic() + 2
    crew.until(lambda: time.monotonic() > until)
    assert crew.job(held).state is JobState.RUNNING  # done for two seconds; its row cannot be written
    filler.unlink()

    crew.until(lambda: crew.count(JobState.QUEUED, JobState.RUNNING) == 0)
    assert crew.job(held).state is JobState.SUCCEEDED
    assert sum(note.job == held and note.word == "started" for note in crew.notes()) == 1
    assert crew.count(*JobState) == asked


def ask_until_full(crew: Crew) -> None:
    """Put jobs in until one is refused: the WAL may still have room in its old frames."""
    while True:
        crew.act("ok", words="x" * 4000)


def test_a_pickle_in_a_row_does_nothing_and_holds_nobody_up(crew: Crew, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, (f"open({str(tmp_path / 'evil')!r}, 'w')",)

    job = crew.act("ok")
    for protocol in (0, pickle.HIGHEST_PROTOCOL):
        with pytest.raises(sqlite3.IntegrityError):
            crew.db.run("UPDATE jobs SET args = ? WHERE id = ?", (pickle.dumps(Evil(), protocol), job))
    crew.db.run("PRAGMA ignore_check_constraints=ON")
    crew.db.run("UPDATE jobs SET args = ? WHERE id = ?", (pickle.dumps(Evil(), 0).decode(), job))
    crew.db.run("PRAGMA ignore_check_constraints=OFF")
    listed = ledger.enqueue(crew.db, NewJob("act"))[0]
    crew.db.run("UPDATE jobs SET args = '[1, 2]' WHERE id = ?", (listed,))
    after = crew.act("ok")
    crew.start()

    assert crew.until_ended(listed, after) == [JobState.FAILED, JobState.SUCCEEDED]
    assert not (tmp_path / "evil").exists()
    assert crew.db.value("SELECT state FROM jobs WHERE id = ?", (job,)) == "queued"
    crew.db.run("DELETE FROM jobs WHERE id = ?", (job,))


def test_a_kind_of_the_next_version_is_kept_and_does_not_keep_the_worker_busy(crew: Crew) -> None:
    strange, looks = ledger.enqueue(crew.db, NewJob("teleport"))[0], crew.home.root / "looks"
    crew.start(LOOKS=str(looks))
    crew.until_ended(crew.act("ok"))
    before, until = looks.stat().st_size, time.monotonic() + 3

    crew.until(lambda: time.monotonic() > until)

    assert looks.stat().st_size - before < 100  # each thread that waits looks every 5 s
    assert crew.job(strange).state is JobState.QUEUED


def test_a_worker_refuses_a_damaged_database_in_one_line(home: Home) -> None:
    home.database.write_bytes(b"no database at all. " * 500)

    assert start_worker(home).wait(LIMIT_S) != 0

    said = home.log("worker").read_text()
    assert said.startswith("state_damaged: ")
    assert "Traceback" not in said


def test_all_that_a_worker_leaves_is_its_owners_alone(crew: Crew) -> None:
    worker = crew.start()
    crew.until_ended(crew.act("ok"))
    worker.terminate()
    worker.wait(20)

    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in crew.home.root.rglob("*")}
    open_to_others = [path.name for path, mode in modes.items() if mode & 0o077]
    assert open_to_others == []


def test_two_writers_at_odds_wait_for_each_other(crew: Crew, home: Home) -> None:
    """A lock held for seconds, by a backup say, delays the worker and loses nothing."""
    crew.start()
    crew.until_ended(crew.act("ok"))
    job = crew.act("ok", seconds=0.5)
    crew.until_running(job)
    other = open_database(home)
    until = time.monotonic() + 2
    with other.transaction():
        crew.until(lambda: time.monotonic() > until)
    other.close()

    assert crew.until_ended(job) == [JobState.SUCCEEDED]
    assert crew.job(job).attempt == 1
