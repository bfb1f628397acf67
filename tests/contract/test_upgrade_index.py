"""Finding and installing a version of mlxq where the package index lies, is away, or the environment was changed."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import package_index, release
from support.disk import mounted
from support.package_index import PackageIndex, running

from state.errors import Damaged, DoesNotFit, NotFound, Offline
from state.paths import Home
from tasks.engines import environments, installed
from tasks.system import free_space
from tasks.system.child import Later
from tasks.upgrade import packages
from tasks.upgrade.packages import FoundVersion


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wheels")
    built = release.build(folder / "dist")
    made = {version: release.release(built, folder, version) for version in ("0.1.0", "0.2.0", "0.3.0rc1")}
    return made | {"lent": release.lent(folder)}


@pytest.fixture
def index(
    wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PackageIndex]:
    served = PackageIndex()
    served.add_hashed(*wheels.values())
    with running(served):
        for name, value in served.environment(tmp_path_factory.mktemp("cache")).items():
            monkeypatch.setenv(name, value)
        yield served


def make(home: Home, found: FoundVersion) -> dict[str, object]:
    request = {"versions": str(home.versions), "version": found.version, "requirement": found.requirement}
    return packages.work(request, lambda _: None)


def test_a_version_is_found_and_made_once(home: Home, index: PackageIndex):
    """The newest is no preview; its files are held to the index's hashes and its libraries to its own lock."""
    found = packages.find()
    assert found.version == "0.2.0"
    assert f"--hash=sha256:{index.hashes['mlxq-0.2.0-py3-none-any.whl']}" in found.requirement
    made = make(home, found)
    assert made == {
        "version": "0.2.0",
        "python": str(installed.python(home.versions / "0.2.0")),
        "made": True,
    }
    assert packages.content(home.versions / "0.2.0") == ["lent==1.0", "mlxq==0.2.0"]
    assert make(home, found)["made"] is False

    packages_folder = next((home.versions / "0.2.0").glob("venv/lib/python*/site-packages"))
    (packages_folder / "stranger-1.0.dist-info").mkdir()
    (packages_folder / "stranger-1.0.dist-info" / "METADATA").write_text("Name: stranger\nVersion: 1.0\n")
    assert make(home, found)["made"] is True, "somebody installed into it"

    python = installed.python(home.versions / "0.2.0")
    python.unlink()
    python.symlink_to("/nowhere/python3.11")
    assert make(home, found)["made"] is True, "its Python went away"


def assert_nothing_left(home: Home) -> None:
    assert [path.name for path in home.versions.glob("*")] in ([], [".locks"])


def test_a_file_with_another_hash_is_not_installed(home: Home, index: PackageIndex):
    index.hashes["mlxq-0.2.0-py3-none-any.whl"] = "0" * 64
    with pytest.raises(Damaged, match=r"has another hash"):
        make(home, packages.find())
    assert_nothing_left(home)


def test_a_library_with_another_hash_than_in_the_lock_is_not_installed(home: Home, index: PackageIndex, tmp_path: Path):
    index.add_hashed(package_index.wheel(tmp_path / "other", "lent", "1.0", {"evil.py": "1/0"}))
    with pytest.raises(Damaged, match=r"another hash") as caught:
        make(home, packages.find())
    assert (caught.value.done, caught.value.hint) == ("Nothing was changed.", "mlxq upgrade --check")
    assert_nothing_left(home)


def test_a_yanked_version_is_passed_over_and_refused(index: PackageIndex):
    index.yanked["mlxq-0.2.0-py3-none-any.whl"] = "it loses keys"
    assert packages.find().version == "0.1.0"
    with pytest.raises(Damaged, match=r"mlxq 0\.2\.0 was yanked from the package index: it loses keys\."):
        packages.find("0.2.0")


@pytest.mark.parametrize("wanted", ["9.9", "0.2.0 ; evil", "../x", "-r/etc/passwd", "0.2.0\nother"])
def test_a_version_that_is_not_there_is_not_found(index: PackageIndex, wanted: str):
    with pytest.raises(NotFound) as caught:
        packages.find(wanted)
    assert wanted.splitlines()[0] in caught.value.message


def test_no_index_is_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path))
    with pytest.raises(Offline) as caught:
        packages.find(wait_s=20)
    assert caught.value.hint == "mlxq doctor", "it is no advice to type the same command again"


def test_an_index_without_mlxq(index: PackageIndex):
    index.wheels.clear()
    with pytest.raises(NotFound, match=r"The package index does not have mlxq\.") as caught:
        packages.find()
    assert caught.value.hint == "mlxq doctor"


def test_a_version_that_does_not_start_gets_no_name(home: Home, index: PackageIndex, wheels: dict[str, Path]):
    broken = release.release(
        next(iter(wheels.values())),
        wheels["lent"].parent / "broken",
        "0.4.0",
        {"mlxq/cli.py": lambda text: f"{text}\n1/0\n"},
    )
    index.add_hashed(broken)
    with pytest.raises(Damaged, match=r"mlxq 0\.4\.0 does not start: ZeroDivisionError"):
        make(home, packages.find())
    assert_nothing_left(home)


def test_a_full_disk_is_told_before_anything_is_fetched(
    home: Home, index: PackageIndex, monkeypatch: pytest.MonkeyPatch
):
    found = packages.find()
    index.served.clear()
    monkeypatch.setattr(free_space, "available", lambda _: 5_000_000)
    with pytest.raises(DoesNotFit, match="has 5 MB"):
        make(home, found)
    assert index.served == []


def test_a_disk_that_fills_in_the_middle_leaves_nothing(
    index: PackageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On a real file system of two megabytes, which a wheel of mlxq does not fit on."""
    monkeypatch.setattr(free_space, "available", lambda _: 10**12)
    with mounted(tmp_path / "small", "2m") as disk:
        full = Home(disk / "home").make()
        with pytest.raises(DoesNotFit, match="The disk became full"):
            make(full, packages.find())
        assert_nothing_left(full)


def test_two_at_once_make_one(home: Home, index: PackageIndex):
    """The second is told to look again."""
    with environments.hold(home.versions / "0.2.0"), pytest.raises(Later):
        make(home, packages.find())


def test_the_wheel_brings_the_lock(wheels: dict[str, Path]):
    assert packages.LOCK in zipfile.ZipFile(wheels["0.1.0"]).namelist()
