"""What weights are, read from their headers in about a millisecond; no tensor is loaded and mlx is not imported."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from state.errors import Damaged, NotFound
from state.weights import Facts
from tasks.weights import manifest, repo_files
from tasks.weights.staging import SUFFIX, used

_LONGEST_HEADER = 100 << 20  # the safetensors format's own limit
_WORD_BITS = 32  # MLX packs quantised values into 32-bit words
_HALF, _SINGLE = 2, 4
_FLOATS = {"F32": _SINGLE, "F16": _HALF, "BF16": _HALF}
TOKENIZERS = frozenset({"tokenizer.json", "tokenizer.model", "tiktoken.model"})
"""Any of these makes text of tokens."""
Header = Mapping[str, Mapping[str, Any]]
"""What a shard says of its tensors, by name."""


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
    """`valid`, `partial` or `damaged`."""
    size: int
    """Bytes on the disk."""
    weights: ScannedWeights | None = None
    problem: str | None = None


def inventory(folder: Path) -> ScannedWeights:
    """Read one folder of weights.

    Raises NotFound when it holds no model MLX can load, Damaged when a file is cut short, missing or unreadable.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    repo_files.check_loadable(str(folder), names)
    config = read_json(folder / "config.json")
    check_config(str(folder), config)
    if TOKENIZERS.isdisjoint(names):
        raise Damaged(f"{folder} has no tokenizer: the engine would start and fail every request.", hint=_again(folder))
    headers = {name: _header(folder / name) for name in names if name.endswith(".safetensors")}
    _check_index(folder, headers)
    return _with_origin(_weights(folder, config, headers))


def _weights(folder: Path, config: Mapping[str, Any], headers: Mapping[str, Header]) -> ScannedWeights:
    """Return what the config and the headers of the shards tell."""
    tensors = {name: tensor for header in headers.values() for name, tensor in header.items()}
    parameters = _parameters(tensors, config.get("quantization") or {})
    size = sum((folder / name).stat().st_size for name in headers)
    text = _text(config)
    return ScannedWeights(
        folder=str(folder),
        model_type=config["model_type"],
        parameters=parameters,
        bits=round(8 * size / max(1, parameters), 2),
        quantization=_quantization(config),
        context=int(text.get("max_position_embeddings") or 0),
        kv_bytes_per_token=kv_values(text) * _float_bytes(tensors),
        size=size,
        vision="vision_config" in config,
    )


def _with_origin(scanned: ScannedWeights) -> ScannedWeights:
    """Add what the manifest tells, where there is one."""
    record = manifest.read(Path(scanned.folder))
    return replace(scanned, source=record.source, revision=record.revision, recipe=record.recipe) if record else scanned


