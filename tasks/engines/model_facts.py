"""What an engine must know of a folder of weights: read from config.json and the chat template, no tensor loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catalog.engines import kind
from state.errors import Damaged
from tasks.engines.base import ModelFacts
from tasks.weights import headers

STATE_VALUE_BYTES = 4
"""Recurrent states are kept in single precision (measured: 27B, 48 layers of 48 heads of 128 x 128, 146 MiB)."""
CACHE_VALUE_BYTES = 2


def read(folder: Path) -> ModelFacts:
    """Return the facts of one folder of weights; those of plain attention where config.json cannot be read.

    A model whose config.json is damaged is started all the same, and the engine says what is wrong with it.
    """
    try:
        config = headers.read_json(folder / "config.json")
    except (OSError, Damaged):
        return ModelFacts()
    text: Mapping[str, Any] = config.get("text_config") or config
    words = _template(folder)
    return ModelFacts(
        kind=kind(recurrent=_recurrent(text) > 0, sliding=_sliding(text), vision="vision_config" in config),
        thinks="enable_thinking" in words,
        keeps_thinking="preserve_thinking" in words,
        state_bytes=_recurrent(text) * _state(text),
        token_bytes=headers.kv_values(text) * CACHE_VALUE_BYTES,
    )


def _recurrent(text: Mapping[str, Any]) -> int:
    """Return the number of layers that keep one state of fixed size: Gated DeltaNet, Mamba, short convolutions."""
    types: list[str] = text.get("layer_types") or text.get("layers_block_type") or []
    if types:
        return sum(any(word in name for word in ("linear", "mamba", "conv", "recurrent", "ssm")) for name in types)
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return pattern.count("M")
    layers, interval = int(text.get("num_hidden_layers") or 0), int(text.get("full_attention_interval") or 0)
    return layers - layers // interval if interval > 1 else 0


def _sliding(text: Mapping[str, Any]) -> bool:
    """Return whether some layers keep the last tokens only."""
    types: list[str] = text.get("layer_types") or []
    if types:
        return any("sliding" in name or "chunked" in name for name in types)
    return bool(text.get("sliding_window")) and text.get("use_sliding_window") is not False


def _state(text: Mapping[str, Any]) -> int:
    """Return the bytes of one layer's state; 0 for a family whose sizes are named otherwise."""
    heads = int(text.get("linear_num_value_heads") or 0)
    keys, values = int(text.get("linear_key_head_dim") or 0), int(text.get("linear_value_head_dim") or 0)
    return heads * keys * values * STATE_VALUE_BYTES


def _template(folder: Path) -> str:
    """Return the chat template, wherever the folder keeps it; empty where it has none."""
    for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        path = folder / name
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            if name.endswith(".jinja") or "chat_template" in text:
                return text
    return ""
