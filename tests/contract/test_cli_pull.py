"""`mlxq pull`, `verify`, `rm` and `prune` as a person types them: a real worker, and a Hub on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hub.client import Hub

from state import job, ledger, stack
from state.db import Database, open_database
from state.paths import Home
from state.stack import Engine
from tasks import kinds
from tasks.weights import manifest, staging

REPO = "ok/tiny-4bit"
FAST = Engine("fast", REPO, "int4", f"hub:{REPO}", 9132, 1024, 1, 1, 1)
Type = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def db(home: Home) -> Iterator[Database]:
    """Give the ledger with the real clock, which the worker has too."""
    opened = open_database(home)
    yield opened
    opened.close()


@pytest.fixture
def mlxq(home: Home, hub: Hub, tmp_path: Path) -> Iterator[Type]:
    """Type a command; the worker it starts is ended after the test."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = outside | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")}

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "mlxq", *argv]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)

    yield run
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if each.environ().get("MLXQ_HOME") == str(home.root) and "worker" in each.cmdline():
                each.kill()
                each.wait(10)


def folder(home: Home) -> Path:
    (found,) = (each for each in home.models.iterdir() if not each.name.startswith("."))
    return found


def test_from_nothing_to_deleted(mlxq: Type, home: Home) -> None:
    """One story, so that the model is fetched once: pull, list, pull again, verify, damage, verify, remove."""
    pulled = mlxq("pull", REPO)
    assert pulled.returncode == 0, pulled.stderr
    assert re.search(rf"{REPO}: \d+ [KM]B, license", pulled.stderr)
    assert f"Downloaded: {folder(home)}" in pulled.stdout
    assert json.loads(mlxq("models", "--json").stdout)["models"][0]["model"] == REPO

    again = mlxq("pull", f"hub:{REPO}")
    assert f"Already installed: {folder(home)}" in again.stdout

    assert "1 model checked; all files are intact." in mlxq("verify").stdout
    shard = next(folder(home).glob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    mended = mlxq("verify", REPO)
    assert mended.returncode == 0, mended.stderr
    assert f"repaired {shard.name}" in mended.stdout
    assert shard.read_bytes() == whole

    assert mlxq("rm", REPO).returncode == 2
    assert folder(home).exists()
    removed = mlxq("rm", REPO, "--yes")
    assert removed.returncode == 0, removed.stderr
    assert json.loads(mlxq("models", "--json").stdout)["models"] == []


def test_what_a_tier_serves_is_not_removed_unless_told(mlxq: Type, home: Home, db: Database) -> None:
    mlxq("pull", REPO)
    stack.replace(db, [replace(FAST, weights=str(folder(home)))])

    refused = mlxq("rm", REPO, "--yes")
    assert refused.returncode == 1
    assert "is served by fast" in refused.stderr
    assert folder(home).exists()
    assert "There is nothing to delete" in mlxq("prune", "--unused", "--yes").stderr

    assert mlxq("rm", REPO, "--yes", "--force").returncode == 0


def test_a_second_pull_attaches_to_the_first(mlxq: Type, db: Database) -> None:
    first = ledger.enqueue(db, replace(kinds.new("pull", {"source": f"hub:{REPO}"}), wait_s=2.0))[0]

    done = mlxq("pull", REPO)

    assert done.returncode == 0, done.stderr
    assert f"Job {first} (pull) is already queued or running." in done.stderr
    assert [first] == [each.id for each in job.listing(db, kind="pull")]


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("ok/tiny-4bti",), 1, "Nearest: ok/tiny-4bit"),
        (("gated/tiny-4bit",), 1, "is gated: you must accept its license"),
        (("private/tiny-4bit",), 1, "does not exist on"),
        ((REPO, "--revision", "nope"), 1, "has no revision 'nope'"),
        (("html/tiny-4bit",), 1, "answered with a web page"),
        (("smollm2", "--revision", "main"), 2, "has no revisions"),
        (("qwen3-8bb",), 1, "nearest are: qwen3-8b"),
    ],
)
def test_what_cannot_be_fetched_is_said_before_a_job_is_made(
    mlxq: Type, db: Database, argv: tuple[str, ...], code: int, words: str
) -> None:
    done = mlxq("pull", *argv)

    assert (done.returncode, job.listing(db)) == (code, [])
    assert words in done.stderr


def test_detached_the_job_goes_on(mlxq: Type, db: Database) -> None:
    done = mlxq("pull", REPO, "--detach", "--json")

    (number,) = json.loads(done.stdout)["jobs"]
    assert mlxq("jobs", "watch", str(number)).returncode == 0
    assert job.get(db, number).state is job.JobState.SUCCEEDED


def test_prune_takes_torn_weights_and_old_revisions_and_leaves_the_rest(mlxq: Type, home: Home, db: Database) -> None:
    mlxq("pull", REPO)
    new = folder(home)
    old = home.models / "ok--tiny-4bit@older"
    shutil.copytree(new, old)
    made = manifest.read(new)
    assert made
    manifest.write(old, replace(made, revision="older"))
    db.run("UPDATE weights SET folder = ?", (str(old),))
    assert mlxq("pull", REPO, "--force").returncode == 0
    os.utime(old, (1_000_000_000, 1_000_000_000))
    with staging.hold(home.models / "torn@abc"):
        pass
    (home.models / "by-hand").mkdir()
    for file in new.glob("[!m]*"):
        (home.models / "by-hand" / file.name).write_bytes(file.read_bytes())

    shown = mlxq("prune", "--dry-run").stdout
    assert "torn@abc.partial" in shown
    assert old.name in shown
    assert new.name not in shown

    assert mlxq("prune", "--yes").returncode == 0
    assert new.is_dir()
    assert not old.exists()
    assert (home.models / "by-hand").is_dir()
    assert not (home.models / "torn@abc.partial").exists()
