"""An engine is installed by the real uv from an index that lies: what is not right and whole is never used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import disk, package_index, tiny_engine
from support.engines import offline_prefix
from support.here import runner
from support.package_index import PackageIndex

from catalog.engines import entry
from state import job as job_rows
from state import settings
from state.db import open_database
from state.errors import Damaged, DoesNotFit, EngineUnproven, MlxqError, NotFound, Offline
from state.paths import Home, get_home
from tasks import engine
from tasks.engines import environments, install, installed, smoke
from tasks.engines.base import Installation
from tasks.supervision import engine_faults
from tasks.system.child import Later, run_child
from tasks.weights import builtin, staging

VERSION = "9.0.0"
LOOK_UP_S = 60.0
"""For uv on a crowded machine."""
IMPATIENT: dict[str, dict[str, float]] = {"hang": {"start_limit_s": 8.0}, "mute": {"token_limit_s": 5.0}}
"""What a smoke test waits for in vain, by how a release fails; any other limit is for a crowded machine."""
CHILD = """
import json, sys
from tasks.system.child import run_child
run_child("tasks.engines.install", json.load(sys.stdin))
"""


@pytest.fixture
def index() -> Iterator[PackageIndex]:
    with package_index.running(PackageIndex()) as served:
        yield served


@pytest.fixture
def wheel(tmp_path: Path, index: PackageIndex) -> Path:
    """Put a sound release into the index."""
    made = tiny_engine.make(tmp_path / "wheels", VERSION)
    index.add(made)
    return made


@pytest.fixture
def request_(home: Home, index: PackageIndex, tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lock it, and return what tasks/engine.py asks the child that installs."""
    for name, value in index.environment(tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    tiny_engine.lock(home.engines, wheel)
    return made(home)


def made(home: Home) -> dict[str, Any]:
    folder = installed.folder(home, "rapid-mlx", VERSION)
    staging = environments.StagedEnvironment(folder).folder
    db = open_database(home)
    weights = home.root / "weights"
    weights.mkdir(exist_ok=True)
    process = smoke.request(db, home, Installation("rapid-mlx", VERSION, str(installed.python(staging))), weights)
    db.close()
    return {
        "engine": "rapid-mlx",
        "version": VERSION,
        "folder": str(folder),
        "lock": str(install.lock(home.engines, "rapid-mlx", VERSION)),
        "smoke": process,
        "reuse": True,
        "proven": False,
    }


def nothing_is_left(home: Home) -> bool:
    left = [path.name for path in home.engines.iterdir() if path.name not in {"locks", environments.LOCKS}]
    return left == [] and len(installed.releases(home)) == 1


def test_a_sound_release_is_installed_proven_and_told(home: Home, request_: dict[str, Any]) -> None:
    steps: list[dict[str, Any]] = []
    proof = run_child("tasks.engines.install", request_, on_progress=steps.append)
    release = installed.releases(home)[1]

    assert [step["phase"] for step in steps][-1] == "proving it on the built-in model"
    assert (release.installation.name, release.whole) == ("rapid-mlx 9.0.0", True)
    assert release.proof == json.loads((home.engines / "rapid-mlx-9.0.0" / "engine.json").read_text()) == proof
    assert proof["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert proof["reused"] >= 0.9
    assert proof["size_bytes"] > 10_000
    assert sorted(path.name for path in home.engines.iterdir()) == [".locks", "locks", "rapid-mlx-9.0.0"]
    assert home.engines.joinpath("rapid-mlx-9.0.0").stat().st_mode & 0o077 == 0


def test_the_bytes_that_come_are_counted(home: Home, request_: dict[str, Any], index: PackageIndex, tmp_path: Path):
    large = tiny_engine.make(tmp_path / "large", VERSION, padding=3 << 20)
    index.add(large)
    tiny_engine.lock(home.engines, large)
    steps: list[dict[str, Any]] = []
    proof = install.work(request_, steps.append)
    counted = [(step["done"], step["total"], step["unit"]) for step in steps if "done" in step]

    assert counted[0][0] == 0
    assert counted[0][1:] == (pytest.approx(3 << 20, rel=0.05), "bytes")
    assert proof["downloaded_bytes"] == pytest.approx(3 << 20, rel=0.05)


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("missing", NotFound, r"does not have rapid-mlx==9\.0\.0"),
        ("refused", NotFound, r"refused rapid-mlx==9\.0\.0 \(HTTP 403\)"),
        ("error", Offline, "did not answer, or not to the end"),
        ("cut", Offline, "did not answer, or not to the end"),
        ("hang", Offline, "did not answer, or not to the end"),
    ],
)
def test_an_index_that_fails_leaves_nothing(
    request_: dict[str, Any],
    index: PackageIndex,
    monkeypatch: pytest.MonkeyPatch,
    *,
    fault: str,
    error: type[MlxqError],
    words: str,
) -> None:
    home = get_home()
    index.fault = fault
    if fault == "hang":
        monkeypatch.setenv("UV_HTTP_TIMEOUT", "1")
    with pytest.raises(error, match=words) as raised:
        install.work(request_, lambda _: None)

    assert raised.value.done == install.KEPT_ALL
    assert nothing_is_left(home)
    index.fault = ""
    monkeypatch.delenv("UV_HTTP_TIMEOUT", raising=False)
    install.work(request_, lambda _: None)
    assert len(installed.releases(home)) == 2


