"""A worker that is killed in the middle of a pull: the next one goes on where it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hub.client import Hub, running
from hub.model import make

from state import job, ledger
from state.db import Database, open_database
from state.job import JobState
from state.paths import Home
from tasks import kinds

WORKER = "from state.paths import get_home; from tasks import worker; worker.run(get_home())"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    """Serve one model of 100 MB slowly."""
    make(tmp_path / "hub" / "big-4bit", shard_bytes=100_000_000, shards=1)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", "")
    with running(tmp_path / "hub") as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        served.set(rate=16 << 20)
        yield served


def until(true: Callable[[], Any], limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def start() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-P", "-c", WORKER], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def held(models: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in models.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_pull_survives_the_death_of_its_worker(hub: Hub, home: Home):
    """Not more than 1 MB of what was on the disk comes again; no child and no orphan stays."""
    db: Database = open_database(home)
    number = ledger.enqueue(db, kinds.new("pull", {"source": "hub:slow/big-4bit"}))[0]
    first = start()
    until(lambda: held(home.models) > 40_000_000)
    family = psutil.Process(first.pid).children(recursive=True)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert family
    assert psutil.wait_procs(family, 30)[1] == []
    kept = held(home.models)
    hub.set(rate=1 << 30)
    second = start()
    try:
        until(lambda: not job.get(db, number).live)
    finally:
        second.send_signal(signal.SIGTERM)
        second.wait(30)
    found = job.get(db, number)
    assert (found.state, found.rescues) == (JobState.SUCCEEDED, 1)
    folder = Path(found.result["folder"])
    model = sum(path.stat().st_size for path in folder.iterdir() if path.name != "mlxq.json")
    again = sum(line["sent"] for line in hub.heard("cdn", "resolve"))
    assert kept + again - model <= 1 << 20
    assert [path.name for path in home.models.rglob("*") if path.suffix in {".part", ".partial"}] == []
    db.close()
