"""The database: made once, guarded against newer and damaged files, and what SQLite's refusals become."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.disk import mounted

from state import job, ledger, safe_mode
from state.db import FREED_S, SCHEMA_VERSION, Database, atomic, open_database, read_database
from state.errors import DiskFull, NewerState, NotSetUp, StateDamaged, StateUnavailable
from state.job import NewJob
from state.paths import Home


def schema(path: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name").fetchall()


def migrate(home: Home) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-P", "-m", "state.migrations", str(home.root)])


def test_the_version_counts_the_migrations() -> None:
    """In a child: sqlite-utils is not loaded into the process that tests the rest."""
    script = "from state.migrations import schema; print(len(schema._migrations))"
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(told.stdout) == SCHEMA_VERSION


def test_four_processes_make_one_database(tmp_path: Path, empty_database: Path) -> None:
    home = Home(tmp_path / "home").make()
    assert [process.wait() for process in [migrate(home) for _ in range(4)]] == [0] * 4
    assert schema(empty_database) == schema(home.database)


def test_jobs_of_an_earlier_mlxq_keep_their_reason(home: Home, db: Database) -> None:
    """A restart that is queued while mlxq is upgraded must not fail for an argument that has another name now."""
    queued, _ = ledger.enqueue(db, NewJob("restart", {"service": "fast", "why": "hung"}))
    safe_mode.enter(db, "fast", safe_mode.SafeMode(1, "unclean_boot", "The machine went down."))
    db.run("""UPDATE facts SET value = replace(value, '"reason":', '"why":') WHERE name = 'restraint'""")
    db.run("DELETE FROM _sqlite_migrations WHERE name = 'm011_reasons'")
    db.run("PRAGMA user_version=10")

    assert migrate(home).wait() == 0
    assert job.get(db, queued).args == {"service": "fast", "reason": "hung"}
    assert safe_mode.of(db, "fast").reason == "unclean_boot"


def test_a_database_of_a_newer_mlxq_is_refused_and_left_alone(home: Home) -> None:
    with sqlite3.connect(home.database) as connection:
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    assert migrate(home).wait() == 0

    for opening in (open_database, read_database):
        with pytest.raises(NewerState, match=f"schema {SCHEMA_VERSION + 1}"):
            opening(home)


def test_reading_before_setup_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotSetUp):
        read_database(Home(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_only_its_owner_can_read_any_file(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").make()
    db = open_database(home)
    ledger.enqueue(db, NewJob("a"))

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.root.rglob("*")}

    assert modes.pop("logs") == modes.pop("run") == 0o700
    assert {"state.db", "state.db-wal", "state.db-shm"} <= modes.keys()
    assert set(modes.values()) == {0o600}


def test_a_file_that_is_no_database_is_told_and_left_as_it_is(home: Home) -> None:
    home.database.write_bytes(b"my shopping list, over and over. " * 200)

    with pytest.raises(StateDamaged, match="cannot be read") as caught:
        open_database(home)

    assert (caught.value.done, caught.value.hint is None) == ("The file was left as it is.", False)
    assert home.database.read_bytes().startswith(b"my shopping list")


def test_damage_inside_the_file_is_told_when_it_is_met(home: Home) -> None:
    with home.database.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 20)

    with pytest.raises(StateDamaged):
        ledger.enqueue(open_database(home), NewJob("a"))


def test_a_full_disk_costs_the_reserve_and_leaves_nothing_half_written(db: Database) -> None:
    """A file that may grow no further is told by SQLite as a full disk is."""
    pages = db.value("PRAGMA page_count")
    db.run(f"PRAGMA max_page_count={pages}")
    db.home.ballast.write_bytes(b"x")
    big = NewJob("a", {"words": "x" * 20_000})

    with pytest.raises(DiskFull):
        ledger.enqueue(db, big)

    assert not db.home.ballast.exists()
    assert db.value("SELECT count(*) FROM jobs") == 0
    db.run(f"PRAGMA max_page_count={pages + 1000}")
    assert ledger.enqueue(db, big)[1] is True


def test_a_write_is_tried_again_when_the_reserve_made_room(db: Database) -> None:
    pages = db.value("PRAGMA page_count")
    db.run(f"PRAGMA max_page_count={pages}")
    tries: list[int] = []

    @atomic
    def write(db: Database) -> int:
        tries.append(db.run(f"PRAGMA max_page_count={pages + 1000 * len(tries)}"))
        return ledger.enqueue(db, NewJob("a", {"words": "x" * 20_000}))[0]

    assert write(db) == 1
    assert len(tries) == 2


@pytest.mark.parametrize(("reserve", "tries"), [(True, 3), (False, 2)])
def test_a_reserve_whose_blocks_are_freed_late_is_waited_for(
    db: Database, reserve: bool, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on APFS: deleting makes room after the fact. Without a reserve there is nothing to wait for."""
    pages = db.value("PRAGMA page_count")
    db.run(f"PRAGMA max_page_count={pages}")
    paused: list[float] = []
    seen: list[str] = []

    def pause(seconds: float) -> None:
        paused.append(seconds)
        db.run(f"PRAGMA max_page_count={pages + 1000}")

    @atomic
    def write(db: Database) -> int:
        seen.append("tried")
        return ledger.enqueue(db, NewJob("a", {"words": "x" * 20_000}))[0]

    monkeypatch.setattr("state.db.time.sleep", pause)
    if reserve:
        db.home.ballast.write_bytes(b"x")
        assert write(db) == 1
    else:
        with pytest.raises(DiskFull):
            write(db)
    assert (len(seen), paused) == (tries, [FREED_S] * reserve)


@pytest.mark.parametrize("opens", [open_database, read_database])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_every_connection_may_fold_the_log_back_durably_on_macos(
    home: Home, platform: str, opens: Callable[[Home], Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one that is closed does, also one that reads alone."""
    open_database(home).close()
    monkeypatch.setattr(sys, "platform", platform)

    assert opens(home).value("PRAGMA checkpoint_fullfsync") == (platform == "darwin")


def test_a_lock_held_for_too_long_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("state.db.BUSY_TIMEOUT_S", 0.1)
    one, other = open_database(home), open_database(home)

    with one.transaction(), pytest.raises(StateUnavailable, match="held"):
        ledger.enqueue(other, NewJob("a"))

    assert ledger.enqueue(other, NewJob("a"))[1] is True


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").make()
    home.database.mkdir()

    with pytest.raises(StateUnavailable, match="cannot be used"):
        open_database(home)


def test_a_disk_that_is_mounted_to_be_read_alone_is_told(db: Database, home: Home, tmp_path: Path) -> None:
    """SQLite says only that it is unable to open the file."""
    with mounted(tmp_path / "small", "8m") as place:
        shutil.copy(home.database, place)
        sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
        subprocess.run([*sudo, "mount", "-o", "remount,ro", place], check=True)
        with pytest.raises(StateUnavailable, match=f"{place} cannot be written"):
            read_database(Home(place)).rows("SELECT * FROM jobs")


def test_the_views_read_well_without_mlxq(db: Database) -> None:
    ledger.enqueue(db, NewJob("pull", {"source": "x"}))
    held = ledger.claim(db, "ops", {"pull"}, "boot/1/1")
    assert held
    live = db.row("SELECT * FROM live_jobs")
    ledger.succeed(db, held, None)

    assert live
    assert (live["kind"], live["state"], live["started"]) == ("pull", "running", "2023-11-14 22:13:20")
    assert [tuple(row) for row in db.rows("SELECT kind, runs, succeeded, mean_s FROM job_durations")] == [
        ("pull", 1, 1, 0.0)
    ]
