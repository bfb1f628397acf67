"""What the job of an upgrade does next, and when a newer version is looked for."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.disk import fill, mounted

from mlxq import jobs_client, status_report
from mlxq.commands import upgrade as command
from state import event, facts, settings
from state.db import SCHEMA_VERSION, Database, read_database
from state.errors import Busy, NewerState, NotFound, Offline, UpgradeFailed, UsageProblem
from state.paths import Home
from tasks.engines.installed import mlxq_version
from tasks.runtime import runtime
from tasks.system.child import Later
from tasks.upgrade import back, installation, newer, packages, switch
from tasks.upgrade import record as records
from tasks.upgrade.packages import FoundVersion
from tasks.upgrade.record import Phase, Record, Version

DAY_S = 86_400.0


class Job:
    """The part of an executor's context that is read before anything is done."""

    def __init__(self, home: Home, db: Database, number: int = 7) -> None:
        self.home, self.db = home, db
        self.claim = type("Claim", (), {"id": number})()
        self.phases: list[str] = []

    def report(self, phase: str, **_: Any) -> None:
        self.phases.append(phase)

    def check(self) -> None:
        """Do nothing: the job is not cancelled."""


def write(home: Home, phase: Phase, **changes: Any) -> Record:
    before = Version(mlxq_version(), sys.executable, SCHEMA_VERSION)
    after = Version("9.0.0", "/nowhere", SCHEMA_VERSION)
    fields = {"job": 7, "before": before, "after": after, "origin": "/tools/mlxq/bin/mlxq", **changes}
    return records.write(home, Record(phase=phase, at=100.0, **fields))


def test_a_checkout_is_refused_with_the_command_to_run(home: Home, db: Database):
    with pytest.raises(UsageProblem) as caught:
        switch.upgrade(Job(home, db), None)  # pyright: ignore[reportArgumentType]
    assert caught.value.hint == "git pull && uv sync"


def test_an_upgrade_that_is_not_settled_refuses_another(home: Home, db: Database):
    write(home, Phase.VERIFY, job=6)
    with pytest.raises(Busy, match=r"The upgrade to 9\.0\.0 is not settled yet\."):
        switch.upgrade(Job(home, db), None)  # pyright: ignore[reportArgumentType]


def test_one_that_was_taken_back_fails_and_says_why(home: Home, db: Database):
    write(home, Phase.TAKEN_BACK, reason="gateway did not answer", backup="/backups/state-schema-18.db")
    with pytest.raises(UpgradeFailed) as caught:
        switch.upgrade(Job(home, db), None)  # pyright: ignore[reportArgumentType]
    assert caught.value.message == "mlxq 9.0.0 was taken back: gateway did not answer."
    assert caught.value.done
    assert "/backups/state-schema-18.db" in caught.value.done


def test_one_that_is_done_says_so_once_more(home: Home, db: Database):
    write(home, Phase.DONE)
    result = switch.upgrade(Job(home, db), None)  # pyright: ignore[reportArgumentType]
    assert result == {"version": "9.0.0", "before": mlxq_version(), "upgraded": True, "backup": ""}


@pytest.mark.parametrize("newest", ["0.0.9", mlxq_version()])
def test_no_newer_version_changes_nothing(home: Home, db: Database, monkeypatch: pytest.MonkeyPatch, newest: str):
    monkeypatch.setattr(installation, "require_upgradable", lambda: None)
    monkeypatch.setattr(packages, "find", lambda _: FoundVersion(newest, ""))
    assert switch.upgrade(Job(home, db), None)["upgraded"] is False  # pyright: ignore[reportArgumentType]
    assert records.read(home) is None


def test_nothing_is_taken_back_that_was_not_upgraded(home: Home):
    with pytest.raises(NotFound, match="There is no upgrade to take back"):
        switch.require_way_back(home)


