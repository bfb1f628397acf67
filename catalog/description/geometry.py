"""The shape of a model: what its layers keep of a prompt, and how wide they are, from config.json and the headers."""

from __future__ import annotations

import re
from collections.abc import Mapping

from catalog.description.layers import Keeps, kept, layer_count
from catalog.description.repo_facts import Config, RepoFacts, Tensors, count, lengths, part, text_of, type_of
from catalog.fit import STATE_SIZE
from catalog.model import Attention
from state.classes import dataclass

HIDDEN = ("hidden_size", "n_embd", "d_model", "model_dim", "hidden_dim")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_query_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "num_attention_groups", "multi_query_group_num")
HEAD_SIZE = ("head_dim", "hidden_size_per_head", "kv_channels", "attention_head_dim")
WINDOW = ("sliding_window", "sliding_window_size", "attention_chunk_size", "attention_window_size")
CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "n_ctx",
    "model_max_length",
)
UNKNOWN_CONTEXT = 8_192
"""Tokens that are planned where config.json names no window."""
WINDOW_UNKNOWN = "its window"
ENDLESS_CONTEXT = 32_768
"""The same for a model whose layers keep one state alone: its prompts have no limit, only its training has."""
EXPANDED = frozenset({"deepseek_v2", "minicpm3", "youtu_llm"})
"""Families of which mlx-lm keeps the keys and values of every head, though the maker's code keeps one vector."""
DEFAULTS: Mapping[str, Config] = {
    "gemma3": {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131_072},
    "gemma4": {"num_attention_heads": 8, "head_dim": 256, "global_head_dim": 512, "sliding_window": 512},
    "gpt_oss": {"head_dim": 64, "sliding_window": 128},
    "cohere2": {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "sliding_window": 4096},
    "falcon_h1": {"head_dim": 64},
    "afmoe": {"head_dim": 64, "sliding_window": 2048},
    "lfm2": {"conv_L_cache": 3},
}
"""What mlx-lm takes for fields that published config.json files of a family leave out."""
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
KEYS = re.compile(r"\.(?:k_proj|wk|key)\.weight$")
QUERIES = re.compile(r"\.(?:q_proj|wq|query)\.weight$")
KEY_NORM = re.compile(r"\.(?:k_norm|k_layernorm|key_layernorm)\.weight$")
WIDTH = re.compile(r"(?:^|\.)(?:norm|ln_f|final_layernorm|norm_f|input_layernorm)\.weight$")


@dataclass(frozen=True)
class Geometry:
    """What memory and speed follow from besides the number of parameters."""

    layers: int
    hidden_size: int
    attention: Attention
    context: int
    architecture: str
    """As catalog/schema.py names them, without `-moe`."""
    unknown: tuple[str, ...] = ()
    """What neither config.json nor a header tells, and what is planned instead."""


class NoShape(ValueError):
    """Neither config.json nor the headers tell how many layers a model has, or how wide they are."""


def shape(facts: RepoFacts) -> Geometry:
    """Return the shape of a model. Raises NoShape."""
    family = type_of(facts.config)
    config = {**DEFAULTS.get(family, {}), **_told(text_of(facts.config), family)}
    layers = layer_count(config) or _layers_of(facts.tensors)
    hidden = count(config, *HIDDEN) or _width_of(facts.tensors)
    if not layers or not hidden:
        missing = "layers" if not layers else "hidden size"
        raise NoShape(f"config.json does not tell its {missing}")
    attention = _attention(config, kept(config, layers), hidden, facts.tensors)
    context, unknown = _context(config, attention)
    if not attention.query_heads and attention.full:
        unknown = (*unknown, "its query heads: the most that such a model has are planned")
    return Geometry(layers, hidden, attention, context, _architecture(config, layers), unknown)


def _told(config: Config, family: str) -> Config:
    """Return the fields that hold something; `model_type` is that of the family."""
    return {name: value for name, value in config.items() if value is not None} | {"model_type": family}


def _attention(config: Config, kinds: list[Keeps], hidden: int, tensors: Tensors) -> Attention:
    """Return what the layers keep, in numbers."""
    window = count(config, *WINDOW)
    full = sum(kind in {Keeps.ALL, Keeps.STATE_AND_ALL} or (kind is Keeps.WINDOW and not window) for kind in kinds)
    sliding = sum(kind is Keeps.WINDOW for kind in kinds) if window else 0
    recurrent = sum(kind in {Keeps.STATE, Keeps.STATE_AND_ALL} for kind in kinds)
    width, state = _recurrent(config, hidden) if recurrent else (0, 0)
    heads, size = _heads(config, hidden, tensors) if full or sliding else (0, 0)
    latent = _latent(config) if full else 0
    apart = _full_apart(config, heads, size) if full and sliding else (0, 0)
    return Attention(
        full=full,
        kv_heads=0 if latent else heads,
        head_dim=0 if latent else size,
        sliding=sliding,
        window=window if sliding else 0,
        recurrent=recurrent,
        full_kv_heads=apart[0],
        full_head_dim=apart[1],
        latent=latent,
        query_heads=_query_heads(config, size, tensors) if full or sliding else 0,
        recurrent_width=width,
        recurrent_state=0 if state == STATE_SIZE else state,
    )


