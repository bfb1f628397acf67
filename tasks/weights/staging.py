"""Where weights grow before they are whole: `<name>.partial` beside the folder they become.

A lock that dies with its holder lets one process at a time write a folder. Nothing in a staging folder is
lost by SIGKILL, and the folder gets its name only by a rename when all of it is right.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from state import files
from state.classes import dataclass
from state.errors import Busy, DiskUnavailable
from tasks.weights import manifest
from tasks.weights.manifest import Manifest

SUFFIX = ".partial"
LOCKS = ".locks"


@dataclass(frozen=True)
class Staging:
    """One folder of weights in the making, held by this process."""

    target: Path
    """What it is called when it is whole."""

    @property
    def folder(self) -> Path:
        """What it is called until then."""
        return self.target.with_name(self.target.name + SUFFIX)

    def discard(self) -> None:
        """Delete what is there of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def finish(self, record: Manifest) -> None:
        """Delete what the manifest does not name, write it, and rename the folder into place."""
        keep = {file.name for file in record.files}
        for path in self.folder.iterdir():
            if path.name not in keep:
                _remove(path)
        manifest.write(self.folder, record)
        old = self.folder.with_name(f".{self.target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.target.exists():
            self.target.rename(old)
        self.folder.rename(self.target)
        _sync_folder(self.target.parent)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def hold(target: Path) -> Generator[Staging]:
    """Hold the right to make `target`; its staging folder exists. Raises Busy when another process does.

    Raises DiskUnavailable on a disk without locks: two downloads there could mix their bytes.
    """
    locks = target.parent / LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / target.name).open("a") as file:
        if not _locked(file, target.parent):
            raise Busy(f"{target.name} is being fetched by another process.", hint="mlxq jobs")
        staging = Staging(target)
        staging.folder.mkdir(exist_ok=True)
        yield staging


def _locked(file: IO[str], folder: Path) -> bool:
    try:
        return files.take_lock(file)
    except OSError as problem:
        if problem.errno not in files.WITHOUT_LOCKS:
            raise
        raise DiskUnavailable(
            f"The disk of {folder} has no file locks, as some network disks: {problem.strerror}.",
            done="Nothing was written there.",
            hint="mlxq config set model-dir FOLDER   (on another disk)",
        ) from problem


def held(target: Path) -> bool:
    """Return whether some process makes `target` right now."""
    return files.locked(target.parent / LOCKS / target.name)


def is_ours(folder: Path) -> bool:
    """Return whether mlxq made this staging folder; a user may have one of such a name."""
    return (folder.parent / LOCKS / folder.name.removesuffix(SUFFIX)).exists()


def remove(folder: Path) -> int:
    """Delete a folder of weights, whole or in the making, and return its bytes. Raises Busy while a fetch writes it.

    Of a link, only the link goes.
    """
    if folder.is_symlink():
        folder.unlink()
        return 0
    with hold(folder.with_name(folder.name.removesuffix(SUFFIX))) as stage:
        size = used(folder)
        shutil.rmtree(folder)
        stage.discard()
    return size


def used(folder: Path) -> int:
    """Return the bytes a folder takes on the disk; a sparse file counts for what it holds."""
    return sum(status.st_blocks * 512 for status in files.below(folder))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
