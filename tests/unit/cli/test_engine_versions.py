"""`mlxq engine` about versions that are here, are coming, or were taken back."""

from __future__ import annotations

import sys

import pytest

from catalog.engines import entry
from mlxq import cli
from state import files, ledger, settings
from state import job as jobs
from state.db import Database
from state.errors import TimedOut
from state.paths import Home
from tasks import kinds
from tasks.engines import installed

NAME = "rapid-mlx"
VERSION = entry(NAME).version


@pytest.fixture
def here(home: Home) -> Home:
    """Put a proven version below the home."""
    folder = installed.folder(home, NAME, VERSION)
    python = installed.python(folder)
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    installed.write_proof(folder, {"engine": NAME, "version": VERSION, **installed.interpreter(folder)})
    return home


@pytest.mark.usefixtures("here")
def test_an_engine_of_which_every_version_was_taken_back_is_not_chosen(
    db: Database, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tiers would go on with another engine, and nothing would say why."""
    installed.take_back(db, NAME, VERSION, "rolled back by the user")
    assert cli.run(["engine", "use", NAME]) == 1

    said = " ".join(capsys.readouterr().err.split())
    assert f"{NAME} {VERSION} was taken back: rolled back by the user. Nothing was changed." in said
    assert f"Next: mlxq engine install {NAME} --version {VERSION}" in said
    assert settings.load(home)["engine"] == settings.AUTO

    installed.use(db, NAME, VERSION)
    assert cli.run(["engine", "use", NAME]) == 0


def test_an_engine_that_is_being_installed_is_listed_so(db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    job, _ = ledger.enqueue(db, kinds.new("install_engine", {"engine": NAME, "version": None}))
    assert cli.run(["engine", "list"]) == 0

    told = capsys.readouterr()
    assert f"{NAME}  {VERSION}  installing" in told.out
    assert told.err.strip() == f"Next: mlxq jobs watch {job}"


@pytest.mark.usefixtures("db")
def test_a_version_without_a_lock_is_refused_at_once(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["engine", "install", NAME, "--version", "0.0.1"]) == 1

    told = capsys.readouterr().err
    assert "not 0.0.1." in told
    assert "to download" not in told
    assert not home.worker_lock.exists()


def test_a_rollback_names_its_version_so_that_a_second_run_takes_back_no_other(db: Database, home: Home) -> None:
    """A worker that dies between the step and its end runs the job again."""
    installed.use(db, NAME, "0.16.9")
    installed.use(db, NAME, VERSION)
    with home.worker_lock.open("w") as lock:
        assert files.take_lock(lock)
        assert cli.run(["engine", "rollback", NAME, "--timeout", "0"]) == TimedOut.exit_code

    (rollback,) = jobs.listing(db, kind="rollback_engine")
    assert rollback.args["version"] == VERSION
    for _ in range(2):
        installed.take_back(db, NAME, rollback.args["version"], "rolled back by the user")
    assert installed.wish(db, NAME).version == "0.16.9"


@pytest.mark.usefixtures("db")
def test_without_a_version_in_use_there_is_nothing_to_roll_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["engine", "rollback", NAME]) == 1
    assert f"No version of {NAME} is in use." in capsys.readouterr().err
