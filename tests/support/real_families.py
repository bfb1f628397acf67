"""What the config.json files of families say that are in no file of the catalog, and what a token costs by them.

The fields are those that the makers publish. What is expected is counted by hand, from the caches that mlx-lm makes:
2 x full layers x heads of the cache x their size x 2 bytes, or layers x latent values x 2 bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Expected(NamedTuple):
    """What planning must find."""

    token_bytes: int
    """Bytes that each further token adds to the cache."""
    query_heads: int
    context: int
    recurrent: int = 0
    """Layers that keep a state."""
    sliding: int = 0
    """Layers that keep a window."""


def _sliding(layers: int, every: int) -> list[str]:
    """Return the kinds of layers of which each `every`th attends to all."""
    return ["full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(layers)]


def _dense(kind: str, hidden: int, layers: int, heads: tuple[int, int], context: int, **more: Any) -> dict[str, Any]:
    """Return the fields that every family has; `heads` are those that ask and those of the cache."""
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "max_position_embeddings": context,
    } | more


KIMI_FULL = [4, 8, 12, 16, 20, 24, 27]
LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
EXPERTS = {"num_experts_per_tok": 8, "moe_intermediate_size": 768}

FAMILIES: dict[str, tuple[dict[str, Any], Expected]] = {
    "qwen2.5-7b": (_dense("qwen2", 3584, 28, (28, 4), 32_768), Expected(57_344, 28, 32_768)),
    "qwen3-235b-a22b": (
        _dense("qwen3_moe", 4096, 94, (64, 4), 262_144, head_dim=128, num_experts=128, **EXPERTS),
        Expected(192_512, 64, 262_144),
    ),
    "mistral-small-3.2-24b": (
        {"model_type": "mistral3", "text_config": _dense("mistral", 5120, 40, (32, 8), 131_072, head_dim=128)},
        Expected(163_840, 32, 131_072),
    ),
    "mistral-7b-v0.3": (_dense("mistral", 4096, 32, (32, 8), 32_768), Expected(131_072, 32, 32_768)),
    "gemma-2-9b": (
        _dense("gemma2", 3584, 42, (16, 8), 8192, head_dim=256, sliding_window=4096),
        Expected(344_064, 16, 8192),
    ),
    "phi-3.5-mini": (_dense("phi3", 3072, 32, (32, 32), 131_072), Expected(393_216, 32, 131_072)),
    "glm-4-32b": (_dense("glm4", 6144, 61, (48, 2), 32_768, head_dim=128), Expected(62_464, 48, 32_768)),
    "glm-4.5-air": (
        _dense(
            "glm4_moe", 4096, 46, (96, 8), 131_072, head_dim=128, n_routed_experts=128, n_shared_experts=1, **EXPERTS
        ),
        Expected(188_416, 96, 131_072),
    ),
    "deepseek-v3": (
        _dense(
            "deepseek_v3", 7168, 61, (128, 128), 163_840, q_lora_rank=1536, n_routed_experts=256, **LATENT, **EXPERTS
        ),
        Expected(70_272, 128, 163_840),
    ),
    "kimi-k2": (
        _dense("kimi_k2", 7168, 61, (64, 64), 131_072, q_lora_rank=1536, n_routed_experts=384, **LATENT, **EXPERTS),
        Expected(70_272, 64, 131_072),
    ),
    "kimi-linear-48b-a3b": (
        _dense("kimi_linear", 2304, 27, (32, 32), 1_048_576, head_dim=72, **LATENT, **EXPERTS)
        | {
            "linear_attn_config": {
                "full_attn_layers": KIMI_FULL,
                "kda_layers": [layer for layer in range(1, 28) if layer not in KIMI_FULL],
                "head_dim": 128,
                "num_heads": 32,
                "short_conv_kernel_size": 4,
            },
            "num_experts": 256,
        },
        Expected(8064, 32, 1_048_576, recurrent=20),
    ),
    "falcon-h1-7b": (
        _dense("falcon_h1", 3072, 44, (12, 2), 262_144, head_dim=128, mamba_d_state=256, mamba_n_heads=24)
        | {"mamba_d_head": 128, "mamba_d_ssm": 3072, "mamba_n_groups": 1, "mamba_d_conv": 4, "mamba_expand": 2},
        Expected(45_056, 12, 262_144, recurrent=44),
    ),
    "olmo-2-13b": (_dense("olmo2", 5120, 40, (40, 40), 4096), Expected(819_200, 40, 4096)),
    "olmo-3-32b": (
        _dense("olmo3", 5120, 64, (40, 8), 65_536, sliding_window=4096, layer_types=_sliding(64, 4)),
        Expected(65_536, 40, 65_536, sliding=48),
    ),
    "ernie-4.5-21b-a3b": (
        _dense("ernie4_5_moe", 2560, 28, (20, 4), 131_072, moe_num_experts=64, moe_k=6, moe_intermediate_size=1536)
        | {"head_dim": 128, "moe_num_shared_experts": 2, "moe_layer_start_index": 1},
        Expected(57_344, 20, 131_072),
    ),
    "seed-oss-36b": (_dense("seed_oss", 5120, 64, (80, 8), 524_288, head_dim=128), Expected(262_144, 80, 524_288)),
    "exaone-4.0-32b": (
        _dense("exaone4", 5120, 64, (40, 8), 131_072, head_dim=128, sliding_window=4096, sliding_window_pattern="LLLG")
        | {"layer_types": _sliding(64, 4)},
        Expected(65_536, 40, 131_072, sliding=48),
    ),
    "command-r7b": (
        _dense("cohere2", 4096, 32, (32, 8), 132_096, head_dim=128, sliding_window=4096, sliding_window_pattern=4),
        Expected(32_768, 32, 132_096, sliding=24),
    ),
    "apertus-8b": (_dense("apertus", 4096, 32, (32, 8), 65_536), Expected(131_072, 32, 65_536)),
    "qwen3-next-80b-a3b": (
        _dense("qwen3_next", 2048, 48, (16, 2), 262_144, head_dim=256, full_attention_interval=4, num_experts=512)
        | {"linear_num_value_heads": 32, "linear_num_key_heads": 16, "linear_key_head_dim": 128}
        | {"linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, **EXPERTS},
        Expected(24_576, 16, 262_144, recurrent=36),
    ),
}

UNSERVED = {
    "qwen3.8-flash-next": "qwen4_exp",
    "glm-5.3-flash": "glm5_next",
    "minimax-m3": "minimax_m3",
    "kimi-k3": "kimi_k3",
    "next-year": "qwen9_moe",
}
"""Families that no installed engine serves as text, by what their config.json files name."""
