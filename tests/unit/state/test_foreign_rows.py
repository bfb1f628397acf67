"""Rows that another program or another mlxq wrote are read as nothing, and stop no command and no watchdog."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import scene
from support.examples import share

from mlxq import cli
from state import event, facts, job, ledger, safe_mode, service, worker
from state.db import Database
from state.service import State
from tasks import kinds
from tasks.plan.reconcile import Action, decide
from tasks.supervision import lifecycle, unclean_boot

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
COLUMNS = {
    "services": ("argv", "exits", "leaving", "successor"),
    "events": ("data",),
    "jobs": ("args", "progress"),
    "facts": ("value",),
}
READERS = (["status"], ["status", "--json"], ["jobs"], ["jobs", "show", "1"], ["why"], ["top", "--once"], ["usage"])


def look(db: Database) -> None:
    """Read everything as the watchdog and the commands do."""
    for row in service.listing(db):
        lifecycle.running(row)
        lifecycle.leaving(row)
        lifecycle.this_boot(row)
        decide(row, alive=False, now=db.now(), spec_hash="other", locked=False)
    event.of_service(db, None)
    job.listing(db)
    safe_mode.listing(db)
    unclean_boot.handle(db, "another boot")


@settings(max_examples=share(60), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(value=JSON)
def test_a_column_of_json_of_any_shape_is_read(rows: Database, value: Any) -> None:
    scene.all_ready(rows)
    scene.pull(rows)
    for table, columns in COLUMNS.items():
        for column in columns:
            rows.run(f"UPDATE {table} SET {column} = ?", (json.dumps(value),))
    look(rows)
    for name in ("services", "jobs", "events", "job_deps", "tiers", "facts"):
        rows.run(f"DELETE FROM {name}")


@settings(max_examples=share(60), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(text=st.text(max_size=9) | st.sampled_from(["a/b/c", "boot/-1/2", "boot/99999999999999/2", "/1/", "a/1/b/c"]))
def test_text_of_any_kind_names_no_process(rows: Database, text: str) -> None:
    scene.all_ready(rows)
    rows.run("UPDATE services SET identity = ?, shim = ?, state = 'ready'", (text, text))
    worker.beat(rows, text, 1, "1", 0.0)
    look(rows)


@pytest.mark.parametrize("argv", READERS, ids=" ".join)
def test_commands_read_rows_of_another_program(
    argv: list[str], rows: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.all_ready(rows)
    scene.pull(rows)
    rows.run("UPDATE services SET state = 'hibernating', observed = 'asleep', identity = 'x', argv = '7', exits = '{}'")
    rows.run("UPDATE jobs SET args = '[1]', progress = '\"half\"', kind = 'teleport'")
    rows.run("INSERT INTO events (at, service, name, data) VALUES (1, 'fast', 'transcended', '[]')")
    rows.run("UPDATE facts SET value = '[3]'")
    worker.beat(rows, "nonsense", 1, "1", math.inf)

    assert cli.run(argv) == 0

    assert "Traceback" not in capsys.readouterr().err


def test_a_state_of_a_newer_mlxq_leads_to_a_start(db: Database) -> None:
    service.ensure(db, "fast", "engine", 9000)
    service.set_desired(db, "fast", "up")
    db.run("UPDATE services SET state = 'hibernating', observed = 'asleep'")

    row = service.get(db, "fast")

    assert (row.state, row.observed) == (State.BACKOFF, "crashed")
    assert decide(row, alive=False, now=db.now(), spec_hash=None, locked=False) == Action.START
    assert service.request_start(db, "fast", ["engine"], "f", 9000) == 1


def test_a_job_of_an_unknown_kind_waits_and_stops_no_other(db: Database) -> None:
    first, _ = ledger.enqueue(db, kinds.new("pull", {"source": "hub:x/y"}))
    db.run("UPDATE jobs SET kind = 'teleport', unique_key = 'teleport'")
    second, _ = ledger.enqueue(db, kinds.new("pull", {"source": "hub:x/y"}))

    claim = ledger.claim(db, "heavy", set(kinds.KINDS), "boot/1/1")

    assert claim
    assert (claim.id, job.get(db, first).state) == (second, "queued")


def test_a_fact_of_another_shape_is_none(db: Database) -> None:
    for value in ("[]", "3", '"x"', '{"fast": 7, "standard": {"level": "x"}, "longctx": {"level": 1, "mood": 2}}'):
        facts.put(db, "machine", {})
        db.run("INSERT OR REPLACE INTO facts (name, value, at) VALUES (?, ?, 1)", (safe_mode.FACT, value))
        assert safe_mode.listing(db) == {}
