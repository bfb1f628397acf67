"""What a listing of files must hold to be weights that MLX can load; pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from catalog import units
from state.errors import Damaged, NotFound
from tasks.weights import manifest

# What mlx_lm.utils and mlx_vlm.utils load, with the licence; Python files are untrusted code.
_WANTED = (
    *("*.json", "*.jsonl", "*.safetensors", "*.jinja", "*.txt", "*.tiktoken"),
    *("tokenizer.model", "tiktoken.model", "LICENSE*", "NOTICE*"),
)
_CODE = ("*.py",)
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_OTHERS = {".gguf": "GGUF (llama.cpp)", ".bin": "PyTorch", ".pt": "PyTorch", ".onnx": "ONNX", ".mlmodel": "Core ML"}


def choose(names: Iterable[str], *, code: bool = False) -> list[str]:
    """Return the files to fetch out of a listing: those at its top that a loader reads; `*.py` only with `code`.

    Not the second copy of the weights that some makers add, nor a manifest of another mlxq. Raises Damaged when a name
    would leave the folder, or when a disk on which upper and lower case are the same could not hold two of the files.
    """
    patterns = (*_WANTED, *_CODE) if code else _WANTED
    chosen = [name for name in map(safe, names) if _is_wanted(name, patterns)]
    _check_twins(chosen)
    return chosen


def _is_wanted(name: str, patterns: Sequence[str]) -> bool:
    if "/" in name or name.startswith(".") or name == manifest.NAME:
        return False
    if name.endswith(".safetensors"):
        return is_shard(name)
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def is_shard(name: str) -> bool:
    """Return whether a file holds weights that a loader reads.

    macOS lays files beside others whose names begin with a dot; `consolidated*` repeats the weights for other programs.
    """
    return name.endswith(".safetensors") and not name.startswith((".", "consolidated"))


def _check_twins(names: Sequence[str]) -> None:
    """Raise Damaged for two names that are one on a Mac's disk: they differ in case or in how accents are written."""
    by_key: dict[str, str] = {}
    for name in names:
        twin = by_key.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if twin != name:
            raise Damaged(
                f"The file list names {twin!r} and {name!r}, which are one file on most Macs.",
                done="Nothing was fetched.",
            )


def check_parts(subject: str, names: Sequence[str]) -> None:
    """Raise Damaged when a name says that it is one of several parts, and another part is not there."""
    parts = [part for name in names if (part := _PART.fullmatch(name))]
    for part in parts:
        numbers = range(1, int(part["count"]) + 1)
        needed = (f"{part['stem']}-{number:05}-of-{part['count']}.safetensors" for number in numbers)
        if lost := next((name for name in needed if name not in names), None):
            raise Damaged(f"{subject} lacks {lost}.")


def safe(name: str) -> str:
    """Return the name unchanged when it stays inside the folder. Raises Damaged."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name or "\0" in name:
        raise Damaged(f"The file list names {name!r}, which is outside the folder.", done="Nothing was fetched.")
    return name


def check_loadable(subject: str, names: Sequence[str]) -> None:
    """Raise NotFound, saying what the files are instead, when they are no model that MLX can load."""
    if "config.json" in names and any(map(is_shard, names)):
        return
    kinds = sorted({kind for name in names for end, kind in _OTHERS.items() if name.endswith(end)})
    problem = f"it holds {units.listed(kinds)} files" if kinds else "it holds no config.json with *.safetensors"
    if any(name.endswith("adapter_config.json") for name in names):
        problem = "it holds an adapter (LoRA), not a whole model"
    if "model_index.json" in names:
        problem = "it holds a diffusers pipeline, which makes images"
    raise NotFound(
        f"{subject} is not a model that MLX can load: {problem}.",
        done="Nothing was fetched.",
        hint="Look for a conversion at https://huggingface.co/mlx-community",
    )
