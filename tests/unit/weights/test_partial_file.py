"""A file in the making survives any kill, and gets its name only when it is right."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tasks.weights import downloader
from tasks.weights.downloader import PartialFile
from tasks.weights.manifest import File

CONTENT = bytes(range(256)) * 10


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three segments: 1000, 1000 and 560 bytes."""
    monkeypatch.setattr(downloader, "SEGMENT", 1000)


@pytest.fixture
def file() -> File:
    return File("model.safetensors", len(CONTENT), "sha256", hashlib.sha256(CONTENT).hexdigest())


def fill(made: PartialFile, segment: int, upto: int | None = None) -> None:
    start = segment * 1000
    made.write(segment, CONTENT[start + made.done(segment) : start + (upto or made.length(segment))])


def test_segments_filled_in_any_order_make_the_file(tmp_path: Path, file: File):
    made = PartialFile(tmp_path, file)
    for segment in (2, 0, 1):
        fill(made, segment)
        made.hash_on()
    assert made.whole
    assert made.right()
    made.finish()
    assert (tmp_path / file.name).read_bytes() == CONTENT
    assert [file.name] == [path.name for path in tmp_path.iterdir()]


def test_a_fetch_goes_on_at_the_byte_where_another_was_killed(tmp_path: Path, file: File):
    first = PartialFile(tmp_path, file)
    fill(first, 0)
    fill(first, 1, 300)
    # No close: a killed process closes nothing.
    second = PartialFile(tmp_path, file)
    assert [second.done(segment) for segment in range(second.segments)] == [1000, 300, 0]
    fill(second, 1)
    fill(second, 2)
    assert second.right()


def test_wrong_bytes_are_not_right_and_a_restart_forgets_them(tmp_path: Path, file: File):
    made = PartialFile(tmp_path, file)
    for segment in range(3):
        made.write(segment, bytes(made.length(segment)))
    assert not made.right()
    made.restart()
    assert made.received == 0
    for segment in range(3):
        fill(made, segment)
    assert made.right()


@pytest.mark.parametrize("content", [b"", b"half of another tool's download", bytes(len(CONTENT) + 36)])
def test_a_part_file_of_another_making_starts_anew(content: bytes, tmp_path: Path, file: File):
    (tmp_path / (file.name + downloader.SUFFIX)).write_bytes(content)
    assert PartialFile(tmp_path, file).received == 0


def test_an_empty_file_is_whole_at_once(tmp_path: Path):
    made = PartialFile(tmp_path, File("empty.txt", 0, "git-sha1", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"))
    assert made.whole
    assert made.right()
    made.finish()
    assert (tmp_path / "empty.txt").read_bytes() == b""


def test_a_discarded_part_leaves_nothing(tmp_path: Path, file: File):
    PartialFile(tmp_path, file).discard()
    assert [path.name for path in tmp_path.iterdir()] == []
