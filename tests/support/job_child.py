"""A child process that works for an hour, and with `deaf` does not hear SIGTERM."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from tasks.system.child import Report, answer


def work(request: dict[str, Any], report: Report) -> dict[str, Any]:
    if request["deaf"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    report({"phase": "digging", "pid": os.getpid()})
    time.sleep(3600)
    return {}


if __name__ == "__main__":
    answer(work)
