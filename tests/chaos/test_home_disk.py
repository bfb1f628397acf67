"""The disk of the home breaks: the kernel turns it read-only under a running mlxq."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import mounts, recovery
from support.mlxq_home import LIMIT_S, Mlxq, until
from support.mounts import FailingDisk

from mlxq import cli
from state import secrets, settings, stack
from state.db import open_database
from state.paths import Home
from state.service import State
from tasks import worker_status
from tasks.supervision import probe
from tasks.worker_status import WorkerState

pytestmark = pytest.mark.slow

READ_ONLY = "Read-only file system"
READS = (
    *(["status"], ["why", "fast"], ["models"], ["config", "list"], ["config", "get", "log-max-files"]),
    *(["logs", "fast"], ["jobs"], ["keys", "list"], ["usage"]),
)
WRITES = (
    *(["up"], ["down"], ["restart", "fast"], ["setup", "--accept-defaults"], ["setup", "--remove", "fast", "--yes"]),
    *(["config", "set", "log-max-files", "6"], ["config", "reset", "log-max-files"], ["keys", "create", "app"]),
    *(["connect", "env"], ["bench", "fast"], ["engine", "install", "rapid-mlx"]),
)


@pytest.fixture
def disk(home: Home) -> Iterator[FailingDisk]:
    """Return the disk of the home."""
    with mounts.failing(home.root, 64) as failing:
        home.root.chmod(0o700)
        home.make()
        yield failing


@pytest.fixture
def served(disk: FailingDisk, home: Home, tiny: Path) -> Iterator[Mlxq]:
    """Serve one tier from a home on the disk."""
    mlxq = Mlxq(home)
    mlxq.serve(tiny, "fast", "standard")
    mlxq.work_with_fakes()
    yield mlxq
    mlxq.close()


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Run a command; return its exit code and what it wrote to both streams."""
    capsys.readouterr()
    code = cli.run(list(argv))
    said = capsys.readouterr()
    return code, said.out + said.err


def test_a_home_that_turns_read_only_is_said_and_loses_nothing(
    served: Mlxq, disk: FailingDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    home, before = served.home, served.up()
    settings.write(home, "log-max-files", 5)
    recovery.wait_behind_a_pull(served)
    waiting = served.db.rows("SELECT id, kind, state FROM jobs WHERE state IN ('queued', 'blocked')")
    key = secrets.read(home.secrets)[secrets.TIER]
    tiers = stack.tiers(served.db)
    disk.fail()

    for argv in READS:
        code, said = run(capsys, *argv)
        assert (code, "Traceback" in said) == (0, False), (argv, said)
    for argv in WRITES:
        code, said = run(capsys, *argv)
        assert (code, "Traceback" in said) == (1, False), (argv, said)
        assert READ_ONLY in said, (argv, said)
        assert str(home.root) in said, (argv, said)
    until(lambda: worker_status.read(served.db) is WorkerState.HUNG, 60)
    assert f"its home cannot be written ({READ_ONLY})" in run(capsys, "status")[1]
    assert f"{home.root} cannot be written: {READ_ONLY}" in run(capsys, "doctor")[1]
    assert probe.one_token(before.port, key, "fast", 60) > 0

    served.db.close()
    disk.replug()
    assert served.worker
    assert served.worker.wait(LIMIT_S) == 0, "a worker ends, as its home is another, and launchd starts the next"
    served.db = open_database(home)
    served.work_with_fakes()
    served.await_doing(State.READY)
    assert served.db.value("PRAGMA integrity_check") == "ok"
    assert served.one().identity == before.identity
    assert settings.load(home)["log-max-files"] == 5
    assert stack.tiers(served.db) == tiers
    assert served.db.rows("SELECT id, kind, state FROM jobs WHERE state IN ('queued', 'blocked')") == waiting
    assert run(capsys, "config", "set", "log-max-files", "6")[0] == 0
    assert served.ended(served.put("restart", service="fast")).state == "succeeded"
