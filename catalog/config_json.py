"""What a model's config.json says. Pure.

Any JSON object goes in: a field that is missing, of another type or absurd counts as not there, so that no file that a
stranger wrote can raise.

The names are those of transformers' configuration classes; models with vision nest theirs under `text_config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from catalog.description import geometry
from catalog.description.geometry import Geometry, NoShape
from catalog.description.repo_facts import RepoFacts
from catalog.fit import STATE_SIZE, token_values
from catalog.model import Attention
from state.classes import dataclass

LARGEST = 2**40
"""Above every count that a model has; what is larger is no count."""


@dataclass(frozen=True)
class Packing:
    """How MLX packs the values of a quantized module."""

    bits: int
    group_size: int
    mode: str
    """affine, mxfp4, nvfp4, mxfp8."""


@dataclass(frozen=True)
class Quantization(Packing):
    """How MLX's own quantization packed a model."""

    modules: Mapping[str, Packing]
    """Modules that are packed in another way."""


@dataclass(frozen=True)
class ModelConfig:
    """What config.json says; 0 and "" stand for what it does not say."""

    model_type: str
    context: int
    """Tokens the model was trained for."""
    attention: Attention
    state_values: int
    """Values that one recurrent layer keeps."""
    slides: bool
    """Whether some layers keep the last tokens only."""
    recurs: bool
    """Whether some layers keep one state of fixed size."""
    vision: bool
    quantized: bool
    """Whether MLX quantized it, in whatever way."""
    quantization: Quantization | None
    """None also where `quantized` and its numbers are no numbers."""
    foreign_quantization: str
    """The method of another library's quantization, such as awq; empty for none, and beside MLX's own."""
    code: str
    """The Python file in the folder that a loader would run; empty for none."""

    @property
    def kv_values(self) -> int:
        """Values that one more token adds to the cache, over all layers whose cache grows."""
        return token_values(self.attention)


def read(config: Mapping[str, Any]) -> ModelConfig:
    """Return what a config.json says."""
    text = mapping(config.get("text_config")) or config
    own = mapping(config.get("quantization"))
    shape = _geometry(config)
    attention = shape.attention if shape else Attention(full=0)
    return ModelConfig(
        model_type=string(config.get("model_type")),
        context=geometry.told_context(text),
        attention=attention,
        state_values=attention.recurrent_width * (attention.recurrent_state or STATE_SIZE),
        slides=attention.sliding > 0,
        recurs=shape is not None and shape.architecture.startswith("hybrid"),
        vision=isinstance(config.get("vision_config"), dict),
        quantized=config.get("quantization") is not None,
        quantization=_quantization(own),
        foreign_quantization="" if own else _foreign(config, text),
        code=string(config.get("model_file")),
    )


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a JSON object; an empty one for all else."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def string(value: Any) -> str:
    """Return a JSON string; an empty one for all else."""
    return value if isinstance(value, str) else ""


def count(value: Any) -> int:
    """Return a whole number from 0 to LARGEST; 0 for all else, as for NaN, true and 1e300."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST:
        return 0
    return int(value) if value == int(value) else 0


def _geometry(config: Mapping[str, Any]) -> Geometry | None:
    """Return the shape of the model; None where config.json does not tell it."""
    try:
        return geometry.shape(RepoFacts("", config, 0))
    except NoShape:
        return None


def _quantization(own: Mapping[str, Any]) -> Quantization | None:
    """Return MLX's quantization; None where there is none, or its numbers are missing."""
    packing = _packing(own)
    if not packing.bits or not packing.group_size:
        return None
    modules = {name: _packing(mapping(entry), packing) for name, entry in own.items() if isinstance(entry, dict)}
    return Quantization(packing.bits, packing.group_size, packing.mode, modules)


def _packing(entry: Mapping[str, Any], default: Packing | None = None) -> Packing:
    default = default or Packing(0, 0, "affine")
    return Packing(
        count(entry.get("bits")) or default.bits,
        count(entry.get("group_size")) or default.group_size,
        string(entry.get("mode")) or default.mode,
    )


def _foreign(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    """Return the method of a quantization that another library made, wherever a loader looks for it."""
    quantization = mapping(config.get("quantization_config")) or mapping(text.get("quantization_config"))
    return string(quantization.get("quant_method"))
