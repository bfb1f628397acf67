"""mlxq.json: what a folder of weights holds, where it came from and what was done to it.

A folder has one only when every file in it was right, so a folder with a manifest is installed and one
without is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from state.classes import dataclass
from state.files import replace_private

Algorithm = Literal["sha256", "git-sha1"]
_ALGORITHMS = get_args(Algorithm)
_BLOCK = 1 << 20
NAME = "mlxq.json"
_VERSION = 1


@dataclass(frozen=True)
class File:
    """One file as it must be."""

    name: str
    size: int
    """Bytes."""
    algorithm: Algorithm
    digest: str
    """Hex."""


@dataclass(frozen=True)
class Manifest:
    """What the folder contains."""

    source: str
    """`hub:org/name`, `pypi:name==version` or `file:/path`."""
    revision: str
    """The commit, version or hash the source had."""
    files: tuple[File, ...]
    """As they are on the disk now."""
    recipe: str | None = None
    """How they were prepared for this machine; None when they are as they came."""
    pristine: tuple[File, ...] = ()
    """What the recipe changed, as it came."""
    licence: str | None = None
    convert: str | None = None
    """The quant mlx_lm record of the source; None when the source holds MLX weights."""

    @property
    def asked(self) -> str:
        """The source as the user would type it."""
        return self.source + (f"#{self.convert}" if self.convert else "")

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def write(folder: Path, manifest: Manifest) -> None:
    """Put the manifest into the folder in one step."""
    replace_private(folder / NAME, json.dumps({"version": _VERSION, **asdict(manifest)}, indent=2))


def read(folder: Path) -> Manifest | None:
    """Return the folder's manifest, or None when there is none that can be read, or one that mlxq did not write."""
    try:
        document = json.loads((folder / NAME).read_text(encoding="utf-8"))
        files = tuple(_file(file) for file in document.pop("files"))
        pristine = tuple(_file(file) for file in document.pop("pristine"))
        document.pop("version")
        return Manifest(**_texts(document, "source", "revision"), files=files, pristine=pristine)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _texts(entry: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return what was told when these fields are texts. Raises TypeError, KeyError."""
    if not all(isinstance(entry[name], str) for name in names):
        raise TypeError(names)
    return entry


def _file(entry: dict[str, Any]) -> File:
    """Return one file of a manifest. Raises TypeError, KeyError, and ValueError for one that is not in the folder."""
    name, algorithm = _texts(entry, "name", "digest")["name"], entry["algorithm"]
    if type(entry["size"]) is not int or "/" in name or name in {"", ".", ".."} or algorithm not in _ALGORITHMS:
        raise ValueError(name)
    return File(**entry)


def changed(folder: Path) -> list[str]:
    """Return the files of the folder's manifest that are missing or of another size, without reading them.

    Empty also for a folder without a manifest. Raises OSError where the disk does not give the folder.
    """
    record = read(folder)
    return [file.name for file in record.files if not is_there(folder, file)] if record else []


def is_there(folder: Path, file: File) -> bool:
    """Return whether a file exists with the size it must have. Raises OSError where the disk does not give it."""
    try:
        return (folder / file.name).stat().st_size == file.size
    except (FileNotFoundError, NotADirectoryError):
        return False


class Digest(Protocol):
    """A hash that grows."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take the next bytes."""
        ...

    def hexdigest(self) -> str:
        """Return the hash of all bytes so far, in hex."""
        ...


def start_hash(algorithm: Algorithm, size: int) -> Digest:
    """Begin a hash of `size` bytes; git's sha1 has the size in front (git-hash-object)."""
    if algorithm == "sha256":
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def hash_file(path: Path, algorithm: Algorithm, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Hash one file. `on_bytes` hears how many bytes each step took."""
    digest = start_hash(algorithm, path.stat().st_size)
    buffer = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            on_bytes(count)
    return digest.hexdigest()
