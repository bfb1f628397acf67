"""What three real downloads leave of the worker: its answer to a restart, and to a cancel.

A whole worker, the Hub of tests/hub throttled to 2 MB/s, and a fake engine, as its own start is not what is timed.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path

from hub.client import running
from hub.model import make
from support.mlxq_home import Mlxq, until

from state import job, ledger
from state.paths import Home

MODELS = ("one", "two", "three")
RATE = 2 << 20
RESTARTS = 5


def measure(folder: Path) -> tuple[list[float], list[float]]:
    """Give the seconds from each restart's submission to its start, and from each pull's cancel to its end."""
    for name in MODELS:
        make(folder / "models" / name, shard_bytes=200_000_000, shards=1)
    with running(folder / "models") as hub:
        hub.set(rate=RATE)
        os.environ |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hf"), "HF_TOKEN": ""}
        with closing(Mlxq(Home(folder / "pulls").make())) as mlxq:
            return _measured(mlxq, folder)


def _measured(mlxq: Mlxq, folder: Path) -> tuple[list[float], list[float]]:
    mlxq.serve(folder / "models" / "one", "fast")
    mlxq.work_with_fakes()
    mlxq.up()
    pulls = [mlxq.put("pull", source=f"hub:slow/{name}") for name in MODELS]
    for pull in pulls:
        until(lambda pull=pull: job.get(mlxq.db, pull).progress.get("done"))
    restarts = [_started(mlxq) for _ in range(RESTARTS)]
    return restarts, [_cancelled(mlxq, pull) for pull in pulls]


def _started(mlxq: Mlxq) -> float:
    done = mlxq.ended(mlxq.put("restart", service="fast"))
    assert done.state == job.JobState.SUCCEEDED, done.error
    assert done.started_at
    return done.started_at - done.created_at


def _cancelled(mlxq: Mlxq, pull: int) -> float:
    begun = time.monotonic()
    ledger.cancel(mlxq.db, pull)
    assert mlxq.ended(pull).state == job.JobState.CANCELLED
    return time.monotonic() - begun
