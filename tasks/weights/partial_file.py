"""One file in the making: `<name>.part`, which several threads fill and a SIGKILL cannot spoil.

The bytes lie where they belong. Behind them, past the file's end, stands how far each segment is; the record
moves after the bytes, so that a killed fetch goes on where it was. A power cut may lose bytes the record
counts: the hash finds that, and the file starts anew. Finishing cuts the record off and renames.
"""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

from tasks.weights import checksum
from tasks.weights.manifest import File

SUFFIX = ".part"
SEGMENT = 32 << 20
"""Bytes that one request asks for: small enough that eight connections share one file."""
_COUNT = struct.Struct("<Q")
_MARK = b"mlxq" + _COUNT.pack(SEGMENT)
_READ = 1 << 20


class PartialFile:
    """The bytes of one file so far. Close it by `finish` or `close`."""

    def __init__(self, folder: Path, file: File) -> None:
        self.file = file
        self.segments = -(-file.size // SEGMENT)
        self._target = folder / file.name
        self._path = folder / (file.name + SUFFIX)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        self._hashing = threading.Lock()
        self._begin_hash()
        self._done = self._recorded()
        if len(self._done) != self.segments:
            self.restart()

    def done(self, segment: int) -> int:
        """Give how many bytes of the segment are here."""
        return self._done[segment]

    def length(self, segment: int) -> int:
        """Give how many bytes the segment has when it is whole."""
        return min(SEGMENT, self.file.size - segment * SEGMENT)

    @property
    def received(self) -> int:
        """Bytes that are here."""
        return sum(self._done)

    @property
    def whole(self) -> bool:
        """Whether all bytes are here."""
        return self.received == self.file.size

    def write(self, segment: int, data: bytes) -> None:
        """Put the next bytes of a segment; one thread at a time per segment."""
        done = self._done[segment]
        os.pwrite(self._descriptor, data, segment * SEGMENT + done)
        os.pwrite(self._descriptor, _COUNT.pack(done + len(data)), self._record(segment))
        self._done[segment] = done + len(data)

    def restart(self) -> None:
        """Forget every byte."""
        os.ftruncate(self._descriptor, 0)
        os.ftruncate(self._descriptor, self._record(self.segments))
        os.pwrite(self._descriptor, _MARK, self.file.size)
        self._done = [0] * self.segments
        self._begin_hash()

    def hash_on(self, *, wait: bool = False) -> None:
        """Hash what lies in one piece from the start; unless `wait`, leave it to a thread that is at it already."""
        if not self._hashing.acquire(blocking=wait):
            return
        try:
            end = self._frontier()
            while self._hashed < end:
                data = os.pread(self._descriptor, min(_READ, end - self._hashed), self._hashed)
                self._digest.update(data)
                self._hashed += len(data)
        finally:
            self._hashing.release()

    def right(self) -> bool:
        """Tell whether the whole file has the hash it must have."""
        self.hash_on(wait=True)
        return self._digest.hexdigest() == self.file.digest

    def finish(self) -> None:
        """Give the whole and right file its name."""
        os.ftruncate(self._descriptor, self.file.size)
        os.fsync(self._descriptor)
        self.close()
        self._path.replace(self._target)

    def close(self) -> None:
        """Leave it for another time."""
        os.close(self._descriptor)

    def discard(self) -> None:
        """Throw it away."""
        self.close()
        self._path.unlink()

    def _begin_hash(self) -> None:
        self._digest = checksum.start(self.file.algorithm, self.file.size)
        self._hashed = 0

    def _frontier(self) -> int:
        """Give how many bytes from the start have no gap."""
        end = 0
        for segment in range(self.segments):
            end += self._done[segment]
            if self._done[segment] < self.length(segment):
                break
        return end

    def _record(self, segment: int) -> int:
        """Give where the count of a segment stands."""
        return self.file.size + len(_MARK) + segment * _COUNT.size

    def _recorded(self) -> list[int]:
        """Give how far an earlier fetch came in each segment; nothing when the file was not made by one."""
        size = os.fstat(self._descriptor).st_size
        tail = os.pread(self._descriptor, self._record(self.segments) - self.file.size, self.file.size)
        if size != self._record(self.segments) or not tail.startswith(_MARK):
            return []
        counts = [count for (count,) in _COUNT.iter_unpack(tail[len(_MARK) :])]
        return counts if all(count <= self.length(segment) for segment, count in enumerate(counts)) else []


def left(folder: Path, file: File) -> int:
    """Give the bytes of a file that a fetch which was broken off left behind."""
    if not (folder / (file.name + SUFFIX)).exists():
        return 0
    part = PartialFile(folder, file)
    try:
        return part.received
    finally:
        part.close()
