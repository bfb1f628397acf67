"""Hashes of files, as the Hub names them: sha256 for large ones, git's sha1 for the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

Algorithm = Literal["sha256", "git-sha1"]
_BLOCK = 1 << 20


class Digest(Protocol):
    """A hash that grows."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take the next bytes."""
        ...

    def hexdigest(self) -> str:
        """Give the hash of all bytes so far, in hex."""
        ...


def start(algorithm: Algorithm, size: int) -> Digest:
    """Begin a hash of `size` bytes; git's sha1 has the size in front (git-hash-object)."""
    if algorithm == "sha256":
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def of_file(path: Path, algorithm: Algorithm, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Hash one file. `on_bytes` hears how many bytes each step took."""
    digest = start(algorithm, path.stat().st_size)
    buffer = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            on_bytes(count)
    return digest.hexdigest()
