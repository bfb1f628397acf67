"""Old jobs are forgotten once a day, by a job."""

from __future__ import annotations

from typing import Any

from state import ledger
from state.db import Database
from tasks.prune import DAY_S, ask_daily


def test_a_day_has_one_prune_job(db: Database, clock: Any) -> None:
    assert [ask_daily(db), ask_daily(db)] == [True, False]
    held = ledger.claim(db, "ops", {"prune_jobs"}, "boot/1/1")
    assert held
    ledger.succeed(db, held, {"forgotten": 0})
    assert ask_daily(db) is False

    clock.now += DAY_S

    assert ask_daily(db) is True


def test_a_clock_set_back_does_not_stop_the_pruning(db: Database, clock: Any) -> None:
    """A prune job dated in the future says nothing about today."""
    ask_daily(db)
    held = ledger.claim(db, "ops", {"prune_jobs"}, "boot/1/1")
    assert held
    ledger.succeed(db, held, None)

    clock.now -= 30 * DAY_S

    assert ask_daily(db) is True
