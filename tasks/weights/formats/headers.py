"""What weights are, read from their headers in about a millisecond; no tensor is loaded and mlx is not imported.

Whatever a folder holds, it ends in words: the files come from strangers, from broken disks and from editors.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from catalog import config_json
from catalog.config_json import ModelConfig
from state.classes import dataclass
from state.errors import Damaged, NotFound
from state.weights import Facts
from tasks.system import disk_access
from tasks.weights import loaders, manifest, repo_files
from tasks.weights.formats import safetensors
from tasks.weights.formats.safetensors import Header
from tasks.weights.staging import SUFFIX, used

_LONGEST_JSON = 256 << 20
"""Bytes. The index of a model of 10^12 parameters has 10 MB."""
_WORD_BITS = 32  # MLX packs quantised values into 32-bit words
_BESIDE_PACKED = frozenset({"scales", "biases", "qzeros", "g_idx"})
"""Tensors of a packed module that hold no values of their own."""
_FOREIGN_BITS = 4
"""Of AWQ and GPTQ, where MLX loads no others."""
_HALF, _SINGLE = 2, 4
_FLOATS = {"F32": _SINGLE, "F16": _HALF, "BF16": _HALF}
INDEX = "model.safetensors.index.json"
TOKENIZERS = frozenset({"tokenizer.json", "tokenizer.model", "tiktoken.model"})
"""Any of these makes text of tokens."""


@dataclass(frozen=True)
class ScannedWeights(Facts):
    """One folder of weights that is whole and readable."""

    folder: str
    source: str | None = None
    """From the manifest; None for weights that the user copied there."""
    revision: str | None = None
    recipe: str | None = None


@dataclass(frozen=True)
class ScannedFolder:
    """One entry of the models folder."""

    folder: Path
    state: str
    """`valid`, `partial`, `damaged` (files are missing or not what they were), `unsupported` (the installed loaders
    cannot load it) or `unreadable` (the disk does not give it)."""
    size: int
    """Bytes on the disk."""
    weights: ScannedWeights | None = None
    problem: str | None = None


def inventory(folder: Path, *, name: str = "", hint: str = "") -> ScannedWeights:
    """Read one folder of weights. `name` and `hint`: what errors call it in place of its path, and what they advise.

    Raises NotFound when it holds no model MLX can load, Damaged when a file is cut short, missing or unreadable, and
    OSError when the disk does not give it.
    """
    try:
        return _inventory(folder)
    except (Damaged, NotFound) as problem:
        problem.message = problem.message.replace(str(folder), name or str(folder))
        problem.hint = hint or problem.hint or _again(folder)
        raise


def _inventory(folder: Path) -> ScannedWeights:
    names = plain_files(folder)
    repo_files.check_loadable(str(folder), names)
    config = loaders.check(str(folder), read_json(folder / "config.json"))
    shards = check_files(str(folder), names, config)
    headers = {name: safetensors.read(folder / name) for name in shards}
    _check_index(folder, headers)
    return _with_origin(_weights(folder, config, headers))


def check_files(subject: str, names: Sequence[str], config: ModelConfig) -> list[str]:
    """Return the files with the weights of a model, out of the names of all its files.

    Raises NotFound where no loader would find them, Damaged without a tokenizer or with a part missing. With an index,
    tensors decide what is missing.
    """
    shards = loaders.weight_files(names, config)
    if not shards:
        raise NotFound(f"{subject} has no model*.safetensors, and mlx-lm reads no others.", hint=loaders.CONVERSIONS)
    if TOKENIZERS.isdisjoint(names):
        raise Damaged(f"{subject} has no tokenizer: the engine would start and fail every request.")
    if INDEX not in names:
        repo_files.check_parts(subject, shards)
    return shards


def plain_files(folder: Path) -> list[str]:
    """Return the names of a folder's files, without those that begin with a dot. Raises OSError."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())


def _weights(folder: Path, config: ModelConfig, headers: Mapping[str, Header]) -> ScannedWeights:
    """Return what the config and the headers of the shards tell."""
    tensors = {name: tensor for header in headers.values() for name, tensor in header.items()}
    parameters = count_parameters(tensors, config)
    size = sum((folder / name).stat().st_size for name in headers)
    return ScannedWeights(
        folder=str(folder),
        model_type=config.model_type,
        parameters=parameters,
        bits=round(8 * size / max(1, parameters), 2),
        quantization=_quantization(config),
        context=config.context,
        kv_bytes_per_token=config.kv_values * _float_bytes(tensors),
        size=size,
        vision=config.vision,
    )


def _with_origin(scanned: ScannedWeights) -> ScannedWeights:
    """Add what the manifest tells, where there is one."""
    record = manifest.read(Path(scanned.folder))
    return replace(scanned, source=record.source, revision=record.revision, recipe=record.recipe) if record else scanned


