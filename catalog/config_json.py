"""What a model's config.json says. Pure.

Any JSON object goes in: a field that is missing, of another type or absurd counts as not there, so that no file that a
stranger wrote can raise.

The names are those of transformers' configuration classes; models with vision nest theirs under `text_config`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from catalog.model import Attention

LARGEST = 2**40
"""Above every count that a model has; what is larger is no count."""
RECURRENT = ("linear", "mamba", "conv", "recurrent", "ssm")
"""Parts of the names of layers that keep one state of fixed size."""
SLIDING = ("sliding", "chunked")
"""Parts of the names of layers that keep the last tokens only."""
STATELESS = ("mlp", "moe")
"""Parts of the names of layers that keep nothing."""


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
    layers: int
    hidden_size: int
    vocabulary: int
    """Tokens of the vocabulary."""
    context: int
    """Tokens the model was trained for."""
    attention: Attention
    state_values: int
    """Values that one recurrent layer keeps."""
    slides: bool
    """Whether some layers keep the last tokens only."""
    vision: bool
    tied: bool
    """Whether input and output share one embedding."""
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
        layers = self.attention
        if layers.latent:
            return layers.full * layers.latent
        return 2 * layers.full * layers.kv_heads * layers.head_dim


def read(config: Mapping[str, Any]) -> ModelConfig:
    """Return what a config.json says."""
    text = mapping(config.get("text_config")) or config
    own = mapping(config.get("quantization"))
    return ModelConfig(
        model_type=string(config.get("model_type")),
        layers=count(text.get("num_hidden_layers")),
        hidden_size=count(text.get("hidden_size")),
        vocabulary=count(text.get("vocab_size")),
        context=count(text.get("max_position_embeddings")),
        attention=_attention(text),
        state_values=_state_values(text),
        slides=_slides(text),
        vision=isinstance(config.get("vision_config"), dict),
        tied=text.get("tie_word_embeddings", config.get("tie_word_embeddings")) is True,
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


def strings(value: Any) -> list[str]:
    """Return the strings of a JSON array; none for all else."""
    return [word for word in cast("list[Any]", value) if isinstance(word, str)] if isinstance(value, list) else []


def count(value: Any) -> int:
    """Return a whole number from 0 to LARGEST; 0 for all else, as for NaN, true and 1e300."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST:
        return 0
    return int(value) if value == int(value) else 0


def _attention(text: Mapping[str, Any]) -> Attention:
    """Return what every layer remembers of a prompt."""
    full, sliding, recurrent = _layers(text)
    heads = count(text.get("num_attention_heads"))
    width = count(text.get("head_dim")) or count(text.get("hidden_size")) // max(1, heads)
    compressed = count(text.get("kv_lora_rank"))
    return Attention(
        full=full,
        kv_heads=count(text.get("num_key_value_heads")) or heads,
        head_dim=width,
        sliding=sliding,
        window=count(text.get("sliding_window")) or count(text.get("attention_chunk_size")),
        recurrent=recurrent,
        latent=compressed + count(text.get("qk_rope_head_dim")) if compressed else 0,
        query_heads=heads,
        recurrent_width=count(text.get("linear_num_value_heads")) * count(text.get("linear_value_head_dim")),
    )


def _layers(text: Mapping[str, Any]) -> tuple[int, int, int]:
    """Count the layers of full attention, of sliding attention, and those with one state of fixed size."""
    kinds = strings(text.get("layer_types")) or strings(text.get("layers_block_type"))
    if kinds:
        recurrent, sliding, stateless = (_named(kinds, parts) for parts in (RECURRENT, SLIDING, STATELESS))
        return len(kinds) - recurrent - sliding - stateless, sliding, recurrent
    pattern = string(text.get("hybrid_override_pattern"))  # Nemotron-H: M a Mamba layer, * attention, - an MLP
    if pattern:
        return pattern.count("*"), 0, pattern.count("M")
    layers = count(text.get("num_hidden_layers"))
    every = count(text.get("full_attention_interval"))
    if every > 1:
        return layers // every, 0, layers - layers // every
    every = count(text.get("sliding_window_pattern"))
    if not count(text.get("sliding_window")) or text.get("use_sliding_window") is False:
        return layers, 0, 0
    return (layers // every, layers - layers // every, 0) if every > 1 else (layers, 0, 0)


def _slides(text: Mapping[str, Any]) -> bool:
    """Return whether some layers keep the last tokens only, by their list or, without one, by the window."""
    kinds = strings(text.get("layer_types"))
    if kinds:
        return _named(kinds, SLIDING) > 0
    return bool(count(text.get("sliding_window"))) and text.get("use_sliding_window") is not False


def _named(kinds: Sequence[str], parts: Sequence[str]) -> int:
    return sum(any(part in kind for part in parts) for kind in kinds)


def _state_values(text: Mapping[str, Any]) -> int:
    """Return the values of one Gated DeltaNet layer's state; 0 for a family whose sizes are named otherwise."""
    heads, keys = count(text.get("linear_num_value_heads")), count(text.get("linear_key_head_dim"))
    return heads * keys * count(text.get("linear_value_head_dim"))


def _quantization(own: Mapping[str, Any]) -> Quantization | None:
    """Return MLX's quantization; None where there is none, or its numbers are missing."""
    packing = _packing(own)
    if not packing.bits or not packing.group_size:
        return None
    modules = {name: _packing(mapping(entry), packing) for name, entry in own.items() if isinstance(entry, dict)}
    return Quantization(packing.bits, packing.group_size, packing.mode, modules)


def _packing(entry: Mapping[str, Any], default: Packing = Packing(0, 0, "affine")) -> Packing:
    return Packing(
        count(entry.get("bits")) or default.bits,
        count(entry.get("group_size")) or default.group_size,
        string(entry.get("mode")) or default.mode,
    )


def _foreign(config: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    """Return the method of a quantization that another library made, wherever a loader looks for it."""
    quantization = mapping(config.get("quantization_config")) or mapping(text.get("quantization_config"))
    return string(quantization.get("quant_method"))