def _heads(config: Config, hidden: int, tensors: Tensors) -> tuple[int, int]:
    """Return the heads of the cache and their size: of the sliding layers where the two kinds differ."""
    if count(config, "swa_num_key_value_heads"):
        return count(config, "swa_num_key_value_heads"), _mean(config, "swa_head_dim", "swa_v_head_dim")
    queries = count(config, *HEADS)
    even = hidden // queries if queries else 0
    if type_of(config) in EXPANDED:
        keys = count(config, "qk_nope_head_dim") + count(config, "qk_rope_head_dim")
        values = even if type_of(config) == "minicpm3" else count(config, "v_head_dim")
        return queries, (keys + (values or even)) // 2
    sliding = part(config, "attention_other_setting")
    kept_heads = 1 if config.get("multi_query") is True else count(sliding, *KV_HEADS) or count(config, *KV_HEADS)
    size = count(sliding, *HEAD_SIZE) or count(config, *HEAD_SIZE)
    rows = _rows(tensors, KEYS)
    size = size or (rows // kept_heads if kept_heads else 0) or even or _size_of(tensors) or hidden
    return kept_heads or (rows // size if rows else 0) or queries or 1, size


def _mean(config: Config, *names: str) -> int:
    """Return the mean of the sizes of keys and values, which differ in some families."""
    sizes = [size for name in names if (size := count(config, name))]
    return sum(sizes) // len(sizes) if sizes else 0


def _full_apart(config: Config, heads: int, size: int) -> tuple[int, int]:
    """Return heads and size of the full layers where they differ from those of the sliding ones; zeros elsewhere."""
    full_heads, full_size = heads, size
    if count(config, "global_head_dim"):
        full_heads = count(config, "num_global_key_value_heads") or heads
        full_size = count(config, "global_head_dim")
    elif count(config, "swa_num_key_value_heads"):
        full_heads, full_size = count(config, *KV_HEADS), _mean(config, "head_dim", "v_head_dim")
    elif part(config, "attention_other_setting"):
        full_heads, full_size = count(config, *KV_HEADS), count(config, *HEAD_SIZE) or size
    return (full_heads, full_size) if (full_heads, full_size) != (heads, size) else (0, 0)


def _latent(config: Config) -> int:
    """Return the values of a token's compressed cache in one layer; 0 where keys and values are kept."""
    rank, family = count(config, "kv_lora_rank"), type_of(config)
    if not rank or family in EXPANDED:
        return 0
    values = rank + count(config, "qk_rope_head_dim") + count(config, "index_head_dim")
    return 2 * values if family.startswith("longcat_flash") else values


def _query_heads(config: Config, size: int, tensors: Tensors) -> int:
    """Return the heads that ask in a full-attention layer; 0 where nothing tells."""
    return count(config, *HEADS) or (_rows(tensors, QUERIES) // size if size else 0)


def _recurrent(config: Config, hidden: int) -> tuple[int, int]:
    """Return the channels of one recurrent layer and the values that each keeps; zeros where nothing tells."""
    linear = part(config, "linear_attn_config")
    if linear:
        return count(linear, "num_heads") * count(linear, "head_dim"), count(linear, "head_dim")
    if count(config, "linear_num_value_heads"):
        values = count(config, "linear_num_value_heads") * count(config, "linear_value_head_dim")
        return values, count(config, "linear_key_head_dim")
    state = count(config, "ssm_state_size", "mamba_d_state", "state_size")
    for heads, size in (
        ("mamba_num_heads", "mamba_head_dim"),
        ("mamba_n_heads", "mamba_d_head"),
        ("num_heads", "head_dim"),
        ("mamba_num_heads", "hidden_size_per_head"),
    ):
        if state and count(config, heads) and count(config, size):
            return count(config, heads) * count(config, size), state
    if state:
        expanded = hidden * count(config, "mamba_expand")
        return count(config, "mamba_d_ssm") or expanded or count(config, "intermediate_size") or 2 * hidden, state
    family = type_of(config)
    if family == "recurrent_gemma":
        return count(config, "lru_width") or hidden, 1
    size = count(config, *HEAD_SIZE) or (hidden // count(config, *HEADS) if count(config, *HEADS) else 0)
    return (hidden, size) if family in {"rwkv7", "bailing_moe_linear"} else (0, 0)


def told_context(config: Config) -> int:
    """Return the tokens that a model was made for; 0 where config.json does not tell them."""
    return count(config, *CONTEXT)


def _context(config: Config, attention: Attention) -> tuple[int, tuple[str, ...]]:
    """Return the tokens that a model was made for, and what was not told."""
    if window := told_context(config):
        return window, ()
    planned = UNKNOWN_CONTEXT if attention.full else ENDLESS_CONTEXT
    return planned, (f"{WINDOW_UNKNOWN}: {planned // 1024}K are planned",)


def _architecture(config: Config, layers: int) -> str:
    """Return the catalog's word for how the layers are built."""
    kinds = set(kept(config, layers))
    if Keeps.STATE in kinds or Keeps.STATE_AND_ALL in kinds:
        mamba = count(config, "ssm_state_size", "mamba_d_state", "state_size")
        return "hybrid-mamba2" if mamba else "hybrid-linear"
    if Keeps.FEW in kinds:
        return "hybrid-conv"
    return "transformer-ple" if count(config, "hidden_size_per_layer_input") else "transformer"


def _layers_of(tensors: Tensors) -> int:
    """Return the number of layers that tensors are named after."""
    return max((int(match[1]) + 1 for name in tensors if (match := LAYER.search(name))), default=0)


def _width_of(tensors: Tensors) -> int:
    """Return the hidden size, which every norm has."""
    return _first(tensors, WIDTH, -1)


def _size_of(tensors: Tensors) -> int:
    """Return the size of a head, where it is normed by itself."""
    return _first(tensors, KEY_NORM, -1)


def _rows(tensors: Tensors, pattern: re.Pattern[str]) -> int:
    return _first(tensors, pattern, 0)


def _first(tensors: Tensors, pattern: re.Pattern[str], axis: int) -> int:
    """Return one length of the first tensor of such a name; 0 where there is none."""
    for name in sorted(tensors):
        if pattern.search(name) and (shape_of_tensor := lengths(tensors[name])):
            return shape_of_tensor[axis]
    return 0
