"""A version of an engine that should be here and is not: the watchdog has it installed again."""

from __future__ import annotations

from state import ledger
from state.db import Database
from state.errors import Damaged
from state.job import Source
from state.paths import Home
from tasks import kinds
from tasks.engines import installed
from tasks.supervision import engine_faults

NAME, VERSION = "rapid-mlx", "0.16.10"


def fail(db: Database, version: str, source: Source) -> None:
    ledger.enqueue(db, kinds.new("install_engine", {"engine": NAME, "version": version}), source=source)
    claim = ledger.claim(db, "heavy", ["install_engine"], "me")
    assert claim
    ledger.fail(db, claim, Damaged("another hash"))


def waiting(db: Database) -> int:
    return db.value("SELECT count(*) FROM jobs WHERE kind = 'install_engine' AND state = 'queued'") or 0


def test_what_a_person_tried_in_vain_does_not_keep_the_watchdog_from_it(db: Database, home: Home) -> None:
    """A version without a build, tried within the hour, left the tiers on another engine for that hour."""
    installed.use(db, NAME, VERSION)
    fail(db, "0.16.12", "person")
    fail(db, VERSION, "person")
    engine_faults.request_missing(db, home)

    assert waiting(db) == 1


def test_what_the_watchdog_tried_in_vain_waits_for_an_hour(db: Database, home: Home) -> None:
    installed.use(db, NAME, VERSION)
    fail(db, VERSION, "watchdog")
    engine_faults.request_missing(db, home)

    assert waiting(db) == 0
