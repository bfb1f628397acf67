"""Make a repo of any family of mlx-lm: its real architecture and names, a few thousand random weights, a template."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from support import tiny_model
from support.families import config_of

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM", "gpt_oss": "GptOssForCausalLM"}
"""The class that a published config.json names, for some; others are left without."""


def make(folder: Path, family: str, *, bits: int | None = None, template: str = tiny_model.TEMPLATE) -> Path:
    """Write a small model of a family, packed in `bits` by MLX where that is asked, and return its folder."""
    import mlx.core as mx
    from mlx import utils
    from mlx_lm.utils import MODEL_REMAPPING, quantize_model

    tools: Any = utils
    tokens = tiny_model.write_tokenizer(folder, template)
    config = _sized(config_of(family), len(tokens))
    if family in ARCHITECTURES:
        config["architectures"] = [ARCHITECTURES[family]]
    module = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(family, family)}")
    mx.random.seed(3)
    model = module.Model(module.ModelArgs.from_dict(json.loads(json.dumps(config))))
    if bits:
        model, config = quantize_model(model, config, 32, bits)
    weights = {name: _half(value) for name, value in tools.tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    folder.joinpath("config.json").write_text(json.dumps(config))
    return folder


def _sized(config: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Return the config with the vocabulary of the tokenizer, and its end of a turn."""
    sizes = {"vocab_size": tokens, "bos_token_id": 0, "eos_token_id": 2}
    for name in ("vocab_size_per_layer_input",):
        if name in config:
            sizes[name] = tokens
    config = config | sizes
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = _sized(config["text_config"], tokens)
    return config


def _half(value: Any) -> Any:
    """Return weights in 16 bits, as they are published."""
    import mlx.core as mx

    return value.astype(mx.bfloat16) if value.dtype == mx.float32 else value
