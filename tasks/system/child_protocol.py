"""The child's half of tasks/system/child.py: take one request, report progress, answer once."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from state.errors import MlxqError
from tasks.system.child import Later

_EVERY_S = 0.25

Report = Callable[[dict[str, Any]], None]


def answer(work: Callable[[dict[str, Any], Report], dict[str, Any]]) -> None:
    """Run `work(request, report)` on the request on stdin and write what came of it to stdout.

    `report` may be called as often as one likes: the same phase is passed on four times a second.
    """
    out = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints must not break the lines
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        _say(out, {"result": work(request, _throttled(out))})
    except Later as wait:
        _say(out, {"later": {"reason": wait.reason, "after_s": wait.after_s}})
    except MlxqError as error:
        told = {"code": error.code, "message": error.message, "hint": error.hint, "done": error.done}
        _say(out, {"error": told})


def _die_with_parent() -> None:
    """End the whole group when the parent's end of stdin closes: nobody waits for the answer."""
    sys.stdin.buffer.read()
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _throttled(out: int) -> Report:
    last: tuple[str, float] = ("", 0.0)
    lock = threading.Lock()

    def report(progress: dict[str, Any]) -> None:
        nonlocal last
        with lock:
            phase, now = str(progress.get("phase", "")), time.monotonic()
            if phase == last[0] and now - last[1] < _EVERY_S:
                return
            last = (phase, now)
            _say(out, {"progress": progress})

    return report


def _say(out: int, message: dict[str, Any]) -> None:
    data = memoryview(json.dumps(message).encode() + b"\n")
    while data:
        data = data[os.write(out, data) :]
