"""Calls that may never return: who reads from a disk whose server is gone waits in the kernel, and no signal ends that.

Such a call runs in a thread of its own, which is left behind when the time is over. While it waits, no second thread
is left behind for the same thing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from state.errors import Internal, MlxqError

T = TypeVar("T")


class Hangs(Exception):
    """The call did not return in time; its thread still waits."""


class BoundedCall(Generic[T]):
    """One call, and what came of it."""

    def __init__(self, work: Callable[[], T], lock: threading.Lock) -> None:
        self._work = work
        self._lock = lock
        self._ended = threading.Event()
        self._results: list[T] = []
        self._problem: Exception = Internal("A call ended without a result.", hint="mlxq logs worker")

    def run(self) -> None:
        """Make the call. What is neither OSError nor MlxqError ends the thread, and its traceback is in the log."""
        try:
            self._results.append(self._work())
        except (OSError, MlxqError) as problem:
            self._problem = problem
        finally:
            self._lock.release()
            self._ended.set()

    def result(self, limit_s: float) -> T:
        """Return what the call returned, or raise what it raised. Raises Hangs."""
        if not self._ended.wait(limit_s):
            raise Hangs
        if not self._results:
            raise self._problem
        return self._results[0]


_locks: dict[str, threading.Lock] = {}
"""By key; held by the thread that makes a call, also after its caller left."""


def call(key: str, work: Callable[[], T], limit_s: float) -> T:
    """Return what `work` returns, or raise what it raises: OSError or MlxqError. Raises Hangs after `limit_s` seconds.

    `key`: what may hang, such as a folder. A call waits for an earlier one with the same key.
    """
    until = time.monotonic() + limit_s
    lock = _locks.setdefault(key, threading.Lock())
    if not lock.acquire(timeout=limit_s):
        raise Hangs
    bounded_call = BoundedCall(work, lock)
    threading.Thread(target=bounded_call.run, name=f"bounded {key}", daemon=True).start()
    return bounded_call.result(max(0.0, until - time.monotonic()))
