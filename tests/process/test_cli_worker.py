"""A command that needs the worker: one is started, never two, and a dead one is replaced. All processes are real."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from support.mlxq_home import until

from mlxq import autostart, jobs_client, worker_process
from mlxq.autostart.unit import Unit
from state import files, ledger, secrets, service, wakeup, worker
from state.db import Database, open_database
from state.errors import MlxqError
from state.job import JobState, get
from state.paths import Home
from tasks import kinds, worker_status
from tasks.system import process

PROGRAM = [sys.executable, "-P", "-m", "mlxq"]
PATIENCE_S = 60.0
LATER = replace(kinds.new("detect"), wait_s=3600.0)
"""A job that stays queued as long as a test lasts."""


@pytest.fixture(autouse=True)
def _no_worker_left(home: Home) -> Iterator[None]:
    yield
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if each.environ().get("MLXQ_HOME") == str(home.root) and "worker" in each.cmdline():
                each.kill()


@pytest.fixture
def db(home: Home) -> Iterator[Database]:
    """Give the ledger with the real clock, which the worker has too."""
    opened = open_database(home)
    yield opened
    opened.close()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `mlxq` with arguments; whatever still runs at the end is killed."""
    began: list[subprocess.Popen[str]] = []

    def begin(*argv: str) -> subprocess.Popen[str]:
        began.append(
            subprocess.Popen(
                [*PROGRAM, *argv], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        return began[-1]

    yield begin
    for each in began:
        each.kill()
        each.communicate()


def line_with(program: subprocess.Popen[str], words: str) -> str:
    """Return the next line of stderr with these words; fail after PATIENCE_S, or at the end of stderr."""
    assert program.stderr
    until = time.monotonic() + PATIENCE_S
    read = b""
    while not (read.endswith(b"\n") and words in read.decode().splitlines()[-1]):
        ready = select.select([program.stderr], [], [], max(0.0, until - time.monotonic()))[0]
        assert ready, f"no line with {words!r} in {PATIENCE_S:.0f} s: {read.decode()}"
        byte = os.read(program.stderr.fileno(), 1)  # unbuffered, so that the rest is left for the next call
        assert byte, f"stderr ended without {words!r}: {read.decode()}"
        read += byte
    return read.decode().splitlines()[-1]


def pid_in(line: str) -> int:
    found = re.search(r"pid (\d+)", line)
    assert found
    return int(found[1])


def log_of(home: Home, event: str, count: int) -> int:
    """Wait until the worker's log has an event `count` times; return how often it does then, or after PATIENCE_S."""
    until = time.monotonic() + PATIENCE_S
    lines = 0
    while lines < count and time.monotonic() < until:
        time.sleep(0.02)  # a file tells no one that it has grown, and a busy loop takes a core from who writes it
        with contextlib.suppress(FileNotFoundError):
            lines = home.log("worker").read_text().count(event)
    return lines


def test_commands_side_by_side_start_one_worker(
    home: Home, db: Database, start: Callable[..., subprocess.Popen[str]]
) -> None:
    ledger.enqueue(db, LATER)

    programs = [start("jobs", "watch", "1", "--timeout", "2") for _ in range(5)]
    said = [program.communicate()[1] for program in programs]

    assert [program.returncode for program in programs] == [5] * 5
    assert sum(each.count("Started the worker") for each in said) == 1
    assert log_of(home, "worker_started", 1) == 1


def test_a_worker_that_a_person_runs_is_used(
    home: Home, db: Database, start: Callable[..., subprocess.Popen[str]]
) -> None:
    own = start("worker")
    line_with(own, "worker_started")
    ledger.enqueue(db, LATER)

    watching = start("jobs", "watch", "1", "--timeout", "0.5")

    assert "Started the worker" not in watching.communicate()[1]
    assert watching.returncode == 5


def test_a_second_worker_says_that_there_is_one(home: Home, start: Callable[..., subprocess.Popen[str]]) -> None:
    line_with(start("worker"), "worker_started")

    second = start("worker")

    assert "already runs" in second.communicate()[1]
    assert second.returncode == 1


def test_the_systems_worker_waits_for_the_one_that_runs_and_takes_over(
    home: Home, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """Launchd would start a worker that fails for ever, every five seconds."""
    first = start("worker")
    line_with(first, "worker_started")
    later = start("worker", "--wait")
    line_with(later, "waiting for it to exit")

    first.send_signal(signal.SIGTERM)

    assert f'"pid": {later.pid}' in line_with(later, "worker_started")


SYSTEMCTL = """#!/bin/sh
case "$*" in
  *restart*) exit $REFUSES ;;
  *"show mlxq-worker"*) printf 'ActiveState=active\\nSubState=running\\nMainPID=4242\\n' ;;
esac
"""


@pytest.mark.parametrize(("refuses", "begun"), [(0, True), (1, True), (0, False)])
def test_an_installation_ends_the_worker_in_the_background(
    *, refuses: int, begun: bool, home: Home, db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the lock that the system's worker needs; where the system refuses, another runs in the background.

    One that is only starting would take the lock after the installation, and keep it.
    """
    for name, text in (("systemctl", SYSTEMCTL), ("loginctl", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("REFUSES", str(refuses))
    background = worker_process.ensure(home)
    assert background
    first = until(lambda: worker.current(db), PATIENCE_S) if begun else None
    unit = Unit([*PROGRAM, "worker", "--wait"], home, {}, user_id=os.getuid(), user_home=tmp_path)

    with pytest.raises(MlxqError) if refuses else contextlib.nullcontext():
        assert "Stopped the worker in the background; the system's takes over." in autostart.install(unit)

    assert background.wait(PATIENCE_S) is not None
    if refuses:
        until(lambda: (row := worker.current(db)) and first and row.owner != first.owner and row, PATIENCE_S)
    else:
        assert worker.current(db) is None or (first and not worker_status.is_alive(first.owner))
        assert not files.locked(home.worker_lock)


def test_a_worker_that_waits_ends_when_it_is_told_to(home: Home, start: Callable[..., subprocess.Popen[str]]) -> None:
    line_with(start("worker"), "worker_started")
    later = start("worker", "--wait")
    line_with(later, "waiting for it to exit")

    later.send_signal(signal.SIGTERM)

    assert later.wait(PATIENCE_S) == -signal.SIGTERM


def test_a_worker_that_dies_while_a_command_waits_is_replaced_and_ctrl_c_leaves_the_job(
    home: Home, db: Database, start: Callable[..., subprocess.Popen[str]]
) -> None:
    job, _ = ledger.enqueue(db, LATER)
    watching = start("jobs", "watch", str(job))
    first = pid_in(line_with(watching, "Started the worker"))
    log_of(home, "worker_started", 1)

    os.kill(first, signal.SIGKILL)
    second = pid_in(line_with(watching, "Started the worker again"))
    watching.send_signal(signal.SIGINT)

    assert second != first
    assert f"job {job} continues" in line_with(watching, "Stopped watching")
    assert watching.wait(PATIENCE_S) == 130
    assert get(db, job).state is JobState.QUEUED


def test_a_second_ctrl_c_cancels(home: Home, db: Database, start: Callable[..., subprocess.Popen[str]]) -> None:
    job, _ = ledger.enqueue(db, LATER)
    watching = start("jobs", "watch", str(job))
    line_with(watching, "Started the worker")

    watching.send_signal(signal.SIGINT)
    line_with(watching, "Stopped watching")
    watching.send_signal(signal.SIGINT)

    assert watching.wait(PATIENCE_S) == 130
    assert get(db, job).state is JobState.CANCELLED


def test_a_worker_that_cannot_start_is_given_up_with_its_log(
    home: Home,
    db: Database,
    start: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledger.enqueue(db, LATER)
    (tmp_path / "huey.py").write_text("raise SystemExit(1)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    watching = start("jobs", "watch", "1")
    said = watching.communicate(timeout=PATIENCE_S)[1]

    assert watching.returncode == 1
    assert "The worker exited 3 times, last with exit code 1. The jobs are kept." in said
    assert str(home.log("worker")) in said


def test_the_worker_s_log_is_private(home: Home, db: Database, start: Callable[..., subprocess.Popen[str]]) -> None:
    ledger.enqueue(db, LATER)

    start("jobs", "watch", "1", "--timeout", "0.2").communicate()

    modes = {path.name: path.stat().st_mode & 0o077 for path in Path(home.root).rglob("*") if not path.is_symlink()}
    assert dict.fromkeys(modes, 0) == modes


def test_down_ends_the_worker_of_a_home_without_a_stack(
    home: Home, db: Database, start: Callable[..., subprocess.Popen[str]]
) -> None:
    ledger.enqueue(db, LATER)
    pid = pid_in(line_with(start("jobs", "watch", "1"), "Started the worker"))
    log_of(home, "worker_started", 1)
    ledger.cancel(db, 1)

    down = start("down")

    assert "Nothing is set up; the worker was stopped." in down.communicate()[1]
    assert down.returncode == 0
    assert process.identify(pid) is None
    assert "mlxq is not set up in " in start("down").communicate()[1]


QUICKLY = """
from state.paths import get_home
from tasks import worker
worker.HEALTH_S, worker.SETTLE_S = 0.1, 1.0
worker.run(get_home())
"""


def test_a_worker_begins_again_with_a_state_db_that_was_put_in_place_of_its_own(
    home: Home, empty_database: Path, tmp_path: Path
) -> None:
    """As a backup is restored: no one would read what it wrote to the old one, and no job of the new one would run."""
    own = subprocess.Popen([sys.executable, "-P", "-c", QUICKLY], stderr=subprocess.PIPE, text=True)
    assert f'"pid": {own.pid}' in line_with(own, "worker_started")

    for name in ("-wal", "-shm"):
        home.database.with_name(home.database.name + name).unlink(missing_ok=True)
    Path(shutil.copy(empty_database, tmp_path / "restored")).replace(home.database)
    assert '"database_replaced": true' in line_with(own, "worker_stopped")
    assert f'"pid": {own.pid}' in line_with(own, "worker_started")

    with contextlib.closing(open_database(home)) as db:
        (number, _) = ledger.enqueue(db, kinds.new("detect"))
        until(lambda: not get(db, number).live, PATIENCE_S)
        assert get(db, number).state is JobState.SUCCEEDED
    own.terminate()
    assert own.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("fate", ["deleted", "moved", "replaced", "unlocked"])
def test_a_worker_ends_with_its_home(home: Home, db: Database, fate: str) -> None:
    """Its services end too when it was deleted; elsewhere it may come back, or another one have adopted them."""
    service.ensure(db, "fast", "engine", 9001)
    secrets.ensure(home.secrets)
    marks = {"MLXQ_HOME": str(home.root), "MLXQ_SERVICE": "fast"}
    serving = subprocess.Popen(["sleep", "600"], env=os.environ | marks, process_group=0)
    threading.Thread(target=serving.wait, daemon=True).start()  # as init would, so that its death can be seen
    own = subprocess.Popen([sys.executable, "-P", "-c", QUICKLY], stderr=subprocess.PIPE, text=True)
    line_with(own, "worker_started")

    if fate == "deleted":
        shutil.rmtree(home.root, ignore_errors=True)  # the worker may be writing into it
    elif fate == "unlocked":
        home.worker_lock.unlink()
    else:
        home.root.rename(home.root.with_name("moved"))
    if fate == "replaced":
        home.make()
        home.worker_lock.touch()

    assert own.wait(PATIENCE_S) == 0
    assert (serving.poll() is None) is (fate != "deleted")
    serving.kill()
    serving.wait()


def test_down_ends_the_worker_that_a_command_started(
    home: Home, db: Database, start: Callable[..., subprocess.Popen[str]]
) -> None:
    ledger.enqueue(db, LATER)
    line_with(start("jobs", "watch", "1"), "Started the worker")
    with wakeup.watcher(home) as bell:
        while (found := worker.current(db)) is None:
            bell.wait(0.2)

    ledger.cancel(db, 1)
    jobs_client.stop_idle_worker(home)

    assert not process.alive(process.decode(found.owner))


JOB = [
    *("schema_version", "job"),
    *("id", "kind", "args", "queue", "priority", "unique_key", "chain", "source", "state", "attempt", "failures"),
    *("max_attempts", "rescues", "run_at", "wait_s", "owner", "beat_at", "cancel_at", "phase", "progress", "result"),
    *("error_code", "error", "hint", "created_at", "started_at", "finished_at", "needs"),
]
STATUS = ["schema_version", "hardware", "endpoint", "worker", "services", "jobs", "config", "cloud", "stack", "nodes"]


STORED = ["budget_named", "asked", "builtin", "budget_bytes", "total_bytes", "explain"]
CHOSEN = ["kept", "tiers", "sizes", "engine"]


def test_setup_as_json_is_a_line_at_each_change_and_status_at_the_end(
    home: Home, db: Database, start: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    out, err = start("setup", "--yes", "--no-pull", "--json").communicate(timeout=PATIENCE_S)

    *lines, last = [json.loads(line) for line in out.splitlines()]
    assert [[*line, *line["job"]] for line in lines] == [JOB] * len(lines), err
    assert list(last) == STATUS
    ended = {line["job"]["kind"]: line["job"]["state"] for line in lines}
    assert ended == {"detect": "succeeded", "score": "succeeded", "configure": "succeeded"}
    chosen = next(line["job"]["result"] for line in lines if line["job"]["kind"] == "score" and line["job"]["result"])
    assert list(chosen) == [*STORED, *CHOSEN]
