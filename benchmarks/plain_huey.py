"""Plain SqliteHuey doing what benchmarks/jobs.py asks of mlxq: `python plain_huey.py FOLDER THREADS` is its worker."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from huey import SqliteHuey


def app(folder: Path) -> tuple[SqliteHuey, Any]:
    """Give the queue in `folder`, and its one task."""
    queue = SqliteHuey("plain", filename=str(folder / "huey.db"), results=False)

    @queue.task(name="act", __module__="plain")
    def act(job: int, seconds: float) -> None:
        note(folder, job, "started")
        time.sleep(seconds)
        note(folder, job, "ended")

    return queue, act


def note(folder: Path, job: int, word: str) -> None:
    """Append one line, as tests/support/jobworker.py does."""
    line = f"{job} 1 {word} {time.monotonic()}\n"
    with (folder / "notes").open("a") as notes:
        notes.write(line)


if __name__ == "__main__":
    app(Path(sys.argv[1]))[0].create_consumer(workers=int(sys.argv[2])).run()
