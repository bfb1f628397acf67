"""Rotate a log under its writer, which keeps it open: copy it away, then cut it to nothing.

The writer appends (O_APPEND), so it continues at the new end and leaves no hole. Nothing can be cut from the front of
a file everywhere, so what is written between the last read and the cut would be lost: for that moment, milliseconds,
the writer is held still. Archives are NAME.log.1.gz (the newest) to NAME.log.N.gz.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import shutil
import signal
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

from state.errors import DiskFull
from tasks.system import process
from tasks.system.process import Identity

CHUNK = 2**20
"""Bytes that are read at once; also what may be left to copy when the writer is held still."""
ROUNDS = 20
"""A writer that outruns the copy so often is held still anyway."""
STILL_S = 1.0
"""The kernel stops a process within milliseconds; one that it cannot stop is not waited for longer."""

Stillness = Callable[[], AbstractContextManager[object]]
"""Keeps the writer from writing, as long as the context lasts."""


def archives(log: Path) -> list[Path]:
    """Return the archives of a log, the newest first."""
    numbers = {
        path: path.name.removeprefix(f"{log.name}.").removesuffix(".gz") for path in log.parent.glob(f"{log.name}.*.gz")
    }
    return sorted((path for path, number in numbers.items() if number.isdecimal()), key=lambda path: int(numbers[path]))


def rotate(log: Path, keep: int, still: Stillness) -> int:
    """Move all of a log into a new archive, keep the newest `keep`; return the bytes that were moved.

    On a full disk the archives that are beyond `keep` then go first, and no other.
    Raises DiskFull when that does not help; the log is as it was.
    """
    while True:
        try:
            return _rotate(log, keep, still)
        except OSError as problem:
            if problem.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            beyond = archives(log)[keep - 1 :]
            if not beyond:
                raise DiskFull(f"There is no room to rotate {log}.", done="It is as it was.", hint="df -h") from problem
            beyond[-1].unlink()


def _rotate(log: Path, keep: int, still: Stillness) -> int:
    part = log.with_name(f"{log.name}.part")
    try:
        with (
            log.open("r+b") as source,
            _private(part) as target,
            gzip.GzipFile("", "wb", fileobj=target, mtime=time.time()) as packed,
        ):
            for _ in range(ROUNDS):
                if _copy(source, packed) <= CHUNK:
                    break
            _settle(target)
            with still():
                _copy(source, packed)
                packed.close()
                _settle(target)
                _shift(log, keep)
                part.rename(_archive(log, 1))
                moved = source.tell()
                source.truncate(0)
    finally:
        part.unlink(missing_ok=True)
    return moved


def _settle(file: IO[bytes]) -> None:
    """See the bytes on disk: some file systems find only now that there is no room, and the log is cut after this."""
    file.flush()
    os.fsync(file.fileno())


def _private(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")


def _copy(source: IO[bytes], target: IO[bytes] | gzip.GzipFile) -> int:
    """Copy from where the source stands to its present end; return the bytes."""
    began = source.tell()
    shutil.copyfileobj(source, target, CHUNK)  # pyright: ignore[reportArgumentType] (a GzipFile writes bytes)
    return source.tell() - began


def _archive(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}.gz")


def _shift(log: Path, keep: int) -> None:
    """Make room for archive 1; what is beyond `keep` goes."""
    for path in archives(log)[keep - 1 :]:
        path.unlink()
    for number, path in reversed(list(enumerate(archives(log), start=1))):
        path.rename(_archive(log, number + 1))


@contextlib.contextmanager
def held(writers: Sequence[Identity]) -> Generator[None]:
    """Pause processes (SIGSTOP). A worker that dies meanwhile leaves them so; the next one resumes them (`let_go`)."""
    try:
        for writer in writers:
            process.send(writer, signal.SIGSTOP)
        until = time.monotonic() + STILL_S
        while time.monotonic() < until and not all(_still(writer) for writer in writers):
            time.sleep(0.001)
        yield
    finally:
        let_go(writers)


def _still(writer: Identity) -> bool:
    return process.frozen(writer) or not process.alive(writer)


def let_go(writers: Sequence[Identity]) -> None:
    """Resume processes that may have been paused."""
    for writer in writers:
        process.send(writer, signal.SIGCONT)
