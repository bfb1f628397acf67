"""Counts what passed, and writes the sums to state.db from a thread: no request ever waits for the database."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

from state.errors import MlxqError
from state.metrics import usage
from state.metrics.usage import Usage
from state.paths import Home
from tasks.gateway.request_context import Call
from tasks.gateway.state_thread import opened

EVERY_S = 2.0
_FAILED = 400

log = logging.getLogger("mlxq.usage")


class Counter:
    """Sums that wait for their next writing. What a kill takes is at most the last two seconds."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, str, str], Usage] = {}
        self._over = threading.Event()

    def add(self, call: Call) -> None:
        """Count one finished request."""
        day = time.strftime("%Y-%m-%d", time.gmtime())
        with self._lock:
            row = self._sums.setdefault((day, call.key, call.tier), Usage(day, call.key, call.tier))
            row.requests += 1
            row.failed += call.status >= _FAILED or not call.status
            row.fallbacks += len(set(call.tried)) > 1 and call.status < _FAILED
            row.prompt_tokens += call.prompt_tokens
            row.completion_tokens += call.completion_tokens
            row.cached_tokens += call.cached_tokens
            row.seconds += time.monotonic() - call.began
            row.first_byte_seconds += call.first_byte_s or 0.0
            row.waited_seconds += call.waited_s

    @contextmanager
    def writing(self) -> Generator[None]:
        """Write every two seconds, and at the end."""
        thread = threading.Thread(target=self._run, name="usage", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join(timeout=5)

    def _run(self) -> None:
        while not self._over.wait(EVERY_S):
            self.write()
        self.write()

    def write(self) -> None:
        """Write what waits; what could not be written waits on."""
        with self._lock:
            rows, self._sums = list(self._sums.values()), {}
        if not rows:
            return
        try:
            with opened(self._home) as db:
                usage.add(db, rows)
        except (sqlite3.Error, MlxqError) as problem:
            log.warning("%d usage sums could not be written yet: %s", len(rows), problem)
            self._keep(rows)

    def _keep(self, rows: list[Usage]) -> None:
        with self._lock:
            for row in rows:
                newer = self._sums.get((row.day, row.key, row.tier))
                self._sums[row.day, row.key, row.tier] = row if newer is None else _sum(row, newer)


def _sum(usage_row: Usage, addend: Usage) -> Usage:
    added = {name: getattr(usage_row, name) + getattr(addend, name) for name in usage.SUMS}
    return Usage(usage_row.day, usage_row.key, usage_row.tier, **added)
