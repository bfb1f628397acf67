"""The built wheel works without its sources, also from a folder whose files bear the names of our packages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("mlxq", "tasks", "catalog", "state")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(["uv", "build", "--quiet", "--wheel", "--out-dir", out, ROOT], check=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an environment of its own; the libraries are lent by this one, the sources are not.

    A path in a .pth file is taken as it is: the .pth that leads to the sources is not read from there.
    """
    made = tmp_path_factory.mktemp("venv") / "venv"
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, made], check=True)
    install = ["uv", "pip", "install", "--quiet", "--no-deps", "--python", made / "bin" / "python", wheel]
    subprocess.run(install, check=True)
    packages = next(made.glob("lib/python*/site-packages"))
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made / "bin"


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Give a folder of a person who has files with our packages' names."""
    for name in PACKAGES[1:]:
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger was imported')\n")
    return tmp_path


@pytest.fixture
def world(tmp_path: Path) -> dict[str, str]:
    lent = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return lent | {"MLXQ_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}


def run(folder: Path, world: dict[str, str], *argv: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=folder, env=world, capture_output=True, text=True, check=False, timeout=120)


def test_the_wheel_holds_the_four_packages_and_their_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    outside = re.compile(r"[^/]+\.(dist-info|data)/")
    assert {name.partition("/")[0] for name in names if not outside.match(name)} == set(PACKAGES)
    assert [name for name in names if name.endswith("/man1/mlxq.1")]
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted <= names


def test_nobody_gets_torch_or_cuda_with_it(wheel: Path, tmp_path: Path) -> None:
    """Into a bare environment, with nothing passed by hand."""
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, tmp_path / "bare"], check=True)
    argv = ["uv", "pip", "install", "--dry-run", "--no-config", "--python", tmp_path / "bare" / "bin" / "python", wheel]
    planned = subprocess.run(argv, capture_output=True, text=True, check=False)
    if planned.returncode:
        pytest.skip(f"there is no package index: {planned.stderr.strip()[-200:]}")
    names = set(re.findall(r"^ \+ ([\w.-]+)", planned.stderr, re.MULTILINE))
    assert {"mlxq", "huey", "litellm", "mlx-lm"} <= names
    assert not {name for name in names if re.match(r"torch|gradio|opencv|nvidia|cuda|triton|vllm", name)}


def test_it_is_the_wheel_that_runs(programs: Path, hostile: Path, world: dict[str, str]) -> None:
    where = "import mlxq, tasks, catalog, state; print(*(p.__file__ for p in (mlxq, tasks, catalog, state)))"
    told = run(hostile, world, programs / "python", "-P", "-c", where).stdout.split()
    assert [Path(file).is_relative_to(programs.parent) for file in told] == [True] * len(PACKAGES)


def test_the_command_is_safe_from_strangers(programs: Path, hostile: Path, world: dict[str, str]) -> None:
    helped = run(hostile, world, programs / "mlxq", "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "setup" in helped.stdout
    looked = run(hostile, world, programs / "mlxq", "status")
    assert (looked.returncode, looked.stdout) == (3, "")
    assert looked.stderr == f"Error: mlxq is not set up in {hostile}/home.\nNext: mlxq setup\n"
    module = run(hostile, world, programs / "python", "-P", "-m", "mlxq", "--version")
    assert (module.returncode, module.stderr) == (0, "")


def test_a_stranger_in_the_way_is_named(programs: Path, hostile: Path, world: dict[str, str]) -> None:
    for argv, more in (([programs / "python", "-m", "mlxq"], {}), ([programs / "mlxq"], {"PYTHONPATH": "."})):
        done = run(hostile, world | more, *argv)
        assert done.returncode == 1
        first, second = done.stderr.splitlines()
        assert first == f"mlxq: {hostile}/tasks.py stands in the way of a package of mlxq with the same name."
        assert second.startswith("Next: ")


def test_the_worker_runs_from_the_wheel(programs: Path, hostile: Path, world: dict[str, str]) -> None:
    """Migrations, the worker and its children are modules of the wheel too; none may find the strangers."""
    try:
        made = run(hostile, world, programs / "mlxq", "setup", "--accept-defaults", "--no-pull", "--timeout", "100")
        assert made.returncode == 0, made.stderr
        assert "smollm2-135m" in made.stderr
    finally:
        ended = run(hostile, world, programs / "mlxq", "down")
    assert ended.returncode == 0, ended.stderr
