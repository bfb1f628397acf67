"""Engines change under running tiers, and go wrong there: a tier serves on what is left, and the reason is told.

The worker, uv, the index, the environments, the processes and vllm-mlx are real; the releases of rapid-mlx that
misbehave are those of tests/support/tiny_engine.py.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import package_index, tiny_engine
from support.mlxq_home import Mlxq, until
from support.package_index import PackageIndex
from uv import find_uv_bin

from mlxq import cli
from state import secrets, service, settings
from state.errors import EngineFailed
from state.job import Job
from state.service import ROUTED, Service
from tasks.engines import installed, smoke
from tasks.supervision import probe
from tasks.system import process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

FIRST, SECOND = "9.0.0", "9.0.1"
Make = Callable[..., None]


@pytest.fixture
def index() -> Iterator[PackageIndex]:
    with package_index.running(PackageIndex()) as served:
        yield served


@pytest.fixture
def release(mlxq: Mlxq, index: PackageIndex, builtin_model: Path, tmp_path: Path) -> Make:
    """Return what publishes a release; the worker asks the index of the test alone."""
    settings.write(mlxq.home, "model-dir", str(builtin_model.parent))
    settings.write(mlxq.home, "engine", "rapid-mlx")
    settings.write(mlxq.home, "max-restarts", 1)

    def publish(version: str, how: str = "good", **more: Any) -> None:
        wheel = tiny_engine.make(tmp_path / version, version, how, **more)
        index.add(wheel)
        tiny_engine.lock(mlxq.home.engines, wheel)

    return publish


def work(mlxq: Mlxq, index: PackageIndex, tmp_path: Path, **environment: str) -> None:
    mlxq.work(**index.environment(tmp_path / "uv"), UV_HTTP_TIMEOUT="2", **environment)


def install(mlxq: Mlxq, version: str) -> Job:
    done = mlxq.ended(mlxq.put("install_engine", engine="rapid-mlx", version=version))
    assert done.state == "succeeded", (done.error, mlxq.logs())
    return done


def serves(mlxq: Mlxq, release: str, name: str = "fast") -> Service:
    """Wait until a release serves a tier, and have it answer."""
    until(lambda: (row := service.find(mlxq.db, name)) and row.release == release and row.state in ROUTED)
    row = mlxq.one(name)
    probe.one_token(row.port, secrets.read(mlxq.home.secrets)[secrets.TIER], name, 60)
    return row


def crash(mlxq: Mlxq, name: str = "fast") -> None:
    """Ask a tier that serves until its engine has crashed."""
    until(lambda: mlxq.one(name).state in ROUTED)
    row = mlxq.one(name)
    exits = mlxq.events(name).count("exited") + mlxq.events(name).count("crash_looped")

    def gone() -> bool:
        with suppress(EngineFailed):
            probe.one_token(row.port, secrets.read(mlxq.home.secrets)[secrets.TIER], name, 5)
        return mlxq.events(name).count("exited") + mlxq.events(name).count("crash_looped") > exits

    until(gone)


def causes(mlxq: Mlxq, event: str) -> list[str]:
    rows = mlxq.db.rows(
        "SELECT json_extract(data, '$.cause') AS cause FROM events WHERE name = ? ORDER BY id", (event,)
    )
    return [row["cause"] for row in rows]


def idle(mlxq: Mlxq) -> None:
    """Wait until no job is left."""
    until(lambda: not mlxq.db.value("SELECT count(*) FROM jobs WHERE state IN ('blocked', 'queued', 'running')"))


def test_a_version_that_crashes_in_use_gives_way_to_the_one_before_it(
    mlxq: Mlxq, release: Make, index: PackageIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A crash loop after an hour: the tier and the others serve on the former release by themselves, and it is said."""
    release(FIRST)
    work(mlxq, index, tmp_path)
    install(mlxq, FIRST)
    mlxq.up()
    release(SECOND, crash_after=2)
    install(mlxq, SECOND)
    serves(mlxq, f"rapid-mlx {SECOND}")
    for _ in range(2):
        crash(mlxq)
    serves(mlxq, f"rapid-mlx {FIRST}")
    idle(mlxq)

    told = "fast kept exiting on it: Crashed (SIGSEGV)"
    assert installed.wish(mlxq.db, "rapid-mlx").bad == {SECOND: told}
    assert causes(mlxq, "engine_taken_back") == [told]
    assert causes(mlxq, "engine_changed")[-1].startswith(f"rapid-mlx {FIRST} in place of rapid-mlx {SECOND}.")
    assert cli.run(["why"]) == 0
    why = " ".join(capsys.readouterr().out.split())
    assert f"rapid-mlx {FIRST} in place of rapid-mlx {SECOND}" in why
    assert f"rapid-mlx Taken back {SECOND}: {told}" in why
    assert cli.run(["engine", "list"]) == 0
    assert "taken back" in capsys.readouterr().out


