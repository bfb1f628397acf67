"""Headers of safetensors files: eight bytes of length, a JSON object of tensors, then their bytes. No tensor is read.

https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from catalog import config_json
from state.errors import Damaged

LENGTH_BYTES = 8
LONGEST_HEADER = 100 << 20
"""The format's own limit, in bytes."""


Header = Mapping[str, Mapping[str, Any]]
"""The tensors of a file by name: {"dtype": text, "shape": lengths, "data_offsets": [begin, end] after the header}."""


def read(path: Path) -> Header:
    """Return the header of a file. Raises Damaged where it is longer or shorter than its tensors, and OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = length(file.read(LENGTH_BYTES), size, str(path))
        return parse(file.read(header_bytes), size, str(path))


def length(first: bytes, size: int, name: str) -> int:
    """Return the bytes of a header from the first bytes of the file `name`, which has `size` bytes. Raises Damaged."""
    header_bytes = int.from_bytes(first, "little")
    if len(first) < LENGTH_BYTES or header_bytes > min(size - LENGTH_BYTES, LONGEST_HEADER):
        raise _unreadable(name)
    return header_bytes


def parse(header: bytes, size: int, name: str) -> Header:
    """Return the tensors of the file `name`, which has `size` bytes. Raises Damaged."""
    try:
        document = json.loads(header)
    except (ValueError, RecursionError) as problem:
        raise _unreadable(name) from problem
    if not isinstance(document, dict):
        raise _unreadable(name)
    entries = cast("dict[str, Any]", document)
    tensors = {key: config_json.mapping(entry) for key, entry in entries.items() if key != "__metadata__"}
    if not all(map(_is_tensor, tensors.values())):
        raise _unreadable(name)
    end = LENGTH_BYTES + len(header) + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    if end != size:
        raise Damaged(f"{name} has {size:,} bytes; its header says {end:,}.")
    return tensors


def _unreadable(name: str) -> Damaged:
    return Damaged(f"{name} has no readable header.")


def _is_tensor(entry: Mapping[str, Any]) -> bool:
    """Return whether an entry describes a tensor."""
    offsets = _counts(entry.get("data_offsets"))
    in_order = offsets is not None and len(offsets) == 2 and offsets[0] <= offsets[1]  # noqa: PLR2004 (begin and end)
    return in_order and bool(config_json.string(entry.get("dtype"))) and _counts(entry.get("shape")) is not None


def _counts(value: Any) -> list[int] | None:
    """Return a list of whole numbers, none of them absurd; None for all else."""
    numbers: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [None]
    return numbers if all(type(number) is int and 0 <= number <= config_json.LARGEST for number in numbers) else None