def test_a_slow_index_is_waited_for(home: Home, request_: dict[str, Any], index: PackageIndex) -> None:
    index.fault = "slow"
    install.work(request_, lambda _: None)

    assert len(installed.releases(home)) == 2


def test_a_file_with_another_hash_is_refused(
    home: Home, request_: dict[str, Any], index: PackageIndex, tmp_path: Path
) -> None:
    index.add(tiny_engine.make(tmp_path / "forged", VERSION, speed=1.0))
    with pytest.raises(Damaged, match=r"rapid-mlx==9\.0\.0 has another hash"):
        install.work(request_, lambda _: None)

    assert nothing_is_left(home)


def test_a_version_that_the_index_lacks_and_one_without_a_build(
    home: Home, request_: dict[str, Any], index: PackageIndex, tmp_path: Path, wheel: Path
) -> None:
    index.wheels = {tiny_engine.make(tmp_path / "other", "9.0.7").name: b""}
    with pytest.raises(NotFound, match=r"does not have rapid-mlx==9\.0\.0"):
        install.work(request_, lambda _: None)
    index.wheels = {wheel.name.replace("py3-none-any", "cp39-cp39-win32"): wheel.read_bytes()}
    with pytest.raises(NotFound, match=r"rapid-mlx==9\.0\.0 has no build for this system"):
        install.work(request_, lambda _: None)

    assert nothing_is_left(home)


