"""Files are replaced whole or not at all, and read from their end."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from support import mounts

from state import files
from state.errors import DiskUnavailable
from tasks.weights import staging

Lay = Callable[[Path], AbstractContextManager[Path]]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_replaced_file_has_its_text_and_exactly_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "kept"
    path.write_text("old")
    before = os.umask(0o077)
    try:
        files.replace(path, b"new", mode)
    finally:
        os.umask(before)

    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]


def test_a_file_that_cannot_be_replaced_stays_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()

    with pytest.raises(OSError, match="kept"):
        files.replace_private(tmp_path / "kept", "new")

    assert [each.name for each in tmp_path.iterdir()] == ["kept"]


def test_a_leftover_of_a_dead_process_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / f".kept.{os.getpid()}").write_text("half of it")

    files.replace_private(tmp_path / "kept", "new")

    assert (tmp_path / "kept").read_text() == "new"


@pytest.mark.parametrize(("most", "text"), [(100, "one\ntwo\n"), (4, "two\n"), (0, "")])
def test_the_end_of_a_log_is_read_and_no_more(tmp_path: Path, most: int, text: str) -> None:
    (tmp_path / "log").write_text("one\ntwo\n")

    assert files.tail(tmp_path / "log", most) == text
    assert files.tail(tmp_path / "none", most) == ""


def test_what_goes_while_a_folder_is_read_is_left_out(tmp_path: Path) -> None:
    """An engine writes its old prompts, and a download ends, while their bytes are counted."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        for number in range(3):
            (tmp_path / name / str(number)).write_bytes(b"four")
    (tmp_path / "link").symlink_to("a/0")
    statuses = files.below(tmp_path)
    link, first = next(statuses), next(statuses)
    for name in ("a", "b", "c"):
        shutil.rmtree(tmp_path / name)

    assert (link.st_size, first.st_size) == (3, 4)
    assert list(statuses) == []
    assert list(files.below(tmp_path / "away")) == []


@pytest.mark.parametrize("refusal", [None, errno.ENOTTY, errno.ENOTSUP, errno.EIO])
def test_macos_reaches_the_medium_where_the_disk_can(refusal: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """ExFAT and network disks answer ENOTSUP or ENOTTY (restic rest-server issue 198): then fsync is what there is."""
    calls: list[str] = []

    def fcntl_call(_descriptor: int, command: int) -> int:
        calls.append(f"fcntl {command}")
        if refusal:
            raise OSError(refusal, "refused")
        return 0

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(files.fcntl, "fcntl", fcntl_call)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: calls.append("fsync"))

    if refusal == errno.EIO:
        with pytest.raises(OSError, match="refused"):
            files.sync(3)
    else:
        files.sync(3)
    assert calls == ["fcntl 51"] + ["fsync"] * (refusal in {errno.ENOTTY, errno.ENOTSUP})


@pytest.mark.parametrize("refusal", [None, errno.ENOTSUP, errno.ENOSPC])
def test_macos_claims_a_files_length_where_the_disk_can(refusal: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, bytes]] = []

    def fcntl_call(_descriptor: int, command: int, request: bytes) -> bytes:
        calls.append((command, request))
        if refusal:
            raise OSError(refusal, "refused")
        return request

    monkeypatch.setattr(files.fcntl, "fcntl", fcntl_call)
    files.preallocate(3, 1 << 40)
    assert calls == []  # Linux leaves it to the disk

    monkeypatch.setattr(sys, "platform", "darwin")
    files.preallocate(3, 1 << 40)
    assert calls == [(42, struct.pack("Iiqqq", 4, 3, 0, 1 << 40, 0))]


@pytest.mark.parametrize("refusal", [errno.ENOTSUP, errno.ENOLCK])
def test_on_a_disk_without_locks_none_is_held_and_nothing_is_fetched(
    refusal: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SMB and NFS mounts: an error of the lock would be a fault of mlxq's own, and `mlxq models` would end with it."""

    def refuse(*_: object) -> None:
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with pytest.raises(DiskUnavailable, match="no file locks"), staging.hold(tmp_path / "model"):
        pass
    assert staging.held(tmp_path / "model") is False
    assert not staging.Staging(tmp_path / "model").folder.exists()


@pytest.mark.parametrize("lay", [mounts.read_only, mounts.dead], ids=["read-only", "dead"])
def test_a_folder_in_which_no_file_can_be_made_is_told(lay: Lay, tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    assert files.unwritable(folder) is None
    with lay(folder):
        assert files.unwritable(folder) in {"Read-only file system", "Transport endpoint is not connected"}
    assert list(folder.iterdir()) == []
    assert files.unwritable(tmp_path / "gone") == "No such file or directory"
