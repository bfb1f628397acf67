"""What the installed loaders, mlx-lm and mlx-vlm, can load: read from their sources, as importing them takes 740 MB."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from catalog import config_json
from catalog.config_json import ModelConfig
from state.classes import dataclass
from state.errors import NotFound
from state.paths import get_home
from tasks.weights import repo_files

CONVERSIONS = "Look for a conversion at https://huggingface.co/mlx-community"
EMBEDDINGS = "mlx-embeddings"
ENCODERS = frozenset({"bert", "xlm-roberta", "modernbert"})
"""Types of models that answer nothing: they make vectors or score. The library's other ones are mlx-lm's too."""
FP8 = "fp8"
_DEFINES = re.compile(r"^class Model\b|\bimport\b[^\n]*\bModel\b|^\s*Model,$|^Model\s*=", re.MULTILINE)
_FP8_SCALES = "weight_scale_inv"
"""The tensors of fp8 weights; an architecture whose file names them turns such weights back into bfloat16."""


@dataclass(frozen=True)
class Loader:
    """One package that loads models."""

    name: str
    folder: Path

    def source(self, kind: str) -> str | None:
        """Return the source of the file that implements `kind`, a model_type; None where there is none."""
        if self.name == EMBEDDINGS and kind not in ENCODERS:
            return None
        name = _renamed(self.folder).get(kind, kind).replace("-", "_" if self.name == EMBEDDINGS else "-")
        if name not in _names(self.folder):
            return None
        path = self.folder / "models" / name
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        text = file.read_text(encoding="utf-8")
        return text if _DEFINES.search(text) else None

    def loads(self, kind: str, method: str) -> bool:
        """Return whether a model of this type with another library's quantization is loaded; "" is none."""
        text = self.source(kind)
        if text is None:
            return False
        return not method or method in _methods(self.folder) or (method == FP8 and _FP8_SCALES in text)


def check(subject: str, document: Mapping[str, Any]) -> ModelConfig:
    """Return what the config.json of the model `subject` says. Raises NotFound when no installed loader can run it."""
    config = config_json.read(document)
    if config.code:
        raise NotFound(
            f"{subject} is a program: its config.json names the Python file {config.code!r}, and mlxq runs none.",
            hint=CONVERSIONS,
        )
    if not config.model_type:
        raise NotFound(
            f"{subject} has a config.json without a model_type: it is not a language model.", hint="mlxq models"
        )
    _check_architecture(subject, config)
    _check_quantization(subject, config)
    return config


def _check_architecture(subject: str, config: ModelConfig) -> None:
    kind = config.model_type
    able = [loader.name for loader in loaders() if loader.source(kind)]
    if not able:
        raise NotFound(
            f"{subject} has the architecture {kind!r}, which the installed mlx-lm and mlx-vlm do not know.",
            hint="uv tool upgrade mlxq   (a newer loader may know it)",
        )
    if not config.vision and able == ["mlx-vlm"]:  # mlx-embeddings has its own types
        raise NotFound(
            f"{subject} has the architecture {kind!r}, which of the installed loaders mlx-vlm alone knows. Engines use "
            "that for models that see, and this one's config.json has no vision_config.",
            hint=CONVERSIONS,
        )


def _check_quantization(subject: str, config: ModelConfig) -> None:
    if config.quantized and config.quantization is None:
        raise NotFound(
            f"{subject} is quantized, and its config.json does not say with how many bits and in groups of what size.",
            hint=CONVERSIONS,
        )
    method = config.foreign_quantization
    if not any(loader.loads(config.model_type, method) for loader in _used(config)):
        raise NotFound(
            f"{subject} is quantized with {method}, which the installed mlx-lm and mlx-vlm cannot load.",
            hint=CONVERSIONS,
        )


def _used(config: ModelConfig) -> Sequence[Loader]:
    """Return the loaders that engines may use for a model: mlx-lm for text where it can, mlx-vlm for the rest."""
    able = [loader for loader in loaders() if loader.source(config.model_type)]
    return able if config.vision else able[:1]


def weight_files(names: Sequence[str], config: ModelConfig) -> list[str]:
    """Return those of a folder's files whose tensors a loader of this model reads.

    mlx-lm reads `model*.safetensors` alone; mlx-vlm, where none is called so, reads every one but `consolidated`.
    """
    shards = [name for name in names if repo_files.is_shard(name)]
    plain = [name for name in shards if fnmatchcase(name, "model*.safetensors")]
    return plain or (shards if any(loader.name == "mlx-vlm" for loader in _used(config)) else [])


def loaders() -> tuple[Loader, ...]:
    """Return the loaders that are installed: one of each, mlxq's own or that of an engine."""
    environments = sorted(get_home().engines.glob("*/venv/lib/python*/site-packages"))
    return _installed((*sys.path, *map(str, environments)))


@cache
def _installed(path: tuple[str, ...]) -> tuple[Loader, ...]:
    """Return the loaders on a path; finding them reads its folders, and a listing asks for each model."""
    return tuple(_found(path))


def _found(path: Sequence[str]) -> Iterator[Loader]:
    for name, package in (("mlx-lm", "mlx_lm"), ("mlx-vlm", "mlx_vlm"), (EMBEDDINGS, "mlx_embeddings")):
        spec = PathFinder.find_spec(package, path)
        for location in (spec.submodule_search_locations or [])[:1] if spec else []:
            yield Loader(name, Path(location))


@cache
def _names(folder: Path) -> frozenset[str]:
    """Return the names of all files and folders of models; not all of them are one."""
    return frozenset(path.stem for path in (folder / "models").iterdir() if not path.name.startswith("_"))


@cache
def _renamed(folder: Path) -> Mapping[str, str]:
    """Return MODEL_REMAPPING of a loader's utils.py."""
    table = re.search(r"^MODEL_REMAPPING = (\{\}|\{$.*?^\})", _utils(folder), re.DOTALL | re.MULTILINE)
    return ast.literal_eval(table[1]) if table else {}


@cache
def _methods(folder: Path) -> frozenset[str]:
    """Return every text that a loader compares `quant_method` with: what it has code for."""
    compared = [node for node in ast.walk(ast.parse(_utils(folder))) if isinstance(node, ast.Compare)]
    return frozenset(word for node in compared if "quant_method" in ast.unparse(node.left) for word in _words(node))


def _words(comparison: ast.Compare) -> Iterator[str]:
    for sign, right in zip(comparison.ops, comparison.comparators, strict=True):
        values = right.elts if isinstance(right, ast.Tuple | ast.List | ast.Set) else [right]
        for value in values if isinstance(sign, ast.Eq | ast.In) else []:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value


def _utils(folder: Path) -> str:
    return (folder / "utils.py").read_text(encoding="utf-8")
