"""Files: replaced in one step, read from their end, and locked; the kernel frees a lock when its holder dies."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import struct
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, Any

from state.errors import MlxqError

F_PREALLOCATE, F_FULLFSYNC = 42, 51
WITHOUT_LOCKS = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS})
"""What flock(2) fails with on a disk that has no locks: SMB, and NFS without its lock service."""
F_ALLOCATEALL, F_PEOFPOSMODE = 4, 3
"""macOS's sys/fcntl.h; Python does not name them elsewhere."""


def replace_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read. Raises OSError; the file is then as it was."""
    replace(path, text.encode(), 0o600)


def replace(path: Path, content: bytes, mode: int) -> None:
    """Write a file with exactly these permissions: temp, fsync, rename. Raises OSError; the file is then as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            sync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def unwritable(folder: Path) -> str | None:
    """Return why no file can be made in a folder, as the system says it; None where one can.

    It is tried: os.access() knows permissions, not a disk that the kernel turned read-only.
    """
    trial = folder / f".trial.{os.getpid()}.{threading.get_ident()}"  # doctor's checks try it side by side
    try:
        os.close(os.open(trial, os.O_WRONLY | os.O_CREAT, 0o600))
        trial.unlink()
    except OSError as problem:
        return problem.strerror
    return None


def sync(descriptor: int) -> None:
    """Make what was written to a file survive a power failure. Raises OSError.

    macOS's fsync reaches the drive's cache alone; F_FULLFSYNC reaches the medium, where the disk knows it (fsync(2)).
    """
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(descriptor, F_FULLFSYNC)
        except OSError as problem:
            if problem.errno not in {errno.ENOTTY, errno.ENOTSUP, errno.EINVAL}:
                raise
        else:
            return
    os.fsync(descriptor)


def preallocate(descriptor: int, size: int) -> None:
    """Claim `size` bytes for a file on macOS, where the disk can.

    A far end alone leaves a sparse file, in which APFS may refuse a write when the disk is full (hyperkit issue 157).
    """
    if sys.platform == "darwin":
        request = struct.pack("Iiqqq", F_ALLOCATEALL, F_PEOFPOSMODE, 0, size, 0)
        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, F_PREALLOCATE, request)


def set_aside(path: Path) -> Path | None:
    """Move what lies at a path, a folder too, to a free name beside it, and return that; None where nothing is.

    Raises MlxqError.
    """
    if not os.path.lexists(path):
        return None
    names = (path.with_name(f"{path.name}.bad{number or ''}") for number in itertools.count())
    aside = next(name for name in names if not os.path.lexists(name))
    try:
        path.rename(aside)
    except OSError as problem:
        raise MlxqError(f"Cannot move {path}: {problem.strerror}.", hint=f"ls -la {path.parent}") from problem
    return aside


def size(folder: Path) -> int:
    """Return the bytes of the files below a folder, as `below` yields them. Raises OSError."""
    return sum(status.st_size for status in below(folder))


def below(folder: Path) -> Iterator[os.stat_result]:
    """Yield what `lstat` says of each file below a folder.

    What other processes delete meanwhile is left out, and folders that this user may not read. Raises OSError.
    """
    for parent, _, names in os.walk(folder, onerror=_expect_there):
        for name in names:
            try:
                status = Path(parent, name).lstat()
            except FileNotFoundError:
                continue
            yield status


def _expect_there(problem: OSError) -> None:
    """Raise what a disk that is away or hangs fails with."""
    if not isinstance(problem, FileNotFoundError | PermissionError):
        raise problem


def tail(path: Path, most_bytes: int) -> str:
    """Return the end of a log as text; an empty one when the file cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - most_bytes))
            return file.read(most_bytes).decode("utf-8", "replace")
    except OSError:
        return ""


def take_lock(file: IO[Any]) -> bool:
    """Take the lock of an open file without waiting; return whether it is ours now. Raises OSError without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def locked(path: Path) -> bool:
    """Return whether a living process holds a lock. Those who ask at once do not take each other for a holder.

    None can on a disk that has no locks.
    """
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as problem:
        if problem.errno not in WITHOUT_LOCKS:
            raise
    return False


def await_unlocked(path: Path) -> None:
    """Wait until no process holds a lock; a signal that ends this process ends the wait."""
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)


@contextlib.contextmanager
def changing(path: Path, failed: Callable[[OSError], MlxqError]) -> Generator[None]:
    """Let one process at a time read a file and replace it, by a lock beside it; a disk without locks has none.

    An OSError becomes the error that `failed` makes of it.
    """
    try:
        with os.fdopen(os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600), "a") as file:
            _wait_for_lock(file)
            yield
    except OSError as problem:
        raise failed(problem) from problem


def _wait_for_lock(file: IO[Any]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as problem:
        if problem.errno not in WITHOUT_LOCKS:
            raise