def test_without_a_former_version_the_engine_that_is_always_there_serves(
    mlxq: Mlxq, release: Make, index: PackageIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release(FIRST, crash_after=4)
    work(mlxq, index, tmp_path)
    install(mlxq, FIRST)
    mlxq.up()
    for _ in range(2):
        crash(mlxq)
    serves(mlxq, installed.own().name)
    idle(mlxq)

    assert cli.run(["status"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"A setting names rapid-mlx, but version {FIRST} was taken back (fast kept exiting on it: Crashed" in told


def test_a_model_that_one_engine_cannot_load_is_served_by_another(
    mlxq: Mlxq, release: Make, index: PackageIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the engine is kept for the other models; `engine use` has it tried again."""
    release(FIRST, "picky")
    work(mlxq, index, tmp_path)
    install(mlxq, FIRST)
    assert mlxq.up().release == installed.own().name

    assert causes(mlxq, "engine_fault") == [
        "rapid-mlx 9.0.0 does not serve tiny: fast could not start on it: The engine does not know models of type llama"
    ]
    assert [engine.name for engine in installed.used(mlxq.db, mlxq.home)] == [installed.own().name, "rapid-mlx 9.0.0"]
    assert cli.run(["status"]) == 0
    assert "but it does not serve this model (fast could not start on it" in " ".join(capsys.readouterr().out.split())
    assert cli.run(["engine", "use", "rapid-mlx"]) == 0
    assert len(causes(mlxq, "engine_fault")) == 2
    assert mlxq.one().release == installed.own().name


@pytest.mark.parametrize("how", ["deleted", "python"])
def test_an_environment_that_vanishes_under_a_tier_is_made_again(
    mlxq: Mlxq, release: Make, index: PackageIndex, tmp_path: Path, how: str
) -> None:
    """What runs keeps running; a restart meanwhile serves on vllm-mlx, and the tier returns when the engine is back."""
    release(FIRST)
    work(mlxq, index, tmp_path)
    install(mlxq, FIRST)
    before = mlxq.up()
    folder = installed.folder(mlxq.home, "rapid-mlx", FIRST)
    if how == "deleted":
        shutil.rmtree(folder)
    else:
        installed.python(folder).unlink()
        installed.python(folder).symlink_to(tmp_path / "gone")
    assert serves(mlxq, before.release).identity == before.identity
    index.fault = "hang"
    shutil.rmtree(tmp_path / "uv")
    mlxq.ended(mlxq.put("restart", service="fast"))
    serves(mlxq, installed.own().name)

    assert f"rapid-mlx {FIRST}." in causes(mlxq, "engine_changed")[0]
    assert "the environment of version 9.0.0 is gone, or its Python is" in causes(mlxq, "engine_changed")[0]
    index.fault = ""
    serves(mlxq, f"rapid-mlx {FIRST}")
    idle(mlxq)


def test_an_environment_that_lost_a_package_is_made_again(
    mlxq: Mlxq, release: Make, index: PackageIndex, tmp_path: Path
) -> None:
    release(FIRST)
    work(mlxq, index, tmp_path)
    install(mlxq, FIRST)
    mlxq.up()
    folder = installed.folder(mlxq.home, "rapid-mlx", FIRST)
    shutil.rmtree(next(folder.rglob("site-packages/rapid_mlx")))
    generation = mlxq.one().generation
    mlxq.ended(mlxq.put("restart", service="fast"))
    until(lambda: mlxq.one().generation > generation + 1)
    serves(mlxq, f"rapid-mlx {FIRST}")
    idle(mlxq)

    assert next(folder.rglob("site-packages/rapid_mlx")).is_dir()


@pytest.fixture
def two(mlxq: Mlxq, tiny: Path) -> Mlxq:
    """Have a stack of two tiers."""
    mlxq.serve(tiny, "fast", "standard")
    return mlxq


def up_on_first(mlxq: Mlxq, release: Make, index: PackageIndex, tmp_path: Path) -> None:
    release(FIRST)
    work(mlxq, index, tmp_path)
    install(mlxq, FIRST)
    for name in ("fast", "standard"):
        assert mlxq.up(name).release == f"rapid-mlx {FIRST}"


def upgrade(mlxq: Mlxq) -> dict[str, Any]:
    done = mlxq.ended(mlxq.put("upgrade_engine", engine="rapid-mlx"))
    assert done.state == "succeeded", (done.error, mlxq.logs())
    idle(mlxq)
    return done.result or {}


def test_an_upgrade_changes_one_tier_after_the_other(
    two: Mlxq, release: Make, index: PackageIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    up_on_first(two, release, index, tmp_path)
    release(SECOND, speed=150)
    assert cli.run(["engine", "upgrade", "--check"]) == 0
    assert f"rapid-mlx {SECOND} can be installed; {FIRST} is used." in capsys.readouterr().err
    result = upgrade(two)

    assert (result["used"], result["before"], set(result["speeds"])) == (True, FIRST, {FIRST, SECOND})
    for name in ("fast", "standard"):
        assert serves(two, f"rapid-mlx {SECOND}", name).generation == 2
    steps = two.db.rows("SELECT service, name FROM events WHERE attempt = 2 AND service IN ('fast', 'standard')")
    order = [(row["service"], row["name"]) for row in steps]
    first, second = ("fast", "standard") if order[0][0] == "fast" else ("standard", "fast")
    assert order.index((first, "became_ready")) < order.index((second, "starting")), "the other one answers meanwhile"
    assert cli.run(["engine", "rollback"]) == 0
    for name in ("fast", "standard"):
        serves(two, f"rapid-mlx {FIRST}", name)


def test_an_upgrade_that_is_slower_is_not_used(
    two: Mlxq, release: Make, index: PackageIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    up_on_first(two, release, index, tmp_path)
    release(SECOND, speed=60)
    result = upgrade(two)

    assert not result["used"]
    assert result["why"].startswith("it writes ")
    assert [two.one(name).generation for name in ("fast", "standard")] == [1, 1]
    assert cli.run(["engine", "upgrade"]) == 0
    assert f"rapid-mlx {FIRST} stays, because {SECOND} was taken back: it writes" in capsys.readouterr().out


def test_an_upgrade_on_which_a_tier_does_not_start_is_taken_back_before_the_next(
    two: Mlxq, release: Make, index: PackageIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It passes the smoke test on the built-in model, and not with the user's."""
    up_on_first(two, release, index, tmp_path)
    release(SECOND, "picky", speed=150)
    assert cli.run(["engine", "upgrade"]) == 1
    told = " ".join(capsys.readouterr().err.split())
    idle(two)

    assert f"rapid-mlx {SECOND} was taken back: " in told
    assert f"{FIRST} serves again" in told
    rows = [serves(two, f"rapid-mlx {FIRST}", name) for name in ("fast", "standard")]
    assert min(row.generation for row in rows) == 1, "the second tier was left alone"


def test_an_upgrade_that_fails_its_smoke_test_changes_nothing(
    two: Mlxq, release: Make, index: PackageIndex, tmp_path: Path
) -> None:
    up_on_first(two, release, index, tmp_path)
    release(SECOND, "dead")
    done = two.ended(two.put("upgrade_engine", engine="rapid-mlx"))

    assert (done.state, done.attempt) == ("failed", 1)
    assert done.error_code == "engine_unproven"
    assert [two.one(name).generation for name in ("fast", "standard")] == [1, 1]


def test_an_upgrade_to_a_version_that_crashes_while_it_is_timed_names_it(
    two: Mlxq, release: Make, index: PackageIndex, tmp_path: Path
) -> None:
    up_on_first(two, release, index, tmp_path)
    release(SECOND, "fragile", crash_after=5)
    done = two.ended(two.put("upgrade_engine", engine="rapid-mlx"))

    assert done.state == "failed"
    assert (done.error or "").startswith(f"rapid-mlx {SECOND} could not be timed: Crashed (SIGSEGV)")
    assert [two.one(name).release for name in ("fast", "standard")] == [f"rapid-mlx {FIRST}"] * 2


IMPATIENT = "from tasks.engines import smoke; smoke.START_S = 5.0\n"
"""Prepended to the worker's program: an engine that does not listen within this many seconds fails its smoke test."""


def test_two_upgrades_at_once_to_a_version_that_hangs_are_one_and_end(
    mlxq: Mlxq, release: Make, index: PackageIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both commands are told; the tier is left alone, no process of the version is left, and `why` says what failed."""
    release(FIRST)
    mlxq.work(IMPATIENT, **index.environment(tmp_path / "uv"))
    install(mlxq, FIRST)
    before = mlxq.up()
    release(SECOND, "hang")
    argv = [sys.executable, "-P", "-m", "mlxq", "engine", "upgrade"]
    commands = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [" ".join(command.communicate(timeout=120)[1].split()) for command in commands]

    reason = f"rapid-mlx {SECOND} failed its smoke test: The engine was not ready within 5 s."
    assert all(reason in words for words in told), told
    assert mlxq.db.value("SELECT count(*) FROM jobs WHERE kind = 'upgrade_engine'") == 1
    assert serves(mlxq, f"rapid-mlx {FIRST}").identity == before.identity
    assert not process.find_orphans(str(mlxq.home.root), smoke.NAME)
    assert sorted(path.name for path in mlxq.home.engines.glob("[!.]*")) == ["locks", f"rapid-mlx-{FIRST}"]
    assert cli.run(["why"]) == 0
    assert f"rapid-mlx Not used {SECOND}: {reason}" in " ".join(capsys.readouterr().out.split())


UV = """#!/bin/sh
{uv} "$@" || exit
[ "$1" != venv ] || exec sleep 600
"""
"""A uv that does not end once it has made an environment."""


def hanging_uv(folder: Path) -> str:
    """Make a package `uv` with such a program; return the folder to find it in."""
    program = folder / "uv" / "program"
    program.parent.mkdir(parents=True)
    program.write_text(UV.format(uv=shlex.quote(find_uv_bin())))
    program.chmod(0o755)
    program.with_name("__init__.py").write_text(f"def find_uv_bin():\n    return {str(program)!r}\n")
    return str(folder)


PHASES = ("making its environment", "fetching its packages", "proving it on the built-in model")


@pytest.mark.parametrize("phase", PHASES)
def test_a_worker_that_is_killed_while_it_installs_leaves_no_half_engine(
    mlxq: Mlxq, release: Make, index: PackageIndex, tmp_path: Path, phase: str
) -> None:
    release(FIRST, "mute" if phase == PHASES[2] else "good", padding=1 << 20)
    index.fault = "slow" if phase == PHASES[1] else ""
    hangs = {"PYTHONPATH": hanging_uv(tmp_path / "hangs")} if phase == PHASES[0] else {}
    work(mlxq, index, tmp_path, **hangs)
    number = mlxq.put("install_engine", engine="rapid-mlx", version=FIRST)
    until(lambda: mlxq.db.value("SELECT phase FROM jobs WHERE id = ?", (number,)) == phase)
    assert mlxq.worker
    family = psutil.Process(mlxq.worker.pid).children(recursive=True)
    os.kill(mlxq.worker.pid, signal.SIGKILL)
    mlxq.worker.wait()

    assert psutil.wait_procs(family, 30)[1] == []
    assert [engine.name for engine in installed.used(mlxq.db, mlxq.home)] == [installed.own().name]
    index.fault = ""
    release(FIRST)
    work(mlxq, index, tmp_path)
    done = mlxq.ended(number)
    assert (done.state, done.rescues) == ("succeeded", 1), done.error
    names = sorted(path.name for path in mlxq.home.engines.iterdir())
    assert names == [".locks", "locks", f"rapid-mlx-{FIRST}"]
