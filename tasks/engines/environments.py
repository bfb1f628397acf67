"""Where an engine's environment is made: a hidden folder beside the one that it becomes once it is proven.

A lock that dies with its holder lets one process at a time make a version, and the folder gets its name by a rename
after the engine in it has answered. So what has a name without a dot is complete, however its maker ended.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from state import files
from state.classes import dataclass
from tasks.system.child import Later

STAGING, REPLACED, LOCKS = ".partial", ".old", ".locks"
AGAIN_S = 5.0
"""When a job looks again whether the version that another process makes is there."""


@dataclass(frozen=True)
class StagedEnvironment:
    """The environment of one version in the making, held by this process."""

    target: Path
    """What it is called when it is proven."""

    @property
    def folder(self) -> Path:
        """What it is called until then."""
        return _hidden(self.target, STAGING)

    def finish(self) -> None:
        """Rename the environment to its final name; one that had it is deleted. What runs from there keeps running.

        A process that dies between the two renames leaves the replaced one under its hidden name, and `_restore`
        brings it back.
        """
        replaced = _hidden(self.target, REPLACED)
        if self.target.exists():
            self.target.rename(replaced)
        self.folder.rename(self.target)
        _sync(self.target.parent)
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def hold(target: Path) -> Generator[StagedEnvironment]:
    """Hold the right to make `target`: its staging folder exists, is empty, and is gone at the end.

    Raises Later while another process makes it.
    """
    locks = target.parent / LOCKS
    locks.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (locks / target.name).open("a") as file:
        if not files.take_lock(file):
            raise Later(f"{target.name} is being installed by another process", AGAIN_S)
        _restore(target)
        staging = StagedEnvironment(target)
        staging.folder.mkdir(mode=0o700)
        try:
            yield staging
        finally:
            shutil.rmtree(staging.folder, ignore_errors=True)


def sweep(engines: Path) -> list[str]:
    """Delete what killed processes left in the folder of all engines; return the names of the versions."""
    swept: list[str] = []
    for name in sorted({_target(path) for path in _leftovers(engines)}):
        with (engines / LOCKS / name).open("a") as file:
            if files.take_lock(file):
                _restore(engines / name)
                swept.append(name)
    return swept


def _leftovers(engines: Path) -> list[Path]:
    """Return the hidden folders; each was made under a lock, so that the folder of locks exists."""
    if not (engines / LOCKS).is_dir():
        return []
    return [path for path in engines.iterdir() if path.name.startswith(".") and path.suffix in {STAGING, REPLACED}]


def _restore(target: Path) -> None:
    """Undo what a killed maker left: bring back the replaced environment unless the new one is in its place."""
    replaced = _hidden(target, REPLACED)
    if replaced.is_dir() and not target.exists():
        replaced.rename(target)
    for leftover in (replaced, _hidden(target, STAGING)):
        shutil.rmtree(leftover, ignore_errors=True)


def _hidden(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}{suffix}")


def _target(hidden: Path) -> str:
    return hidden.name.removeprefix(".").removesuffix(hidden.suffix)


def _sync(folder: Path) -> None:
    """Have a rename survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
