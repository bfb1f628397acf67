"""A folder that macOS refuses for want of Full Disk Access is told from one with other permissions."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from state import stack
from state.db import Database
from state.errors import DiskUnavailable, NotFound
from state.stack import Engine
from tasks.system import disk_access
from tasks.weights import install, model_dir
from tasks.weights.source import PullRequest

HOME = Path("/Users/me")
PROTECTED = (
    "/Volumes/Models",
    "/Volumes/Models/mlxq/tiny",
    "/Users/me/Documents/models",
    "/Users/me/Desktop/tiny.zip",
    "/Users/me/Downloads/tiny",
    "/Users/me/Library/Mobile Documents/com~apple~CloudDocs/models",
)


def failed(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("path", PROTECTED)
def test_eperm_in_a_protected_folder_is_for_want_of_full_disk_access(path: str) -> None:
    assert disk_access.is_refused(failed(errno.EPERM), Path(path), "darwin", HOME)


@pytest.mark.parametrize(
    ("path", "number", "platform"),
    [
        ("/Volumes/Models", errno.EACCES, "darwin"),
        ("/Volumes/Models", errno.EIO, "darwin"),
        ("/Volumes/Models", errno.ENOENT, "darwin"),
        ("/Volumes/Models", errno.EPERM, "linux"),
        ("/VolumesOfMine", errno.EPERM, "darwin"),
        ("/Users/me/.mlxq/models", errno.EPERM, "darwin"),
        ("/Users/other/Documents", errno.EPERM, "darwin"),
        ("/Users/me/DownloadsOld", errno.EPERM, "darwin"),
        ("/", errno.EPERM, "darwin"),
    ],
)
def test_every_other_failure_is_what_it_says(path: str, number: int, platform: str) -> None:
    assert not disk_access.is_refused(failed(number), Path(path), platform, HOME)


def test_a_link_into_a_protected_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "Documents").mkdir()
    link = tmp_path / "models"
    link.symlink_to(tmp_path / "Documents")
    assert disk_access.is_refused(failed(errno.EPERM), link, "darwin", tmp_path)


@pytest.fixture
def refused(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of models that a Mac refuses as its kernel does: what is in it, not its attributes."""
    folder = tmp_path / "Documents" / "models"
    model_dir.claim(db, folder)
    (folder / "tiny").mkdir()
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for module, name in ((os, "scandir"), (os, "listdir"), (io, "open")):
        monkeypatch.setattr(module, name, refusing(getattr(module, name), folder))
    return folder


def refusing(access: Callable[..., object], folder: Path) -> Callable[..., object]:
    """Return a call of the kernel that fails for paths in a folder."""

    def call(path: Any, *args: Any, **options: Any) -> object:
        if Path(path).is_relative_to(folder):
            raise failed(errno.EPERM)
        return access(path, *args, **options)

    return call


def test_a_folder_for_models_that_macos_refuses_names_the_pane_and_the_program(db: Database, refused: Path) -> None:
    engine = Engine("fast", "tiny", "int4", "hub:x/tiny", 8000, 4096, 1, 1, 1, weights=str(refused / "tiny"))
    stack.replace(db, [engine])
    for problem in (model_dir.problem_of(model_dir.recorded(db, refused)), model_dir.unwritable(refused, 5.0)):
        assert problem
        assert "System Settings → Privacy & Security → Full Disk Access" in problem.message
        assert "python" in problem.message
        assert problem.hint == disk_access.SETTINGS
    with pytest.raises(DiskUnavailable, match="Full Disk Access"):
        model_dir.require_weights(db, engine)


def test_a_pull_from_a_folder_that_macos_refuses_says_so(refused: Path, tmp_path: Path) -> None:
    request = PullRequest(f"file:{refused / 'tiny'}", str(tmp_path / "models"), floor_bytes=0)
    with pytest.raises(NotFound, match="Full Disk Access") as caught:
        install.fetch(request, lambda _: None)
    assert caught.value.hint == disk_access.SETTINGS