def scan(models: Path) -> list[ScannedFolder]:
    """Look at every folder under `models`, also those the user copied there; staging folders are `partial`.

    A folder that cannot be read is one entry of the list. Raises OSError where `models` itself cannot be read.
    """
    if not models.is_dir():
        return []
    folders = [path for path in sorted(models.iterdir()) if not path.name.startswith(".") and _is_folder(path)]
    return [entry for entry in map(_found, folders) if not _is_gone(entry.folder)]


def _is_gone(folder: Path) -> bool:
    """Return whether a folder was deleted while it was looked at, or renamed, as a download that ends is."""
    try:
        folder.lstat()
    except OSError as problem:  # any other one: the disk does not say
        return isinstance(problem, FileNotFoundError)
    return False


def changed_at(folder: Path) -> float:
    """Return when a folder was last changed, in Unix seconds; 0 for one that the disk does not give."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _is_folder(path: Path) -> bool:
    """Return whether an entry is a folder, also one that the disk does not give."""
    try:
        return path.is_dir()
    except OSError:
        return True


def _found(folder: Path) -> ScannedFolder:
    try:
        return _scanned(folder, used(folder))
    except OSError as problem:
        reason = disk_access.reason(problem, folder)
        return ScannedFolder(folder, "unreadable", 0, problem=f"{folder} cannot be read: {reason}.")


def _scanned(folder: Path, size: int) -> ScannedFolder:
    """Return one entry. Raises OSError."""
    if folder.name.endswith(SUFFIX):
        return ScannedFolder(folder, "partial", size)
    if changed := manifest.changed(folder):
        problem = f"{folder} has files that are not as they were fetched: {', '.join(changed)}."
        return ScannedFolder(folder, "damaged", size, problem=problem)
    try:
        return ScannedFolder(folder, "valid", size, inventory(folder))
    except NotFound as problem:
        return ScannedFolder(folder, "unsupported", size, problem=problem.message)
    except Damaged as problem:
        return ScannedFolder(folder, "damaged", size, problem=problem.message)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises Damaged, and OSError."""
    if path.stat().st_size > _LONGEST_JSON:
        raise Damaged(f"{path} has {path.stat().st_size:,} bytes: it is no description.")
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as problem:
        raise Damaged(f"{path} is not JSON: {problem}.") from problem
    if not isinstance(document, dict):
        raise Damaged(f"{path} is not a JSON object.")
    return cast("dict[str, Any]", document)


def _check_index(folder: Path, headers: Mapping[str, Header]) -> None:
    """Raise Damaged when the index names a tensor that no shard has."""
    index = folder / INDEX
    if index.exists() and (lost := lost_shards(read_json(index), headers.values())):
        raise Damaged(f"{folder} lacks tensors of {', '.join(lost)}.")


def lost_shards(index: Mapping[str, Any], headers: Iterable[Header]) -> list[str]:
    """Return the shards of an index with a tensor that none of the files has.

    In which file a tensor lies does not matter: a loader reads them all, and some indexes name files that were renamed.
    """
    present = {name for header in headers for name in header}
    return sorted({shard for name, shard in _places(index).items() if name not in present})


def shards_of(index: Mapping[str, Any]) -> set[str]:
    """Return the files that an index names."""
    return set(_places(index).values())


def _places(index: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the file of each tensor, as an index tells it."""
    return {name: str(shard) for name, shard in config_json.mapping(index.get("weight_map")).items()}


def count_parameters(tensors: Header, config: ModelConfig) -> int:
    """Count parameters; a packed weight holds 32 / bits in each word, and scales and biases hold none."""
    total = 0
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        packed = f"{module}.scales" in tensors
        if packed and kind in _BESIDE_PACKED:
            continue
        bits = _bits(module, config) if packed and kind in {"weight", "qweight"} else _WORD_BITS
        total += math.prod(tensor["shape"]) * _WORD_BITS // bits
    return total


def _bits(module: str, config: ModelConfig) -> int:
    """Return the bits of one packed value of a module."""
    if config.quantization is None:
        return _FOREIGN_BITS if config.foreign_quantization in {"awq", "gptq"} else _WORD_BITS
    return config.quantization.modules.get(module, config.quantization).bits


def _float_bytes(tensors: Header) -> int:
    """Return the width of the engine's values: that of the norms, which activations take on."""
    widths = [_FLOATS.get(tensor["dtype"], 0) for name, tensor in tensors.items() if "norm" in name]
    return max(widths, default=0) or _HALF


def _quantization(config: ModelConfig) -> str | None:
    """Return how the weights are packed, such as `4-bit g64`; None for weights that are not quantized."""
    if config.quantization:
        return f"{config.quantization.bits}-bit g{config.quantization.group_size}"
    return config.foreign_quantization or None


def _again(folder: Path) -> str | None:
    """Return the command that repairs a folder; None for one that mlxq did not fetch."""
    return f"mlxq verify {shlex.quote(folder.name)}" if manifest.read(folder) else None
