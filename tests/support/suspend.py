"""Suspend a process and see that it is: the signal is pending until each of its threads has met it."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from tasks.system import process
from tasks.system.process import Identity

_STOPPED = {"T", "t"}
"""The states of proc_pid_stat(5): by a signal, by a tracer."""
_LIMIT_S = 10.0


def suspend(identity: Identity) -> None:
    """Send SIGSTOP, and wait until no thread of the process can run. Raises AssertionError after 10 s."""
    assert process.send(identity, signal.SIGSTOP), "the process is gone"
    deadline = time.monotonic() + _LIMIT_S
    while not _suspended(identity):
        assert time.monotonic() < deadline, "SIGSTOP did not suspend it"
        time.sleep(0.001)


def suspend_pid(pid: int) -> None:
    """Suspend the process that has `pid`: a child that was not waited for."""
    identity = process.identify(pid)
    assert identity, "the process is gone"
    suspend(identity)


def _suspended(identity: Identity) -> bool:
    if sys.platform != "linux":
        return process.frozen(identity)
    threads = Path(f"/proc/{identity.pid}/task").iterdir()
    return all(_state(thread / "stat") in _STOPPED for thread in threads)


def _state(stat: Path) -> str:
    """Return the letter after the name, which may hold spaces and parentheses."""
    return stat.read_text().rpartition(")")[2].split()[0]