def test_a_version_whose_python_went_away_can_be_taken_back(home: Home, db: Database):
    """By the version before, which can open state.db no more, and says so."""
    record = write(home, Phase.DONE)
    db.run(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    home.backup(SCHEMA_VERSION).parent.mkdir()
    home.backup(SCHEMA_VERSION).touch()
    with pytest.raises(NewerState) as caught:
        read_database(home)
    assert (caught.value.done, caught.value.hint) == (
        "/nowhere, which runs the newer one, is not there any more.",
        "mlxq upgrade --back",
    )
    assert switch.require_way_back(home) == record

    write(home, Phase.DONE, after=replace(record.after, python=sys.executable))
    with pytest.raises(NotFound):
        switch.require_way_back(home)


def test_a_step_that_finds_no_room_waits_for_it(tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch):
    """Nothing is switched before it is written down."""
    monkeypatch.setattr(installation, "require_upgradable", lambda: None)
    monkeypatch.setattr(packages, "find", lambda _: FoundVersion("9.0.0", ""))
    monkeypatch.setattr(switch, "_prepare", lambda *_: Version("9.0.0", "/nowhere", SCHEMA_VERSION))
    with mounted(tmp_path / "small", "1m") as disk:
        full = Home(disk / "home").make()
        fill(full.run / "filler")
        with pytest.raises(Later, match="waits for room on the disk"):
            switch.upgrade(Job(full, db), None)  # pyright: ignore[reportArgumentType]
        assert (records.read(full), full.versions.exists()) == (None, False)


def test_another_version_asked_for_meanwhile_is_refused(home: Home, db: Database, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(installation, "require_upgradable", lambda: None)
    monkeypatch.setattr(jobs_client, "follow", lambda *_, **__: pytest.fail("it is not followed"))
    with jobs_client.writing(home) as writing:
        jobs_client.enqueue(writing, [command.kinds.new("upgrade", {"to": "1.0"})])
    with pytest.raises(Busy, match="Another upgrade is under way"):
        command._upgrade(home, "2.0", None, as_json=False)


def test_what_is_no_version_is_refused_before_anything_is_looked_at(tmp_path: Path):
    with pytest.raises(NotFound, match="'x y' is no version"):
        command._upgrade(Home(tmp_path / "none"), "x y", None, as_json=False)


@pytest.fixture
def asked(home: Home, db: Database, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each look into the index, which has 9.0.0."""
    looks: list[str] = []
    monkeypatch.setattr(runtime, "home", home)
    monkeypatch.setattr(runtime, "database", lambda: db)
    monkeypatch.setattr(packages, "find", lambda: looks.append("asked") or FoundVersion("9.0.0", ""))
    return looks


def test_a_newer_mlxq_is_an_event(db: Database, asked: list[str]):
    context: Any = SimpleNamespace(db=db)
    assert switch.check_upgrade(context) == {"version": mlxq_version(), "newest": "9.0.0"}
    (found,) = event.since(db, 0, {"mlxq_newer"})
    assert (found.data["subject"], newer.found(db)) == ("mlxq 9.0.0", "9.0.0")


def test_the_index_is_asked_once_a_day_and_only_where_the_user_wants_it(
    home: Home, db: Database, asked: list[str], monkeypatch: pytest.MonkeyPatch
):
    switch.look()
    assert asked == []
    settings.write(home, "check-updates", True)
    switch.look()
    switch.look()
    assert asked == ["asked"]
    notice = ("mlxq", f"9.0.0 is available, and this is {mlxq_version()}.", "mlxq upgrade")
    assert notice in status_report.collect(db).troubles

    facts.put(db, newer.FACT, {"version": "9.0.0", "at": db.now() - DAY_S})
    monkeypatch.setattr(packages, "find", lambda: (_ for _ in ()).throw(Offline()))
    switch.look()
    assert newer.found(db) == "9.0.0", "an index that is away takes nothing back"


def test_a_guard_is_started_once_and_not_for_what_is_settled(home: Home, monkeypatch: pytest.MonkeyPatch):
    started: list[list[str]] = []
    monkeypatch.setattr(back.subprocess, "Popen", lambda argv, **_: started.append(argv))
    back.ensure_guard(home, write(home, Phase.DONE))
    assert started == []
    back.ensure_guard(home, write(home, Phase.BACK))
    assert started == [[sys.executable, "-P", "-m", "mlxq.upgrade_guard"]]
