"""Jobs run in the test's own process, as the worker runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from state import job, ledger
from state.db import Database
from state.job import Job
from state.paths import Home
from tasks import executor, kinds, runtime
from tasks.supervision import repairs

Run = Callable[..., Job]
Tasks = Mapping[str, Callable[..., Any]]


def runner(db: Database, home: Home, tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Give what puts one job in, runs it by `tasks`, and gives its row as it is then."""
    ours = runtime.Runtime()
    ours.home, ours.owner, ours._local.database = home, "the worker", db
    for module in (executor, repairs):
        monkeypatch.setattr(module, "runtime", ours)

    def one(kind: str, /, **args: Any) -> Job:
        number = ledger.enqueue(db, kinds.new(kind, args))[0]
        claim = ledger.claim(db, kinds.KINDS[kind].queue, {kind}, "the worker")
        assert claim
        assert number == claim.id
        executor.perform(kinds.KINDS[kind], tasks[kind], claim)
        return job.get(db, number)

    return one
