"""A real worker whose tasks misbehave as their arguments say: `python jobworker.py`, with MLXQ_HOME set.

Every task writes what it did to the file `notes`, one short line an append, so that a test can count what really
happened: `<job> <attempt> <word> <monotonic seconds>`.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, cast

if "CLOCK" in os.environ:  # a file with the seconds by which this worker's wall clock is off

    def shifted(real: Any = time.time, offset: Path = Path(os.environ["CLOCK"])) -> float:
        return real() + float(offset.read_text() or 0)

    time.time = shifted

from state import ledger
from state.errors import Busy, MlxqError
from state.job import NewJob
from state.paths import get_home
from tasks import kinds, queue
from tasks.kinds import Kind
from tasks.system import child

TABLE = cast("dict[str, Kind]", kinds.KINDS)
for kind in (
    Kind("act", "do as told", max_attempts=3, limit_s=600),
    Kind("dig", "do as told, for long", "heavy", max_attempts=3, limit_s=600),
    Kind("brief", "do as told, within a second", limit_s=1),
):
    TABLE[kind.name] = kind


def note(context: queue.Context, word: str) -> None:
    line = f"{context.claim.id} {context.claim.attempt} {word} {time.monotonic()}\n"
    with (context.home.root / "notes").open("a") as notes:
        notes.write(line)


def act(context: queue.Context, do: str = "ok", **more: Any) -> Any:
    note(context, "started")
    result = WAYS[do](context, **more)
    note(context, "ended")
    return result


def ok(context: queue.Context, seconds: float = 0.0, words: str = "") -> dict[str, int]:
    time.sleep(seconds)
    return {"attempt": context.claim.attempt}


def hold(context: queue.Context) -> dict[str, int]:
    """Work until Crew.let_go."""
    while not (context.home.run / f"go-{context.claim.id}").exists():
        time.sleep(0.02)
    return {"attempt": context.claim.attempt}


def wait(context: queue.Context, seconds: float = 3600.0) -> None:
    context.wait(seconds)


def report(context: queue.Context, seconds: float = 3600.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        context.report("digging", done=1, total=2)
        time.sleep(0.05)


def counted(claim: Any, looks: Path) -> Any:
    """Return `claim`, which writes a byte to a file at each call."""

    def look(*arguments: Any) -> Any:
        with looks.open("ab") as file:
            file.write(b"!")
        return claim(*arguments)

    return look


def fail(context: queue.Context, times: int = 99, seconds: float = 0.0) -> None:
    time.sleep(seconds)
    if context.claim.failures < times:
        raise Busy("Somebody is at it.") if times < 99 else MlxqError("It cannot be.", done="Nothing was changed.")


def crash(context: queue.Context) -> None:
    raise KeyError("a fault in the task")


def leave(context: queue.Context) -> None:
    sys.exit(3)


def nonsense(context: queue.Context) -> Any:
    return {"a set": {1, 2}}


def loose(context: queue.Context) -> None:
    context.then(NewJob("act", needs=["nobody"]))


def kill(context: queue.Context) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def snooze(context: queue.Context, seconds: float = 0.1) -> None:
    if context.claim.attempt == 1:
        raise child.Later("the host asked for a pause", seconds)


def fan_out(context: queue.Context, way: str = "ok") -> None:
    """Put in three jobs side by side, and one that needs them; all but that one go this way."""
    WAYS[way](context)
    labels = [f"child {number}" for number in range(3)]
    for label in labels:
        context.then(NewJob("act", {"do": way}, label=label))
    context.then(NewJob("act", needs=labels, label="join"))


def stuck(context: queue.Context, seconds: float = 3600.0) -> None:
    time.sleep(seconds)


def run_child(context: queue.Context, deaf: bool = False) -> Any:
    heard: list[Any] = []

    def on_progress(progress: dict[str, Any]) -> None:
        note(context, f"child-{progress['pid']}")
        heard.append(progress)

    return child.run_child(
        "job_child", {"deaf": deaf}, on_progress=on_progress, cancelled=context.cancelled, timeout_s=context.remaining_s
    )


WAYS = {
    way.__name__: way
    for way in (ok, hold, wait, report, fail, crash, leave, nonsense, loose, kill, snooze, fan_out, stuck, run_child)
}

if __name__ == "__main__":
    import tasks.heartbeat
    import tasks.notify.http_request
    import tasks.notify.watch
    import tasks.worker

    for name in ("act", "dig", "brief"):
        queue.job(name)(act)
    tasks.heartbeat.OVERRUN_S = float(os.environ.get("OVERRUN_S", tasks.heartbeat.OVERRUN_S))
    tasks.worker.STOP_GRACE_S = float(os.environ.get("STOP_GRACE_S", tasks.worker.STOP_GRACE_S))
    tasks.notify.watch.GROUP_S = float(os.environ.get("NOTIFY_GROUP_S", tasks.notify.watch.GROUP_S))
    if "LOOKS" in os.environ:
        ledger.claim = counted(ledger.claim, Path(os.environ["LOOKS"]))
    if "NOTIFY_LIMIT_S" in os.environ:
        limit_s = float(os.environ["NOTIFY_LIMIT_S"])
        tasks.notify.http_request.send = functools.partial(tasks.notify.http_request.send, limit_s=limit_s)
    for lane, count in zip(("ops", "heavy"), os.environ.get("THREADS", "4 3").split(), strict=True):
        tasks.worker.THREADS[lane] = int(count)
    try:
        tasks.worker.run(get_home())
    except MlxqError as problem:
        sys.exit(f"{problem.code}: {problem.message}")
