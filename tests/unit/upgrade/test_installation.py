"""How an installation is told, and what the installed program becomes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mlxq import __main__ as program
from mlxq import __version__
from state.paths import Home
from tasks.engines.installed import mlxq_version
from tasks.upgrade import installation
from tasks.upgrade import record as records
from tasks.upgrade.installation import InstallMethod
from tasks.upgrade.record import Phase, Record, Version

NO_PROJECT = Path("/nowhere/pyproject.toml")


@pytest.mark.parametrize(
    ("folder", "marks", "layout", "removal"),
    [
        ("tools/mlxq", ["pyvenv.cfg", "uv-receipt.toml"], InstallMethod.UV_TOOL, "uv tool uninstall mlxq"),
        ("venvs/mlxq", ["pyvenv.cfg", "pipx_metadata.json"], InstallMethod.PIPX, "pipx uninstall mlxq"),
        ("mine", ["pyvenv.cfg"], InstallMethod.VENV, "uv pip uninstall --python {prefix} mlxq"),
        ("my own", ["pyvenv.cfg"], InstallMethod.VENV, "uv pip uninstall --python '{prefix}' mlxq"),
        ("archive-v0/x1", ["pyvenv.cfg"], InstallMethod.UVX, "uv cache clean mlxq"),
        ("usr", [], InstallMethod.SYSTEM, "python -m pip uninstall mlxq"),
    ],
)
def test_an_installation_is_told_by_the_marks_of_its_maker(
    tmp_path: Path, folder: str, marks: list[str], layout: InstallMethod, removal: str
):
    prefix = tmp_path / folder
    prefix.mkdir(parents=True)
    for name in marks:
        (prefix / name).touch()
    found = installation.current(prefix, NO_PROJECT)
    assert (found.method, found.removal) == (layout, removal.format(prefix=prefix))


def test_this_is_a_checkout_whose_deletion_is_not_proposed():
    here = installation.current()
    assert (here.method, here.removal) == (InstallMethod.CHECKOUT, None)


def environment(home: Home, version: str) -> Path:
    """Make what looks like a version's environment."""
    python = home.versions / version / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return python


def test_a_link_leads_to_a_version_and_its_absence_to_the_installation(home: Home):
    python = environment(home, "0.2.0")
    upgraded(home, python)
    assert installation.chosen(home) == sys.executable
    installation.lead_to(home, "0.2.0", str(python))
    assert str((home.versions / f"from-{mlxq_version()}").readlink()) == "0.2.0"
    assert installation.chosen(home) == str(python)
    installation.lead_to(home, "0.3.0", str(environment(home, "0.3.0")))
    assert str((home.versions / f"from-{mlxq_version()}").readlink()) == "0.3.0"
    installation.lead_to(home, mlxq_version(), sys.executable)
    assert installation.chosen(home) == sys.executable
    assert not list(home.versions.glob("*from-*"))


def upgraded(home: Home, python: Path) -> None:
    """Write an upgrade of this mlxq to 0.2.0 down."""
    before, after = Version(mlxq_version(), sys.executable, 18), Version("0.2.0", str(python), 19)
    records.write(home, Record(Phase.DONE, 100.0, 1, before, after, "/tools/mlxq/bin/mlxq"))


def test_a_python_that_went_away_is_not_chosen(home: Home):
    python = environment(home, "0.2.0")
    upgraded(home, python)
    installation.lead_to(home, "0.2.0", str(python))
    python.unlink()
    python.symlink_to("/nowhere/python")
    assert installation.chosen(home) == sys.executable


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Note what this process would become."""
    runs: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _path, argv: runs.append(argv))
    monkeypatch.setattr(sys, "argv", ["mlxq", "status", "--json"])
    monkeypatch.setattr(program, "__file__", "/tools/mlxq/lib/python3.11/site-packages/mlxq/__main__.py")
    return runs


def test_the_program_becomes_the_version_that_the_link_names(home: Home, became: list[list[str]]):
    python = environment(home, "0.2.0")
    program.become_chosen_version()
    assert became == []
    (home.versions / f"from-{__version__}").symlink_to("0.2.0")
    program.become_chosen_version()
    assert became == [[str(python), "-P", "-m", "mlxq", "status", "--json"]]


def test_what_an_upgrade_made_becomes_no_other(home: Home, became: list[list[str]], monkeypatch: pytest.MonkeyPatch):
    """Two links that lead to each other are no circle."""
    environment(home, "0.2.0")
    (home.versions / f"from-{__version__}").symlink_to("0.2.0")
    monkeypatch.setattr(sys, "prefix", str(home.versions / __version__ / "venv"))
    program.become_chosen_version()
    assert became == []


@pytest.mark.parametrize("target", ["0.2.0", "../../evil", "/"])
def test_a_link_that_leads_nowhere_is_left_alone(home: Home, became: list[list[str]], target: str):
    home.versions.mkdir(parents=True)
    (home.versions / f"from-{__version__}").symlink_to(target)
    program.become_chosen_version()
    assert became == []
