"""Is the folder for weights the one that they were downloaded to, and can it be read: its disk may be away, or hang.

A marker in the folder carries an identity that state.db knows: an empty folder of the same name, where a disk is
mounted when it is there, has none. Device numbers would not do: they change with every mount.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from state import facts, stack, weights
from state.classes import dataclass
from state.db import Database
from state.errors import DiskUnavailable, NotSetUp
from state.files import replace_private
from state.stack import Engine
from tasks.system import backup, bounded, disk_access

T = TypeVar("T")

MARKER = ".mlxq-models"
FACT = "model_dirs"
"""The fact that holds the identity of each folder: {path: identity}."""
LIMIT_S = 10.0
"""An external disk that sleeps takes up to ten seconds to spin up."""
LOOKS = "mlxq looks again every few seconds, and starts what it serves from there when it is back."
REFUSED = "Nothing was written there."


@dataclass(frozen=True)
class ModelDir:
    """One folder for weights, as state.db knows it."""

    path: Path
    identity: str | None
    """What its marker says; None for one that has none yet."""
    names: tuple[str, ...] = ()
    """Folders of weights that should be in it."""

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever written to it."""
        return self.identity is None and not self.names


def recorded(db: Database, path: Path) -> ModelDir:
    """Return what state.db knows of a folder for weights."""
    folders = {row.folder for row in weights.listing(db)}
    folders |= {engine.weights for engine in stack.engines(db)}
    names = sorted(Path(folder).name for folder in folders if folder and Path(folder).parent == path)
    return ModelDir(path, facts.get(db, FACT).get(str(path)), tuple(names))


def problem_of(folder: ModelDir, limit_s: float = LIMIT_S) -> DiskUnavailable | None:
    """Return why weights cannot be read from a folder; None where they can, or where there never were any."""
    try:
        if not folder.is_new:
            bounded.call(str(folder.path), lambda: look(folder), limit_s)
    except bounded.Hangs:
        return _hangs(folder.path)
    except DiskUnavailable as problem:
        return problem
    return None


def look(folder: ModelDir) -> None:
    """Make sure that a folder is there, can be read and is the right one. Raises DiskUnavailable; may wait for ever."""
    path = folder.path
    try:
        exists, is_right = path.is_dir(), _is_the_one(folder)
    except OSError as problem:
        raise _unreadable(path, problem) from problem
    if not exists:
        raise DiskUnavailable(f"{path} is not there: its disk is not connected.", hint=_shown(path))
    if not is_right:
        raise DiskUnavailable(
            f"{path} is not the folder that the models were downloaded to: it has no marker of mlxq's.",
            hint=_shown(path),
        )


def _is_the_one(folder: ModelDir) -> bool:
    """Return whether the marker says so, or weights that should be there are. Raises OSError."""
    if folder.identity is not None and _marker(folder.path) == folder.identity:
        return True
    return not folder.names or any(_is_folder(folder.path / name) for name in folder.names)


def _is_folder(path: Path) -> bool:
    """Return whether there is a folder, also one that alone cannot be read: another disk may be mounted there."""
    try:
        return path.is_dir()
    except OSError:
        return True


def require(db: Database, path: Path, limit_s: float = LIMIT_S) -> None:
    """Make sure that weights may be written to a folder, or deleted in it. Raises DiskUnavailable."""
    problem = problem_of(recorded(db, path), limit_s) or unwritable(path, limit_s)
    if problem:
        problem.done = REFUSED
        raise problem


def claim(db: Database, path: Path) -> None:
    """Make sure of the same, create the folder where there was none, and mark it. Raises DiskUnavailable."""
    require(db, path)
    folder = recorded(db, path)
    try:
        identity = bounded.call(str(path), lambda: _mark(folder), LIMIT_S)
    except bounded.Hangs:
        raise _hangs(path) from None
    except OSError as problem:
        message = f"Cannot write to {path}: {disk_access.reason(problem, path)}."
        raise DiskUnavailable(message, done=REFUSED, hint=disk_access.hint(problem, path)) from problem
    if identity != folder.identity:
        with db.transaction():
            facts.put(db, FACT, facts.get(db, FACT) | {str(path): identity})


def require_weights(db: Database, engine: Engine) -> Path:
    """Return the folder of an engine's weights, which can be read.

    Raises DiskUnavailable, and NotSetUp where they were never downloaded or were deleted.
    """
    path = Path(engine.weights)
    if engine.weights and (problem := problem_of_weights(db, path)):
        problem.done = LOOKS
        raise problem
    if not engine.weights or not read(path.parent, path.is_dir):
        raise NotSetUp(f"The weights of {engine.name} ({engine.model}) are not installed.", hint="mlxq setup")
    return path


def read(path: Path, work: Callable[[], T], limit_s: float = LIMIT_S) -> T:
    """Return what `work` reads from below a folder for weights. Raises DiskUnavailable, and what `work` raises."""
    try:
        return bounded.call(str(path), work, limit_s)
    except bounded.Hangs:
        raise _hangs(path) from None
    except OSError as problem:
        raise _unreadable(path, problem) from problem


def problem_of_weights(db: Database, path: Path, limit_s: float = LIMIT_S) -> DiskUnavailable | None:
    """Return why the folder around some weights cannot be read; None where it can, also if they were deleted."""
    return problem_of(expected(db, path.parent), limit_s)


def expected(db: Database, path: Path) -> ModelDir:
    """Return what must be true of a folder that weights are read from.

    Of one that was never marked, as by an older mlxq, nothing is known but that it must be there.
    """
    folder = recorded(db, path)
    return folder if folder.identity else replace(folder, identity="", names=())


def unwritable(path: Path, limit_s: float) -> DiskUnavailable | None:
    """Return that a folder is read-only; None where it is not, or does not exist yet."""
    try:
        writable = read(path, lambda: not path.exists() or _is_writable(path), limit_s)
    except DiskUnavailable as problem:
        return problem
    return None if writable else DiskUnavailable(f"{path} is read-only.", hint=_shown(path))


def _is_writable(path: Path) -> bool:
    """Return whether files can be made in a folder. Raises OSError where it cannot be read either."""
    with os.scandir(path):
        return os.access(path, os.W_OK)


def _unreadable(path: Path, problem: OSError) -> DiskUnavailable:
    reason = disk_access.reason(problem, path)
    return DiskUnavailable(f"{path} cannot be read: {reason}.", hint=disk_access.hint(problem, path))


def _hangs(path: Path) -> DiskUnavailable:
    return DiskUnavailable(f"{path} does not answer: its disk or server hangs.", hint="mlxq doctor")


def _shown(path: Path) -> str:
    return f"ls -ld {path}"


def _mark(folder: ModelDir) -> str:
    """Create the folder where there is none, mark it unless it is marked, and return its identity. Raises OSError.

    No backup has what mlxq downloads to a folder of its own; one that was there may hold what a user made.
    """
    if not folder.path.exists():
        folder.path.mkdir(parents=True, exist_ok=True)
        backup.exclude(folder.path)
    identity = _marker(folder.path)
    if identity is None:
        identity = folder.identity or uuid.uuid4().hex
        replace_private(folder.path / MARKER, json.dumps({"identity": identity}))
    return identity


def _marker(path: Path) -> str | None:
    """Return the identity in a folder's marker; None where there is none that can be read as one. Raises OSError."""
    try:
        identity = json.loads((path / MARKER).read_bytes())["identity"]
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    return identity if isinstance(identity, str) else None
