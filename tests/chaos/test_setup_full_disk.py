"""The disk of the home is full at some stage of set-up: it is said, nothing is half written, and set-up ends later."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support import disk
from support.user import User

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FULL_S = 3.0
"""How long the disk stays full once set-up came to the stage."""
LIMIT_S = 400.0
SETUP = ("setup", "--accept-defaults", "--model", "smollm2-135m")
"""One engine shows what three would."""
EACH = [[stage] for stage in ("", "detect", "pull", "configure", "start", "smoke_test")]
STAGES = EACH if "DISK_STAGES" in os.environ else [["pull", "start"]]
"""Set-up takes a minute, so the suite tries two in one; `DISK_STAGES=1` tries each."""


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    """Return a user whose home has a disk of its own; the models have another."""
    with disk.mounted(tmp_path / "disk", "96m") as place:
        user = User(place / "home")
        user.environment["MLXQ_MODEL_DIR"] = str(tmp_path / "models")
        yield user
        with contextlib.suppress(AssertionError):
            user.leave()


def reached(user: User, stage: str) -> bool:
    """Return whether a job of this kind has begun; of "" whether there is a database."""
    if not stage:
        return user.home.database.exists()
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"file:{user.home.database}?mode=ro", uri=True)) as db,
    ):
        return bool(db.execute("SELECT count(*) FROM jobs WHERE kind = ? AND attempt > 0", (stage,)).fetchone()[0])
    return False


def begin(user: User) -> subprocess.Popen[str]:
    """Start set-up."""
    argv = [sys.executable, "-P", "-m", "mlxq", *SETUP]
    return subprocess.Popen(argv, env=user.environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ended(setup: subprocess.Popen[str]) -> str:
    """Wait for the end of set-up, and return what it wrote to stderr."""
    said = setup.communicate(timeout=LIMIT_S)[1]
    assert setup.returncode in {0, 1, 4}, said
    return said


def fill_at(user: User, stage: str, setup: subprocess.Popen[str]) -> None:
    """Let the disk be full for a while from when set-up has come to a stage."""
    filler = user.home.root.parent / "filler"
    deadline = time.monotonic() + LIMIT_S
    while not reached(user, stage):
        assert setup.poll() is None, setup.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    disk.fill(filler)
    with contextlib.suppress(subprocess.TimeoutExpired):
        setup.wait(FULL_S)
    filler.unlink()


def test_before_there_is_anything_it_is_said(user: User) -> None:
    disk.fill(user.home.root.parent / "filler")

    done = subprocess.run(
        [sys.executable, "-P", "-m", "mlxq", *SETUP],
        env=user.environment, capture_output=True, text=True, check=False, timeout=LIMIT_S,
    )  # fmt: skip

    assert done.returncode in {1, 4}, done.stderr
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr or "is full" in done.stderr


@pytest.mark.parametrize("stages", STAGES, ids=" ".join)
def test_set_up_ends_after_its_disk_was_full(user: User, stages: Sequence[str]) -> None:
    """Whatever the command said meanwhile, the same command ends with a stack that serves."""
    said: list[str] = []
    setup = begin(user)
    for stage in stages:
        if setup.poll() is not None:
            said.append(ended(setup))
            setup = begin(user)
        fill_at(user, stage, setup)
    said.append(ended(setup))

    assert "Traceback" not in "".join(said)
    user.run(*SETUP)
    assert {row["state"] for row in user.services().values()} == {"healthy"}
    log = user.home.log("worker").read_text()
    assert "Traceback" not in log, log[max(0, log.index("Traceback") - 1500) : log.index("Traceback") + 6000]
    with contextlib.closing(sqlite3.connect(user.home.database)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*) FROM jobs WHERE state IN ('queued', 'blocked', 'running')").fetchone() == (
            0,
        )
