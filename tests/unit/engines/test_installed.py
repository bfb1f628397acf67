"""Which version of an engine is used: the requested one, else the one before it; never one that failed."""

import sys
from pathlib import Path

import pytest

from state.db import Database
from state.paths import Home
from tasks.engines import installed


def install(home: Home, version: str, interpreter: str = sys.executable) -> Path:
    """Leave what an installation leaves."""
    folder = installed.folder(home, "rapid-mlx", version)
    (folder / "venv" / "bin").mkdir(parents=True)
    installed.python(folder).symlink_to(interpreter)
    proof = {"engine": "rapid-mlx", "version": version, "mlx": "0.32.2", **installed.interpreter(folder)}
    installed.write_proof(folder, proof)
    return folder


def used(db: Database, home: Home) -> str | None:
    versions = {installation.engine: installation.version for installation in installed.used(db, home)}
    return versions.get("rapid-mlx")


def test_the_newest_is_used_until_one_is_requested(home: Home, db: Database) -> None:
    install(home, "0.16.9")
    install(home, "0.16.10")

    assert used(db, home) == "0.16.10", "10 comes after 9"
    installed.use(db, "rapid-mlx", "0.16.9")
    assert used(db, home) == "0.16.9"


def test_one_that_failed_gives_way_to_the_one_before_it(home: Home, db: Database) -> None:
    for version in ("0.16.9", "0.16.10"):
        install(home, version)
        installed.use(db, "rapid-mlx", version)
    assert installed.take_back(db, "rapid-mlx", "0.16.10", "It crashed.").version == "0.16.9"

    assert used(db, home) == "0.16.9"
    assert installed.wish(db, "rapid-mlx").bad == {"0.16.10": "It crashed."}
    assert installed.take_back(db, "rapid-mlx", "0.16.9", "It crashed too.").version is None
    assert used(db, home) is None
    installed.use(db, "rapid-mlx", "0.16.10")
    assert used(db, home) == "0.16.10", "the user asked for it"


def test_one_that_was_slower_changes_nothing_but_that_it_is_known(home: Home, db: Database) -> None:
    install(home, "0.16.9")
    installed.use(db, "rapid-mlx", "0.16.9")
    install(home, "0.16.10")
    installed.take_back(db, "rapid-mlx", "0.16.10", "It is slower.")

    assert used(db, home) == "0.16.9"
    assert installed.wish(db, "rapid-mlx").version == "0.16.9"


def test_one_that_is_gone_is_missed_and_the_one_before_it_serves(home: Home, db: Database) -> None:
    for version in ("0.16.9", "0.16.10"):
        folder = install(home, version)
        installed.use(db, "rapid-mlx", version)
    installed.discard(folder)

    assert installed.missing(db, home) == {"rapid-mlx": "0.16.10"}
    assert used(db, home) == "0.16.9"
    installed.forget(db, "rapid-mlx", "0.16.10")
    assert installed.missing(db, home) == {}, "a version that was removed is not missed"
    assert installed.wish(db, "rapid-mlx").version == "0.16.9"


@pytest.mark.parametrize("how", ["removed", "upgraded", "another"])
def test_a_python_that_is_gone_or_another_takes_the_environment_with_it(
    home: Home, db: Database, tmp_path: Path, how: str
) -> None:
    python = tmp_path / ("python3" if how == "another" else f"python3.{sys.version_info.minor}")
    python.symlink_to(sys.executable) if how == "removed" else python.write_bytes(b"#!/bin/sh\n")
    python.chmod(0o755)
    folder = install(home, "0.16.10", str(python))
    installed.use(db, "rapid-mlx", "0.16.10")
    assert used(db, home) == "0.16.10"

    if how == "removed":
        installed.python(folder).unlink()
        installed.python(folder).symlink_to(tmp_path / "gone")
    else:
        newer = tmp_path / ("other" if how == "another" else "python3.99")
        newer.write_bytes(b"#!/bin/sh\n")
        newer.chmod(0o755)
        installed.python(folder).unlink()
        installed.python(folder).symlink_to(newer)
    assert used(db, home) is None
    assert installed.missing(db, home) == {"rapid-mlx": "0.16.10"}


def test_a_patch_of_python_is_the_same_python(home: Home, db: Database, tmp_path: Path) -> None:
    """Homebrew and uv keep each patch in a folder of its own."""
    name = f"python3.{sys.version_info.minor}"
    for patch in ("1", "2"):
        (tmp_path / patch).mkdir()
        (tmp_path / patch / name).write_bytes(b"#!/bin/sh\n")
        (tmp_path / patch / name).chmod(0o755)
    (tmp_path / name).symlink_to(tmp_path / "1" / name)
    install(home, "0.16.10", str(tmp_path / name))
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "2" / name)

    assert used(db, home) == "0.16.10"


def test_a_hidden_folder_is_no_release(home: Home) -> None:
    install(home, "0.16.10").rename(home.engines / ".rapid-mlx-0.16.10.partial")

    assert len(installed.releases(home)) == 1


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave mlxq's environment without an engine, as its wheel does."""
    monkeypatch.setattr(installed, "own", lambda: None)


@pytest.mark.usefixtures("wheel")
def test_where_no_engine_is_here_the_one_that_setup_installs_stands_for_it(home: Home, db: Database) -> None:
    (expected,) = installed.used(db, home)

    assert (expected.name, expected.python) == (
        "vllm-mlx 0.6.0",
        str(home.engines / "vllm-mlx-0.6.0" / "venv" / "bin" / "python"),
    )
    assert installed.lacking(home) == "vllm-mlx"
    assert "vllm-mlx" in installed.installable()


@pytest.mark.usefixtures("wheel")
def test_an_engine_that_is_here_is_enough(home: Home, db: Database) -> None:
    install(home, "0.16.10")

    assert [engine.name for engine in installed.used(db, home)] == ["rapid-mlx 0.16.10"]
    assert installed.lacking(home) is None


def test_in_a_checkout_the_engine_comes_with_mlxq(home: Home, db: Database) -> None:
    assert installed.fallback(home).python == sys.executable == installed.host(db, home).python
    assert installed.lacking(home) is None
    assert "vllm-mlx" not in installed.installable()
