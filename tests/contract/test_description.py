"""A described model keeps what the installed mlx-lm really keeps: every family is built small, and reads a prompt."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from support.published_configs import CONFIGS

from catalog import fit
from catalog.description.describe import describe
from catalog.description.geometry import shape
from catalog.description.parameters import parameters
from catalog.description.repo_facts import RepoFacts
from catalog.load import entries

CHUNK, WINDOW, SHORT, LONG = 32, 40, 160, 224
"""Tokens that are read at once, that a sliding layer keeps, and of two prompts."""

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "shared_expert_intermediate_size": 32,
}
ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
}
LATENT: dict[str, Any] = {
    **ROUTED,
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "num_key_value_heads": 4,
    "topk_method": "noaux_tc",
}
LINEAR: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "head_dim": 32,
    "partial_rotary_factor": 0.5,
}
MAMBA: dict[str, Any] = {
    "conv_kernel": 4,
    "n_groups": 1,
    "use_bias": False,
    "use_conv_bias": True,
    "layer_norm_epsilon": 1e-5,
    "time_step_limit": [0.0, 100.0],
}
LONG_ROPE: dict[str, Any] = {
    "type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [1.0] * 8,
    "short_mscale": 1.0,
    "long_mscale": 1.0,
    "original_max_position_embeddings": 4096,
}
BLOCKS = ["sliding_attention"] * 3 + ["full_attention"]
NO_HEADS = {name: value for name, value in BASE.items() if "heads" not in name}
OLD: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"), ...),
    "n_embd": 64,
    "n_head": 4,
    "n_layer": 4,
    "n_positions": 1024,
    "layer_norm_epsilon": 1e-5,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "qwen3_moe": {"head_dim": 32, **EXPERTS},
    "qwen3_next": {**LINEAR, **EXPERTS},
    "qwen3_5": {
        "text_config": {
            "model_type": "qwen3_5_text",
            **BASE,
            **LINEAR,
            "rope_parameters": {"type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
        }
    },
    "gemma2": {"head_dim": 32, "sliding_window": WINDOW},
    "gemma3_text": {"head_dim": 32, "sliding_window": WINDOW, "sliding_window_pattern": 4},
    "gemma3": {"text_config": {"model_type": "gemma3_text", **NO_HEADS, "head_dim": 32, "sliding_window": WINDOW}},
    "gemma3n": {
        "text_config": {
            "model_type": "gemma3n_text",
            **BASE,
            "head_dim": 16,
            "num_kv_shared_layers": 4,
            "vocab_size_per_layer_input": 128,
            "sliding_window": WINDOW,
            "rope_local_base_freq": 10000.0,
            "final_logit_softcapping": 30.0,
            "layer_types": BLOCKS * 2,
            "activation_sparsity_pattern": [0.0] * 8,
            "hidden_size_per_layer_input": 16,
            "altup_num_inputs": 2,
            "altup_coef_clip": 120.0,
            "altup_correct_scale": True,
            "altup_active_idx": 0,
            "laurel_rank": 8,
        }
    },
    "gemma4_text": {
        "head_dim": 16,
        "global_head_dim": 32,
        "num_global_key_value_heads": 1,
        "num_kv_shared_layers": 4,
        "sliding_window": WINDOW,
        "layer_types": BLOCKS * 2,
        "hidden_size_per_layer_input": 0,
        "attention_k_eq_v": True,
    },
    "gpt_oss": {"head_dim": 16, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2},
    "phi": {},
    "phi3": {"sliding_window": WINDOW},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_scaling": LONG_ROPE},
    "glm4": {"head_dim": 16, "attention_bias": False, "partial_rotary_factor": 0.5},
    "glm4_moe": {
        **ROUTED,
        "head_dim": 16,
        "rope_scaling": None,
        "use_qk_norm": False,
        "attention_bias": False,
        "partial_rotary_factor": 0.5,
    },
    "glm4_moe_lite": LATENT,
    "deepseek_v2": {
        **LATENT,
        "topk_method": "greedy",
        "rope_scaling": {"type": "yarn", "factor": 1.0, "original_max_position_embeddings": 4096},
    },
    "deepseek_v3": LATENT,
    "deepseek_v32": {**LATENT, "index_head_dim": 32, "index_n_heads": 2, "index_topk": 2048},
    "kimi_k2": LATENT,
    "minicpm3": {**LATENT, "dim_model_base": 64, "scale_depth": 1.0, "scale_emb": 1.0, "rope_scaling": LONG_ROPE},
    "youtu_llm": LATENT,
    "longcat_flash": {
        **{name: value for name, value in LATENT.items() if name != "num_experts_per_tok"},
        "num_hidden_layers": ...,
        "num_layers": 4,
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 32,
        "moe_topk": 2,
        "zero_expert_num": 0,
        "zero_expert_type": "identity",
        "attention_bias": False,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "attention_method": "MLA",
    },
    "kimi_linear": {
        "linear_attn_config": {
            "kda_layers": [1, 2, 3, 5, 6, 7],
            "full_attn_layers": [4, 8],
            "num_heads": 4,
            "head_dim": 32,
            "short_conv_kernel_size": 4,
        },
        "head_dim": 16,
        "model_max_length": 4096,
        "num_experts": 4,
        "moe_intermediate_size": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "num_experts_per_token": 2,
        "num_shared_experts": 1,
        "first_k_dense_replace": 1,
        "mla_use_nope": True,
        "num_key_value_heads": 4,
    },
    "falcon_h1": {
        "head_dim": 32,
        "mamba_d_ssm": 64,
        "mamba_d_state": 48,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
    },
    "mamba": {
        "num_attention_heads": ...,
        "num_key_value_heads": ...,
        "state_size": 16,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 4,
    },
    "mamba2": {
        **MAMBA,
        "num_attention_heads": ...,
        "num_key_value_heads": ...,
        "num_heads": 4,
        "head_dim": 32,
        "intermediate_size": 128,
        "state_size": 24,
        "time_step_rank": "auto",
    },
    "nemotron_h": {
        **MAMBA,
        "hybrid_override_pattern": "M-M*-M-*",
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 24,
        "attention_bias": False,
        "mamba_proj_bias": False,
        "mlp_bias": False,
        "head_dim": 32,
    },
    "nemotron-nas": {
        "block_configs": [
            {"attention": {"no_op": at % 3 == 0, "n_heads_in_group": 2}, "ffn": {"no_op": False, "ffn_mult": 1.0}}
            for at in range(8)
        ]
    },
    "granite": {
        "logits_scaling": 1.0,
        "attention_multiplier": 1.0,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "granitemoehybrid": {
        "embedding_multiplier": 1.0,
        "attention_multiplier": 1.0,
        "logits_scaling": 1.0,
        "residual_multiplier": 1.0,
        "layer_types": (["mamba"] * 3 + ["attention"]) * 2,
        "mamba_n_heads": 4,
        "mamba_d_head": 32,
        "mamba_proj_bias": False,
        "mamba_d_state": 24,
        "mamba_d_conv": 4,
        "mamba_n_groups": 1,
        "mamba_conv_bias": True,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
        "attention_bias": False,
        "mlp_bias": False,
        "position_embedding_type": "nope",
        "time_step_limit": [0.0, 100.0],
    },
    "lfm2": {
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 64,
        "block_ff_dim": 96,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "full_attn_idxs": [2, 5],
    },
    "smollm3": {"no_rope_layer_interval": 4},
    "olmo2": {},
    "olmo3": {"sliding_window": WINDOW},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "cohere": {"layer_norm_eps": 1e-5},
    "cohere2": {"head_dim": 16, "sliding_window": WINDOW, "sliding_window_pattern": 4, "layer_norm_eps": 1e-5},
    "exaone": {"num_hidden_layers": ..., "num_layers": 4, "layer_norm_epsilon": 1e-5},
    "exaone4": {"head_dim": 16, "sliding_window": WINDOW, "sliding_window_pattern": "LLLG", "rope_scaling": None},
    "jamba": {
        "attn_layer_offset": 2,
        "attn_layer_period": 4,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 16,
        "mamba_expand": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "recurrent_gemma": {
        "num_key_value_heads": 1,
        "attention_bias": False,
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
        "attention_window_size": WINDOW,
        "block_types": ["recurrent", "recurrent", "attention"],
        "num_hidden_layers": 6,
    },
    "rwkv7": {
        "norm_eps": 1e-5,
        "head_dim": 16,
        "a_low_rank_dim": 8,
        "v_low_rank_dim": 8,
        "gate_low_rank_dim": 8,
        "decay_low_rank_dim": 8,
    },
    "plamo2": {
        "hidden_size_per_head": 16,
        "attention_window_size": 2048,
        "mamba_d_state": 24,
        "mamba_d_conv": 4,
        "mamba_num_heads": 4,
        "mamba_step": 2,
        "mamba_chunk_size": 64,
        "mamba_enabled": True,
        "full_attention_idx": [],
    },
    "mimo_v2_flash": {
        **ROUTED,
        "n_shared_experts": None,
        "hybrid_layer_pattern": [0, 1, 1, 1, 0, 1, 1, 1],
        "moe_layer_freq": [0] * 8,
        "add_swa_attention_sink_bias": False,
        "add_full_attention_sink_bias": False,
        "sliding_window_size": WINDOW,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "layernorm_epsilon": 1e-5,
        "swa_rope_theta": 1e4,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "head_dim": 24,
        "v_head_dim": 16,
        "swa_head_dim": 24,
        "swa_v_head_dim": 16,
        "partial_rotary_factor": 0.5,
    },
    "step3p5": {
        "num_key_value_heads": ...,
        "num_attention_groups": 2,
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": BLOCKS[::-1] * 2,
        "attention_other_setting": {
            "num_attention_heads": 6,
            "num_attention_groups": 3,
            "head_dim": 16,
            "true_head_dim": 16,
        },
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "moe_intermediate_size": 32,
        "share_expert_dim": 32,
        "moe_layers_enum": "4,5,6,7",
    },
    "bailing_moe": {
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "bailing_moe_linear": {
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "layer_group_size": 4,
        "group_norm_size": 1,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "use_qk_norm": True,
        "n_group": 1,
        "topk_group": 1,
    },
    "afmoe": {
        "layer_types": BLOCKS * 2,
        "head_dim": 16,
        "sliding_window": WINDOW,
        "moe_intermediate_size": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_shared_experts": 1,
        "num_dense_layers": 2,
    },
    "baichuan_m1": {
        "tie_word_embeddings": False,
        "sliding_window": WINDOW,
        "sliding_window_layers": [1, 3, 5],
        "conv_window": 2,
    },
    "minimax": {
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
        "shared_intermediate_size": 32,
        "rotary_dim": 16,
        "head_dim": 32,
    },
    "ministral3": {
        "rope_parameters": {
            "rope_theta": 1e4,
            "type": "default",
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 4096,
        }
    },
    "seed_oss": {"head_dim": 16},
    "apertus": {"mlp_bias": False, "attention_bias": False, "post_norm": False, "qk_norm": True},
    "hunyuan_v1_dense": {
        "head_dim": 16,
        "attention_bias": False,
        "use_qk_norm": True,
        "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
    },
    "ernie4_5": {"head_dim": 16, "use_bias": False},
    "gpt2": {**OLD, "n_ctx": 1024},
    "gpt_bigcode": {**OLD, "n_inner": 96, "multi_query": True},
    "stablelm": {"use_qkv_bias": False, "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5},
    "starcoder2": {},
    "internlm2": {"bias": False},
}
"""A small config.json of each family, with the fields that its published ones have."""


def config_of(family: str) -> dict[str, Any]:
    """Return the config.json of a family; a field of ... is left out."""
    told = {"model_type": family, **BASE, **FAMILIES[family]}
    return json.loads(json.dumps({name: value for name, value in told.items() if value is not ...}))


@dataclass(frozen=True)
class Made:
    """A model of mlx-lm with random weights."""

    model: Any
    config: dict[str, Any]

    def facts(self) -> RepoFacts:
        """Return what its files would say."""
        tensors = {name: {"dtype": "F32", "shape": list(value.shape)} for name, value in flat(self.model.parameters())}
        return RepoFacts("hub:someone/something", self.config, 1, tensors)

    def read(self, tokens: int) -> list[Any]:
        """Return the caches after a prompt of so many tokens."""
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self.model)
        for _ in range(tokens // CHUNK):
            mx.eval(self.model(mx.zeros((1, CHUNK), dtype=mx.int32), cache=cache))
        return list(_leaves(cache))


def flat(tree: Any) -> list[tuple[str, Any]]:
    """Return the arrays of a tree with their names."""
    from mlx import utils

    tools: Any = utils
    return tools.tree_flatten(tree)


def _leaves(caches: Any) -> Iterator[Any]:
    """Return each cache, those that belong together one by one."""
    for cache in caches:
        if inner := getattr(cache, "caches", None):
            yield from _leaves(inner)
        else:
            yield cache


def values(caches: list[Any], *, kind: str) -> int:
    """Return how many values the caches of a class hold."""
    return sum(int(array.size) for cache in caches if type(cache).__name__ == kind for _, array in flat(cache.state))


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def made(request: pytest.FixtureRequest) -> Made:
    from mlx_lm.utils import MODEL_REMAPPING

    config = config_of(request.param)
    module = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(request.param, request.param)}")
    return Made(module.Model(module.ModelArgs.from_dict(config_of(request.param))), config)


def test_layers_keep_what_mlx_lm_keeps(made: Made):
    """Tokens that add to the cache, the tokens of sliding layers while a chunk is read, and states of fixed size."""
    told = shape(made.facts()).attention
    short, long = made.read(SHORT), made.read(LONG)

    grown = values(long, kind="KVCache") - values(short, kind="KVCache")
    assert grown == fit.token_bytes(told) // fit.CACHE_VALUE_BYTES * (LONG - SHORT)
    window = told.sliding * 2 * told.kv_heads * told.head_dim * (WINDOW + CHUNK - 1)
    assert values(long, kind="RotatingKVCache") == window
    states = [cache.cache for cache in long if type(cache).__name__ == "ArraysCache"]
    keeps = told.recurrent_width * (told.recurrent_state or fit.STATE_SIZE)
    assert told.recurrent == sum(any(array.size == keeps for array in arrays) for arrays in states)


def test_all_parameters_are_counted(made: Made):
    facts = made.facts()
    counted = parameters(facts, shape(facts).layers)

    assert counted
    assert counted.total == sum(value.size for _, value in flat(made.model.parameters()))
    assert counted.spread in {1.0, 2.0}
    assert (counted.active < counted.text) is (counted.spread > 1 or "gemma3n" in made.config["model_type"])


def _packs(_: str, layer: Any) -> bool:
    """Return whether a layer can be packed in groups of 64."""
    return hasattr(layer, "to_quantized") and layer.weight.shape[-1] % 64 == 0


def published(name: str) -> RepoFacts:
    """Return what the files of a well-known model say, in four bits; nothing of its weights is made."""
    from mlx import nn
    from mlx_lm.utils import MODEL_REMAPPING

    config = json.loads(json.dumps(CONFIGS[name]))
    kind = config["model_type"]
    module = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(kind, kind)}")
    model = module.Model(module.ModelArgs.from_dict(json.loads(json.dumps(config))))
    packer: Any = nn
    packer.quantize(model, 64, 4, class_predicate=_packs)
    tied = kind.startswith("gemma3")  # mlx-lm makes a head for it, and drops it where the files have none
    types = {"uint32": "U32", "float32": "BF16", "bfloat16": "BF16"}
    tensors = {
        where: {"dtype": types[str(value.dtype).rpartition(".")[2]], "shape": list(value.shape)}
        for where, value in flat(model.parameters())
        if not (tied and "lm_head" in where)
    }
    quantized = CONFIGS[name] | {"quantization": {"group_size": 64, "bits": 4}}
    return RepoFacts(f"hub:someone/{name}", quantized, 1, tensors)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_described_model_is_the_catalog_s_own(name: str):
    """Geometry to the last number; parameters as near as the makers' round numbers are, which leave some out."""
    made, known = describe(published(name)).model, entries()[name]

    assert (made.attention, made.layers, made.hidden_size) == (known.attention, known.layers, known.hidden_size)
    assert (made.context, made.architecture, made.moe) == (known.context, known.architecture, known.moe)
    assert made.expert_spread == pytest.approx(known.expert_spread, rel=0.01)
    if not known.vision or known.text_params_b != known.total_params_b:
        assert made.text_params_b == pytest.approx(known.text_params_b, rel=0.05)
    assert 0.9 * known.active_params_b <= made.active_params_b <= 1.5 * known.active_params_b
    assert made.input_params_b == pytest.approx(known.input_params_b, rel=0.02, abs=0.01)
