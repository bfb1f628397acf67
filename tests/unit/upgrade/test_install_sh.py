"""The shell script that installs mlxq: what it refuses, and that a part of it does nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / ".ci" / "install.sh"
UV = """#!/bin/sh
echo "uv $*" >>"$CALLS"
[ "$*" != "tool dir --bin" ] || echo "$BIN"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a folder with a uv that notes what it is asked."""
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(UV)
    uv.chmod(0o755)
    return tmp_path


def ran(folder: Path, *words: str, script: Path = SCRIPT, path: str = "", **environment: str):
    base = {"PATH": path or f"{folder}/bin:/usr/bin:/bin", "CALLS": f"{folder}/calls", "BIN": f"{folder}/bin"}
    return subprocess.run(
        ["/bin/sh", script, *words],
        env=base | {"MLXQ_AS_ROOT": "yes", "SHELL": "/bin/sh", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def calls(folder: Path) -> list[str]:
    try:
        return (folder / "calls").read_text().splitlines()
    except FileNotFoundError:
        return []


@pytest.mark.parametrize(
    ("words", "asked"), [((), "uv tool install mlxq"), (("1.2.3",), "uv tool install mlxq==1.2.3")]
)
def test_it_installs_by_uv_alone(folder: Path, words: tuple[str, ...], asked: str):
    done = ran(folder, *words)
    assert (done.returncode, done.stdout) == (0, "Next: mlxq setup\n")
    assert [call for call in calls(folder) if "install" in call] == [asked]


@pytest.mark.parametrize("version", ["1.2.3 --index http://evil", "git+https://evil", "../x", "1;rm", "-r x"])
def test_what_is_no_version_is_refused(folder: Path, version: str):
    done = ran(folder, version)
    assert done.returncode == 1
    assert "is no version" in done.stderr
    assert calls(folder) == []


def test_without_uv_it_says_how_to_get_it(tmp_path: Path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("uname", "id", "basename"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    done = ran(tmp_path, path=str(tools))
    assert done.returncode == 1
    assert done.stderr.startswith("install.sh: uv is not installed; see https://docs.astral.sh/uv/")


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone is refused")
def test_root_is_refused(folder: Path):
    done = ran(folder, MLXQ_AS_ROOT="")
    assert (done.returncode, calls(folder)) == (1, [])


def test_a_download_that_was_cut_short_does_nothing(folder: Path):
    """Whatever line it ends after."""
    lines = SCRIPT.read_text().splitlines(keepends=True)
    cut = folder / "cut.sh"
    for number in range(10, len(lines), 6):
        cut.write_text("".join(lines[:number]))
        ran(folder, script=cut)
    assert calls(folder) == []


def test_it_fetches_nothing_and_changes_no_profile():
    code = "\n".join(line.partition(" #")[0] for line in SCRIPT.read_text().splitlines() if not line.startswith("#"))
    for word in ("curl", "wget", "sudo", "eval", ".bashrc", ".zshrc", ".profile", "| sh"):
        assert word not in code