def scan(models: Path) -> list[ScannedFolder]:
    """Look at every folder under `models`, also those the user copied there; staging folders are `partial`."""
    if not models.is_dir():
        return []
    return [_found(path) for path in sorted(models.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def _found(folder: Path) -> ScannedFolder:
    size = used(folder)
    if folder.name.endswith(SUFFIX):
        return ScannedFolder(folder, "partial", size)
    try:
        return ScannedFolder(folder, "valid", size, inventory(folder))
    except (NotFound, Damaged) as problem:
        return ScannedFolder(folder, "damaged", size, problem=problem.message)


def check_config(subject: str, config: Mapping[str, Any]) -> None:
    """Raise NotFound when the installed loaders cannot run a model with this config.json."""
    kind = config.get("model_type")
    quantization: Mapping[str, Any] = config.get("quantization_config") or {}
    method = quantization.get("quant_method")
    if method and "quantization" not in config:
        raise NotFound(
            f"{subject} is quantised with {method}, which MLX cannot load.",
            hint="Look for a conversion at https://huggingface.co/mlx-community",
        )
    if not isinstance(kind, str):
        raise NotFound(
            f"{subject} has a config.json without a model_type: it is not a language model.", hint="mlxq models"
        )
    if kind not in _loadable():
        raise NotFound(
            f"{subject} has the architecture {kind!r}, which the installed mlx-lm and mlx-vlm do not know.",
            hint="uv tool upgrade mlxq   (a newer loader may know it)",
        )


@cache
def _loadable() -> frozenset[str]:
    """Return every model_type for which mlx-lm or mlx-vlm has a file; importing mlx_lm would take 740 MB."""
    names: set[str] = set()
    for package in ("mlx_lm", "mlx_vlm"):
        spec = importlib.util.find_spec(package)
        for location in (spec.submodule_search_locations or []) if spec else []:
            names |= {path.stem for path in (Path(location) / "models").iterdir()}
            names |= _renamed((Path(location) / "utils.py").read_text(encoding="utf-8"))
    return frozenset(names)


def _renamed(source: str) -> set[str]:
    """Return the keys of MODEL_REMAPPING in a loader's utils.py."""
    table = re.search(r"^MODEL_REMAPPING = (\{.*?^\})", source, re.DOTALL | re.MULTILINE)
    return set(ast.literal_eval(table[1])) if table else set()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises Damaged."""
    try:
        document = json.loads(path.read_bytes())
    except ValueError as problem:
        raise Damaged(f"{path} is not JSON: {problem}.", hint=_again(path.parent)) from problem
    if not isinstance(document, dict):
        raise Damaged(f"{path} is not a JSON object.", hint=_again(path.parent))
    return cast("dict[str, Any]", document)


def _header(path: Path) -> Header:
    """Read a safetensors header and check that the file is as long as it says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, _LONGEST_HEADER):
            raise Damaged(f"{path} has no readable header.", hint=_again(path.parent))
        try:
            header = json.loads(file.read(length))
        except ValueError as problem:
            raise Damaged(f"{path} has no readable header.", hint=_again(path.parent)) from problem
    header.pop("__metadata__", None)
    end = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    if end != size:
        raise Damaged(f"{path} has {size:,} bytes; its header says {end:,}.", hint=_again(path.parent))
    return header


def _check_index(folder: Path, headers: Mapping[str, Header]) -> None:
    """Raise Damaged when the index names a tensor that no shard has."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return
    places: dict[str, str] = read_json(index).get("weight_map") or {}
    lost = sorted({shard for name, shard in places.items() if name not in headers.get(shard, {})})
    if lost:
        raise Damaged(f"{folder} lacks tensors of {', '.join(lost)}.", hint=_again(folder))


def _parameters(tensors: Header, quantization: Mapping[str, Any]) -> int:
    """Count parameters; a packed weight holds 32 / bits in each word, and scales and biases hold none."""
    total = 0
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        packed = f"{module}.scales" in tensors
        if packed and kind in {"scales", "biases"}:
            continue
        count = math.prod(tensor["shape"])
        if packed and kind == "weight":
            own: Mapping[str, Any] = quantization.get(module) or quantization
            count = count * _WORD_BITS // int(own.get("bits", _WORD_BITS))
        total += count
    return total


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the language part of a config; models with vision nest it."""
    return config.get("text_config") or config


def kv_values(text: Mapping[str, Any]) -> int:
    """Return how many values one more token adds to the cache, over all layers whose cache grows."""
    layers = _growing_layers(text)
    if "kv_lora_rank" in text:  # multi-head latent attention keeps one compressed vector
        return layers * (int(text["kv_lora_rank"]) + int(text.get("qk_rope_head_dim") or 0))
    heads = int(text.get("num_attention_heads") or 0)
    width = int(text.get("head_dim") or int(text.get("hidden_size") or 0) // max(1, heads))
    return 2 * layers * int(text.get("num_key_value_heads") or heads) * width


def _growing_layers(text: Mapping[str, Any]) -> int:
    """Count the layers of full attention; sliding and linear ones keep a cache of fixed size."""
    kinds: Sequence[str] = text.get("layer_types") or ()
    if "full_attention" in kinds:
        return sum(kind == "full_attention" for kind in kinds)
    layers = int(text.get("num_hidden_layers") or 0)
    return layers // int(text.get("full_attention_interval") or 1)


def _float_bytes(tensors: Header) -> int:
    """Return the width of the engine's values: that of the norms, which activations take on."""
    widths = [_FLOATS[t["dtype"]] for name, t in tensors.items() if "norm" in name and t["dtype"] in _FLOATS]
    return max(widths, default=_HALF)


def _quantization(config: Mapping[str, Any]) -> str | None:
    quantization = config.get("quantization")
    return f"{quantization['bits']}-bit g{quantization['group_size']}" if quantization else None


def _again(folder: Path) -> str:
    return f"mlxq verify {folder.name}   (fetches again what is damaged)"