def test_without_an_index_it_is_offline(home: Home, request_: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:1/simple")
    with pytest.raises(Offline, match=r"The package index 127\.0\.0\.1:1 did not answer") as raised:
        install.work(request_, lambda _: None)

    assert raised.value.hint == "mlxq engine install rapid-mlx"
    assert nothing_is_left(home)


@pytest.mark.usefixtures("request_")
@pytest.mark.parametrize(
    ("fault", "why"),
    [("", None), ("cut", "did not answer, or not to the end"), ("refused", "refused"), ("hang", "did not answer")],
)
def test_setup_installs_the_engine_that_a_model_needs_or_says_why_not(
    home: Home,
    index: PackageIndex,
    builtin_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    fault: str,
    why: str | None,
) -> None:
    """The job succeeds in any case, so that the tiers start and setup does not fail."""
    wheel = tiny_engine.make(tmp_path / "shipped", entry("rapid-mlx").version)
    index.add(wheel)
    tiny_engine.lock(tmp_path / "shipped", wheel)
    monkeypatch.setattr(install, "LOCKS", tmp_path / "shipped" / "locks")
    settings.write(home, "model-dir", str(builtin_model.parent))
    assert install.index_has("rapid-mlx", LOOK_UP_S)
    index.fault = fault
    assert fault != "refused" or not install.index_has("rapid-mlx", LOOK_UP_S)
    if fault == "hang":
        monkeypatch.setenv("UV_HTTP_TIMEOUT", "1")
    db = open_database(home)
    result = runner(db, home, {"add_engine": engine.add_engine}, monkeypatch)("add_engine", engine="rapid-mlx").result
    here = [installation.engine for installation in installed.used(db, home)]
    db.close()

    assert result["installed"] is (why is None)
    assert here == ["vllm-mlx", *(["rapid-mlx"] if why is None else [])]
    assert why is None or why in result["why"]


def test_in_a_network_namespace_it_is_offline(home: Home, request_: dict[str, Any]) -> None:
    """No name is resolved, no address is reached: PyPI itself, as on a plane."""
    prefix = offline_prefix()
    if prefix is None:
        pytest.skip("this system allows no network namespace")
    done = subprocess.run(
        [*prefix, sys.executable, "-c", CHILD],
        input=json.dumps(request_),
        env={name: value for name, value in os.environ.items() if not name.startswith("UV_")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "state.errors.Offline: The package index pypi.org did not answer" in done.stderr
    assert nothing_is_left(home)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("dead", "failed its smoke test: The engine refused its settings: this release does not start"),
        ("hang", "failed its smoke test: The engine was not ready within 8 s"),
        ("mute", r"failed its smoke test: Port \d+ gave no whole answer within 5 s"),
        ("fragile", r"failed its smoke test: Crashed \(SIGSEGV\)"),
        ("forgetful", r"failed its smoke test: it read 100% of a prompt again"),
    ],
)
def test_a_release_that_does_not_serve_is_not_used(
    request_: dict[str, Any], index: PackageIndex, tmp_path: Path, how: str, words: str
) -> None:
    home = get_home()
    bad = tiny_engine.make(tmp_path / "bad", VERSION, how, crash_after=2 if how == "fragile" else 0)
    index.add(bad)
    tiny_engine.lock(home.engines, bad)
    request_["smoke"] |= IMPATIENT.get(how, {})
    with pytest.raises(EngineUnproven, match=words) as raised:
        install.work(request_, lambda _: None)

    assert raised.value.done == "It is not used; what was running keeps running."
    assert not raised.value.retry
    assert nothing_is_left(home)


@pytest.mark.usefixtures("request_")
def test_it_waits_for_the_pull_of_its_test_model(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A setup fetches the built-in model beside the installation; the first of the two has it."""
    db = open_database(home)
    run = runner(db, home, {"install_engine": engine.install_engine}, monkeypatch)
    with staging.hold(builtin.folder(settings.load(home).models(home))):
        job = run("install_engine", engine="rapid-mlx", version=VERSION)
    db.close()
    assert (job.state, job.failures, job.error) == ("queued", 0, None)


@pytest.mark.parametrize(("how", "reused"), [("good", 1.0), ("forgetful", 0.0)])
def test_what_an_engine_reads_again_is_measured_after_it_serves(
    request_: dict[str, Any],
    index: PackageIndex,
    builtin_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    how: str,
    reused: float,
) -> None:
    """Where there was no engine at all; no message says that it is proven before it is."""
    home = get_home()
    settings.write(home, "model-dir", str(builtin_model.parent))
    wheel = tiny_engine.make(tmp_path / "other", VERSION, how)
    index.add(wheel)
    tiny_engine.lock(home.engines, wheel)
    monkeypatch.setattr(installed, "lacking", lambda _: "rapid-mlx")
    db = open_database(home)
    run = runner(db, home, {name: getattr(engine, name) for name in ("install_engine", "prove_reuse")}, monkeypatch)
    done = run("install_engine", engine="rapid-mlx", version=VERSION)
    assert done.result
    assert done.result["proof"]["reused"] is None
    engine_faults.request_reuse(db, home)
    assert [job.args for job in job_rows.listing(db, kind="prove_reuse")] == [
        {"engine": "rapid-mlx", "version": VERSION}
    ]

    done = run("prove_reuse", engine="rapid-mlx", version=VERSION)
    db.close()
    assert (done.error or "").startswith(
        "" if reused else "rapid-mlx 9.0.0 read 100% of a prompt again. It stays in use"
    )
    assert bool(done.error) is not bool(reused)
    assert installed.releases(home)[1].proof["reused"] == pytest.approx(reused, abs=0.1)


def test_a_disk_that_becomes_full_is_told_and_emptied(
    home: Home, request_: dict[str, Any], index: PackageIndex, tmp_path: Path
) -> None:
    """The environments are on a disk of 4 MB, where the room was gone after it had been looked at."""
    large = tiny_engine.make(tmp_path / "large", VERSION, padding=8 << 20)
    index.add(large)
    locked = tmp_path / "lock.txt"
    locked.write_text(package_index.locked(large))
    with disk.mounted(tmp_path / "small", "4m") as small:
        place = small / "engines" / "rapid-mlx-9.0.0"
        with pytest.raises(DoesNotFit, match="became full"), environments.hold(place) as staging:
            install.make(staging.folder, locked, lambda _: None)
        assert list(place.parent.iterdir()) == [place.parent / environments.LOCKS]

        with pytest.raises(DoesNotFit, match=r"rapid-mlx needs .*, with what is kept free; .* has"):
            install.work(request_ | {"folder": str(place)}, lambda _: None)


@pytest.mark.usefixtures("request_")
@pytest.mark.parametrize("how", ["good", "dead"])
def test_a_disk_that_becomes_full_while_the_engine_is_proven_is_told(
    index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Also where the engine then fails its smoke test: that says nothing about the engine."""
    monkeypatch.setattr(install, "FLOOR_BYTES", 0)
    index.add(made_so := tiny_engine.make(tmp_path / how, VERSION, how))
    with disk.mounted(tmp_path / "small", "500m") as small:
        home = Home(small)
        tiny_engine.lock(home.engines, made_so)

        def report(step: dict[str, Any]) -> None:
            if step["phase"] == "proving it on the built-in model":
                disk.fill(small / "filler")

        with pytest.raises(DoesNotFit, match="became full") as raised:
            install.work(made(home), report)
        assert raised.value.hint == "mlxq prune"
        assert not list(home.engines.glob("*rapid-mlx-*"))


def test_one_process_makes_a_version_at_a_time(home: Home, request_: dict[str, Any], index: PackageIndex) -> None:
    index.fault = "slow"
    first = threading.Thread(target=install.work, args=(request_, lambda _: None))
    first.start()
    assert index.arrived.wait(120)
    with pytest.raises(Later, match=r"rapid-mlx-9\.0\.0 is being installed by another process"):
        install.work(request_, lambda _: None)
    assert environments.sweep(home.engines) == [], "what is in the making is no leftover"
    first.join()

    assert len(installed.releases(home)) == 2


def test_an_environment_that_is_made_again_replaces_the_old_one_at_once(home: Home, request_: dict[str, Any]) -> None:
    install.work(request_, lambda _: None)
    old = installed.folder(home, "rapid-mlx", VERSION)
    with installed.python(old).open("rb") as running:
        before = old.stat().st_ino
        install.work(request_, lambda _: None)
        assert old.stat().st_ino != before
        assert running.read(4) == b"\x7fELF" or sys.platform == "darwin"

    assert sorted(path.name for path in home.engines.iterdir()) == [".locks", "locks", "rapid-mlx-9.0.0"]


def swept(home: Home, limit_s: float) -> list[str]:
    """Return what is swept once the lock is free: an installer that the child had started dies a moment after it."""
    end = time.monotonic() + limit_s
    while not (names := environments.sweep(home.engines)) and time.monotonic() < end:
        time.sleep(0.05)
    return names


def test_a_child_that_is_killed_leaves_what_the_next_one_removes(
    home: Home, request_: dict[str, Any], index: PackageIndex
) -> None:
    index.fault = "hang"
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdin
        child.stdin.write(json.dumps(request_))
        child.stdin.close()
        assert index.arrived.wait(120)
        os.killpg(child.pid, signal.SIGKILL)
    assert (home.engines / ".rapid-mlx-9.0.0.partial").is_dir()
    assert len(installed.releases(home)) == 1
    index.fault = ""

    assert swept(home, limit_s=60) == ["rapid-mlx-9.0.0"]
    assert nothing_is_left(home)
