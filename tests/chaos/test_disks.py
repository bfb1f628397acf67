"""The disk of the models goes away, hangs, or is another one: mlxq says so, writes nothing, and awaits it."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest
from support import mounts
from support.mlxq_home import Mlxq, until

from mlxq import cli
from state import facts, job
from state.service import State
from tasks.system import process
from tasks.weights import model_dir

pytestmark = pytest.mark.slow


@contextmanager
def unplugged(models: Path) -> Iterator[None]:
    """Show the empty folder on which the disk is mounted."""
    empty = models.with_name("mount-point")
    empty.mkdir()
    with mounts.over(models, empty):
        yield
    assert list(empty.iterdir()) == [], "something was written where the models were not"


@contextmanager
def renamed(models: Path) -> Iterator[None]:
    """Take the folder away, as when macOS mounts a disk under another name."""
    models.rename(models.with_name("elsewhere"))
    yield
    assert not models.exists(), "something was written where the models were not"
    models.with_name("elsewhere").rename(models)


HARM: dict[str, tuple[Callable[[Path], AbstractContextManager[object]], str]] = {
    "unplugged": (unplugged, "is not the folder that the models were downloaded to"),
    "renamed": (renamed, "is not there: its disk is not connected."),
    "dead": (mounts.dead, "cannot be read: Transport endpoint is not connected."),
    "hanging": (mounts.hanging, "does not answer: its disk or server hangs."),
}
"""How a disk goes away, and what is said of it."""


@pytest.fixture
def stack(mlxq: Mlxq, tiny: Path) -> Mlxq:
    """Serve one tier from the folder for models, and one from elsewhere."""
    mounts.enter()
    shutil.copytree(tiny, mlxq.home.models / "tiny")
    mlxq.serve(mlxq.home.models / "tiny", "fast", "standard")
    mlxq.db.run("UPDATE engines SET weights = ? WHERE name = 'standard'", (str(tiny),))
    mlxq.work_with_fakes()
    until(lambda: facts.get(mlxq.db, model_dir.FACT))
    return mlxq


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Run a command; return its exit code and what it wrote to both streams."""
    capsys.readouterr()
    code = cli.run(list(argv))
    said = capsys.readouterr()
    return code, said.out + said.err


def disk_findings(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Return what doctor says of disks: text -> grade."""
    capsys.readouterr()
    cli.run(["doctor", "--json"])
    rows = json.loads(capsys.readouterr().out)["checks"]
    return {row["text"]: row["grade"] for row in rows if row["area"] == "disk"}


@pytest.mark.parametrize("harm", HARM)
def test_a_tier_whose_disk_is_away_waits_for_it_and_comes_up_by_itself(
    harm: str, stack: Mlxq, capsys: pytest.CaptureFixture[str]
) -> None:
    away, words = HARM[harm]
    before, other = stack.up("fast"), stack.up("standard")
    with away(stack.home.models):
        process.send(stack.identity("fast"), signal.SIGKILL)
        waiting = stack.await_doing(State.DISK_UNAVAILABLE)
        assert words in (waiting.cause or "")

        process.send(stack.identity("standard"), signal.SIGKILL)
        stack.await_next(other)
        for argv in (["pull", "x/y"], ["prune", "--yes"], ["verify"], ["setup", "--accept-defaults"], ["models"]):
            code, said = run(capsys, *argv)
            assert (code, words in said) == (1, True), (argv, said)
        found = disk_findings(capsys)
        assert [grade for text, grade in found.items() if words.rstrip(".") in text] == ["fail"]
        assert not any("free for models" in text for text in found)
        assert "disk unavailable" in run(capsys, "status")[1]
        failed = stack.ended(stack.put("start", service="fast"))
        assert (failed.error_code, stack.one().state) == ("disk_unavailable", State.DISK_UNAVAILABLE)

    assert stack.await_next(before).state == State.READY
    assert "disk unavailable" not in run(capsys, "status")[1]


def test_a_disk_that_hangs_costs_a_thread_and_no_more(stack: Mlxq) -> None:
    """However often what is on it is asked for: the looks of the watchdog, and starts by a person."""
    stack.up("fast")
    worker = psutil.Process(stack.worker.pid)
    with mounts.hanging(stack.home.models):
        process.send(stack.identity("fast"), signal.SIGKILL)
        stack.await_doing(State.DISK_UNAVAILABLE)
        before = worker.num_threads()
        for _ in range(3):
            assert stack.ended(stack.put("start", service="fast")).error_code == "disk_unavailable"
        assert worker.num_threads() <= before + 1


@pytest.mark.parametrize("harm", ["unplugged", "hanging"])
def test_a_worker_that_starts_before_the_disk_is_there_brings_all_up_when_it_is(harm: str, stack: Mlxq) -> None:
    """As at boot: the gateway's configuration and the other tiers do not wait."""
    away, _ = HARM[harm]
    before, other = stack.up("fast"), stack.up("standard")
    stack.kill_worker()
    for name in ("fast", "standard"):
        process.send(stack.identity(name), signal.SIGKILL)
    with away(stack.home.models):
        stack.work_with_fakes()
        stack.await_doing(State.DISK_UNAVAILABLE)
        stack.await_next(other)
    stack.await_next(before)


def test_a_pull_waits_while_its_disk_is_away(stack: Mlxq, tiny: Path) -> None:
    """Enqueued by the page or by a chain: it writes nothing, and is done when the disk is back."""
    with unplugged(stack.home.models):
        number = stack.put("pull", source=f"file:{tiny}")
        until(lambda: "is not the folder" in (job.get(stack.db, number).phase or ""))
    stack.db.run("UPDATE jobs SET run_at = 0 WHERE id = ?", (number,))
    assert stack.ended(number).state == "succeeded"


def test_a_read_only_disk_serves_and_takes_no_model(stack: Mlxq, capsys: pytest.CaptureFixture[str]) -> None:
    with mounts.read_only(stack.home.models):
        stack.up("fast")
        code, said = run(capsys, "pull", "x/y")
        assert (code, "is read-only." in said) == (1, True)
        assert run(capsys, "models")[0] == 0
        assert "is read-only" in run(capsys, "doctor")[1]
