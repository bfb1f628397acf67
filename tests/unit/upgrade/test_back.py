"""When the guard goes back, and what the way back does to links and state.db."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from state import db as state_db
from state import event, job, ledger, on_demand, service
from state.db import SCHEMA_VERSION, Database
from state.errors import Busy
from state.paths import Home
from state.service import ServiceEvent
from tasks import kinds
from tasks.upgrade import back, installation
from tasks.upgrade import record as records
from tasks.upgrade.back import MOST_STARTS, SWITCH_S, SYSTEM_S, VERIFY_S, Watch
from tasks.upgrade.record import Phase, Record, Version

RECORD = Record(
    phase=Phase.SWITCH,
    at=100.0,
    job=7,
    before=Version("0.1.0", "/tools/mlxq/bin/python", SCHEMA_VERSION),
    after=Version("0.2.0", "/nowhere", SCHEMA_VERSION + 1),
    origin="/tools/mlxq/bin/mlxq",
)


def watch(record: Record = RECORD) -> Watch:
    return Watch(record, since=0.0)


@pytest.mark.parametrize(("phase", "limit_s"), [(Phase.SWITCH, SWITCH_S), (Phase.VERIFY, VERIFY_S)])
def test_a_version_that_takes_no_step_is_taken_back(phase: Phase, limit_s: float):
    seen = watch(replace(RECORD, phase=phase))
    assert not seen.failure(limit_s)
    assert seen.failure(limit_s + 1) == f"0.2.0 did not come up within {limit_s:.0f} s"


def test_a_step_gives_it_time():
    seen = watch()
    seen.look(replace(RECORD, phase=Phase.VERIFY, at=200.0), SWITCH_S, running=True)
    assert not seen.failure(SWITCH_S + VERIFY_S)
    assert seen.failure(SWITCH_S + VERIFY_S + 1)


def test_a_worker_that_ends_again_and_again_is_taken_back():
    seen = watch()
    seen.starts = MOST_STARTS
    assert not seen.failure(1.0)
    seen.starts += 1
    assert seen.failure(1.0) == "the worker of 0.2.0 ended 4 times"


@pytest.mark.parametrize(("system", "patience_s"), [(False, 1.0), (True, SYSTEM_S)])
def test_a_worker_is_started_where_none_runs_and_the_system_starts_none(system: bool, patience_s: float):
    record = replace(RECORD, system=system)
    seen = watch(record)
    seen.look(record, 10.0, running=True)
    assert not seen.wants_worker(99.0)
    seen.look(record, 10.0, running=False)
    assert not seen.wants_worker(10.0 + patience_s)
    assert seen.wants_worker(10.1 + patience_s)


def test_a_step_is_refused_where_another_process_took_one(home: Home):
    home.make()
    before = records.write(home, RECORD)
    records.step(home, before, Phase.VERIFY, 200.0)
    with pytest.raises(Busy):
        records.step(home, before, Phase.BACK, 300.0)
    assert records.read(home) == replace(RECORD, phase=Phase.VERIFY, at=200.0)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"phase": "unknown"}', b'{"phase": "done"}', b"\xff"])
def test_a_record_that_cannot_be_read_is_none(home: Home, content: bytes):
    home.make()
    records.path(home).write_bytes(content)
    assert records.read(home) is None


def newer(home: Home) -> None:
    """Bring state.db to a schema that this mlxq does not know."""
    with sqlite3.connect(home.database) as connection:
        connection.execute("CREATE TABLE colors (name TEXT)")
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")


def copy_of(home: Home) -> Path:
    target = home.backup(SCHEMA_VERSION)
    target.parent.mkdir()
    with sqlite3.connect(home.database) as source, sqlite3.connect(target) as copy:
        source.backup(copy)
    return target


def test_the_way_back_restores_state_db_under_an_open_connection(home: Home, db: Database):
    """The link is gone, the copy is named, and what was written since is not there any more."""
    copy = copy_of(home)
    newer(home)
    link = home.versions / "from-0.1.0"
    home.versions.mkdir()
    link.symlink_to("0.2.0")

    done = back.go(home, records.write(home, RECORD), "it did not answer")

    assert (done.phase, done.reason, done.backup) == (Phase.TAKEN_BACK, "it did not answer", str(copy))
    assert not link.is_symlink()
    assert db.value("PRAGMA user_version") == SCHEMA_VERSION
    assert db.value("SELECT count(*) FROM sqlite_master WHERE name = 'colors'") == 0
    (taken_back,) = event.since(db, 0, {"upgrade_taken_back"})
    assert (taken_back.data["now"], taken_back.data["subject"]) == ("0.1.0", "mlxq 0.2.0")


def test_the_job_that_a_restored_state_db_brings_back_is_cancelled(home: Home, db: Database):
    """Else the next upgrade would follow it, and be told that it was taken back."""
    number = ledger.enqueue(db, kinds.new("upgrade", {"to": None}))[0]
    copy_of(home)
    newer(home)
    back.go(home, records.write(home, replace(RECORD, job=number)), records.BY_USER)
    assert job.get(db, number).state == "cancelled"


def test_the_way_back_knows_the_processes_that_were_started_since(home: Home, db: Database):
    """A gateway of the new version serves; the old worker has to find it to replace it without a gap."""
    service.ensure(db, "gateway", "gateway", 4000)
    service.ensure(db, "fast", "engine", 8000)
    copy_of(home)
    service.update(db, "gateway", identity="boot/42/7", generation=3, spec_hash="new")
    newer(home)
    with sqlite3.connect(home.database) as connection:
        connection.execute("ALTER TABLE services ADD COLUMN color TEXT")

    back.go(home, records.write(home, RECORD), "it did not answer")

    row = service.get(db, "gateway")
    assert (row.identity, row.generation, row.spec_hash) == ("boot/42/7", 3, "new")
    assert {row.name for row in service.listing(db)} == {"gateway", "fast"}


def test_what_the_new_version_could_not_start_is_started_again(home: Home, db: Database):
    """And what was put to sleep since still sleeps: it is not a service that its user stopped."""
    for name, wanted in (("fast", "up"), ("standard", "down")):
        service.ensure(db, name, "engine", 8000)
        service.set_desired(db, name, "up")
        service.set_desired(db, name, wanted)
    copy_of(home)
    service.apply(db, "fast", ServiceEvent.FAILED, cause="its command line is not known")
    on_demand.set_asleep(db, "standard", asleep=True)
    newer(home)

    back.go(home, records.write(home, RECORD), "standard did not start")

    assert [row.args["service"] for row in job.listing(db, kind="restart", limit=5)] == ["fast"]
    assert service.get(db, "standard").asleep


def test_without_the_copy_the_new_version_stays(home: Home, db: Database):
    newer(home)
    home.versions.mkdir()
    (home.versions / "from-0.1.0").symlink_to("0.2.0")
    done = back.go(home, records.write(home, RECORD), "it did not answer")
    assert (done.phase, done.reason) == (Phase.DONE, f"{home.backup(SCHEMA_VERSION)} is not there")
    assert (home.versions / "from-0.1.0").is_symlink()


def test_a_way_back_that_was_cut_short_is_gone_once_more(home: Home, db: Database):
    """After the restore and before the last step."""
    record = records.write(home, replace(RECORD, phase=Phase.BACK, reason="it did not answer", backup="/a/copy"))
    assert back.go(home, record, record.reason) == replace(
        record, phase=Phase.TAKEN_BACK, at=records.read(home).at if records.read(home) else 0
    )


def test_a_migration_leaves_a_private_copy_of_what_was_there(home: Home, db: Database):
    """And none of one that was cut short."""
    db.run(f"PRAGMA user_version={SCHEMA_VERSION - 1}")
    db.run("DELETE FROM _sqlite_migrations WHERE id = (SELECT max(id) FROM _sqlite_migrations)")
    from state import migrations

    with pytest.raises(sqlite3.OperationalError):  # its tables are there
        migrations.migrate(home)
    copy = home.backup(SCHEMA_VERSION - 1)
    assert copy.stat().st_mode & 0o077 == 0
    made = copy.stat().st_mtime_ns

    db.run(f"PRAGMA user_version={SCHEMA_VERSION - 2}")
    with pytest.raises(sqlite3.OperationalError):
        migrations.migrate(home)
    assert not home.backup(SCHEMA_VERSION - 2).exists()
    assert copy.stat().st_mtime_ns == made


def test_which_version_is_in_use_is_what_the_link_says(home: Home):
    home.versions.mkdir(parents=True)
    assert installation.in_use(home, RECORD) == RECORD.before
    (home.versions / "from-0.1.0").symlink_to("0.2.0")
    assert installation.in_use(home, RECORD) == RECORD.after


@pytest.mark.parametrize(
    ("phase", "service", "kept"), [("switch", True, True), ("switch", False, False), ("back", False, True)]
)
def test_a_service_left_from_a_version_that_was_taken_back_migrates_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch, phase: Phase, *, service: bool, kept: bool
):
    """Not at the switch of the next upgrade either, before its worker does: the old one may have to start again."""
    monkeypatch.setattr("sys.prefix", str(home.versions / "0.2.0" / "venv"))
    if service:
        monkeypatch.setenv("MLXQ_SERVICE", "gateway")
    records.write(home, replace(RECORD, phase=Phase(phase), after=replace(RECORD.after, schema=SCHEMA_VERSION)))
    assert (state_db._in_use_again(home) == RECORD.before.version) is kept
