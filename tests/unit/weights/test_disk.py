"""Room for weights, with all fetches counted together, and one writer to a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from state.errors import Busy, DoesNotFit
from tasks.weights import disk, manifest, staging
from tasks.weights.manifest import File, Manifest

GB = 10**9


@pytest.fixture(autouse=True)
def hundred_gigabytes_free(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=100 * GB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def test_what_fits_beside_the_floor_is_let_through(tmp_path: Path):
    disk.require(tmp_path / "not" / "yet", 98 * GB, floor_bytes=2 * GB)


def test_what_does_not_fit_is_told_with_every_number(tmp_path: Path):
    with pytest.raises(
        DoesNotFit, match=r"The download needs 99 GB and 2 GB kept free; .* has 100 GB: 1 GB too little"
    ):
        disk.require(tmp_path, 99 * GB, floor_bytes=2 * GB)


def test_two_fetches_cannot_both_take_the_last_gigabytes(tmp_path: Path):
    with staging.hold(tmp_path / "one") as one, staging.hold(tmp_path / "two") as two:
        disk.reserve(one.folder, 60 * GB, floor_bytes=2 * GB)
        with pytest.raises(DoesNotFit, match=r"needs 60 GB, 60 GB for other pulls"):
            disk.reserve(two.folder, 60 * GB, floor_bytes=2 * GB)
        disk.reserve(two.folder, 30 * GB, floor_bytes=2 * GB)


def test_a_fetch_that_died_holds_no_room_and_its_own_claim_is_not_counted_twice(tmp_path: Path):
    for _ in range(2):
        with staging.hold(tmp_path / "one") as one:
            disk.reserve(one.folder, 60 * GB, floor_bytes=2 * GB)
    assert disk.promised(tmp_path) == 0


def test_only_one_holds_a_folder(tmp_path: Path):
    with staging.hold(tmp_path / "one"):
        assert staging.held(tmp_path / "one")
        with pytest.raises(Busy), staging.hold(tmp_path / "one"):
            pass
    assert not staging.held(tmp_path / "one")
    assert not staging.held(tmp_path / "never")


def test_a_finished_folder_holds_what_its_manifest_names_and_nothing_else(tmp_path: Path):
    made = Manifest("hub:a/x", "main", (File("config.json", 2, "sha256", "00"),), recipe="f32-scales")
    with staging.hold(tmp_path / "one") as held:
        (held.folder / "config.json").write_text("{}")
        (held.folder / "left.part").write_text("x")
        (held.folder / "source").mkdir()
        held.finish(made)
    assert {"config.json", manifest.NAME} == {path.name for path in (tmp_path / "one").iterdir()}
    assert made == manifest.read(tmp_path / "one")
    assert made.size == 2


def test_fetching_again_replaces_the_old_folder_at_once(tmp_path: Path):
    for content in ("old", "new"):
        with staging.hold(tmp_path / "one") as held:
            (held.folder / "a.txt").write_text(content)
            held.finish(Manifest("hub:a/x", "main", (File("a.txt", 3, "sha256", "00"),)))
    assert (tmp_path / "one" / "a.txt").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".locks", "one"]


@pytest.mark.parametrize("content", [None, "", "[]", '{"files": 3}'])
def test_a_manifest_that_cannot_be_read_counts_as_none(content: str | None, tmp_path: Path):
    if content is not None:
        (tmp_path / manifest.NAME).write_text(content)
    assert manifest.read(tmp_path) is None
