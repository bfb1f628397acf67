"""Make a small, whole MLX model of any size: a Llama config, a tokenizer, and shards of 4-bit weights."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

_WORDS_PER_ROW = 64  # 512 packed 4-bit values, 8 groups of 64


def make(folder: Path, *, shard_bytes: int = 1 << 20, shards: int = 2, model_type: str = "llama") -> Path:
    """Write a model whose shards have `shard_bytes` of tensors each; the same call makes the same bytes."""
    folder.mkdir(parents=True)
    config = {
        "model_type": model_type,
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 512,
        "num_hidden_layers": shards,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "quantization": {"group_size": 64, "bits": 4},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": []}}))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "LICENSE").write_text("Do what you like.\n")
    (folder / "README.md").write_text("# A model\n")
    (folder / "modeling.py").write_text("raise SystemExit('a stranger ran')\n")
    places: dict[str, str] = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        places |= dict.fromkeys(_shard(folder / name, number, shard_bytes), name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def _shard(path: Path, number: int, size: int) -> list[str]:
    """Write one layer as a safetensors file (8 bytes of header length, header, tensors) and name its tensors."""
    rows = max(1, size // (_WORDS_PER_ROW * 4 + 2 * 8 * 2))
    shapes: dict[str, tuple[str, list[int], int]] = {
        "mlp.up_proj.weight": ("U32", [rows, _WORDS_PER_ROW], 4),
        "mlp.up_proj.scales": ("F32", [rows, 8], 4),
        "mlp.up_proj.biases": ("F32", [rows, 8], 4),
        "input_layernorm.weight": ("F32", [512], 4),
    }
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for name, (kind, shape, width) in shapes.items():
        start, end = end, end + width * (shape[0] * shape[1] if len(shape) > 1 else shape[0])
        header[f"model.layers.{number}.{name}"] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header).encode()
    chance = random.Random(number)
    block = chance.randbytes(1 << 20)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for at in range(0, end, len(block)):
            file.write((struct.pack("<Q", at) + block[8:])[: end - at])
    return [name for name in header if name != "__metadata__"]
