"""What each layer of a model keeps of a prompt, in the order of the layers, read from config.json.

The rules are those of mlx-lm's `make_cache`, not of the maker's own code: what the loader keeps is what takes memory.
A test holds every family against the cache that the installed mlx-lm really makes. A family that is not listed is
read by the fields that many share, and counts sliding layers as full ones, since its loader may ignore the window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from catalog.description.repo_facts import Config, count, numbers, part, parts, text, type_of, words


class Keeps(StrEnum):
    """What one layer keeps."""

    ALL = "all"  # keys and values of every token
    WINDOW = "window"  # those of the last tokens only
    STATE = "state"  # one state of fixed size
    FEW = "few"  # the last two or three inputs of a convolution
    STATE_AND_ALL = "state and all"  # a state beside the keys and values
    NOTHING = "nothing"  # a layer without attention, or one that reads the cache of an earlier layer


LAYER_COUNT = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers")
MOST_LAYERS = 2000
"""A model has fewer; a number above is no number of layers."""
WORDS = (
    ("nothing", Keeps.NOTHING),
    ("mlp", Keeps.NOTHING),
    ("moe", Keeps.NOTHING),
    ("conv", Keeps.FEW),
    ("linear", Keeps.STATE),
    ("mamba", Keeps.STATE),
    ("recurrent", Keeps.STATE),
    ("ssm", Keeps.STATE),
    ("rwkv", Keeps.STATE),
    ("sliding", Keeps.WINDOW),
    ("chunked", Keeps.WINDOW),
    ("local", Keeps.WINDOW),
)
"""Parts of the words that `layer_types` uses, and what such a layer keeps; all others keep everything."""
MARKS = {"M": Keeps.STATE, "*": Keeps.ALL, "-": Keeps.NOTHING, "E": Keeps.NOTHING}
"""The letters of `hybrid_override_pattern`."""


def layer_count(config: Config) -> int:
    """Return the number of layers; 0 where config.json does not tell it."""
    layers = count(config, *LAYER_COUNT) or len(words(config, "layer_types"))
    return layers if layers <= MOST_LAYERS else 0


def kept(config: Config, layers: int) -> list[Keeps]:
    """Return what each of `layers` layers keeps. `config` is the part of a config.json that writes."""
    kind = type_of(config)
    read = FAMILIES.get(kind, _shared)
    kinds = read(config, layers) or _shared(config, layers)
    slides = kind in SLIDE
    return [Keeps.ALL if keeps is Keeps.WINDOW and not slides else keeps for keeps in kinds]


def _shared(config: Config, layers: int) -> list[Keeps]:
    """Read the fields that many families share."""
    pattern = text(config, "hybrid_override_pattern")
    if pattern:
        return [MARKS.get(mark, Keeps.ALL) for mark in pattern]
    if kinds := _named(words(config, "layer_types", "layers_block_type")):
        return kinds
    every = count(config, "full_attention_interval")
    if every > 1:
        return [Keeps.ALL if (at + 1) % every == 0 else Keeps.STATE for at in range(layers)]
    return [Keeps.ALL] * layers


def _named(names: Sequence[str]) -> list[Keeps]:
    """Return what layers of these words keep."""
    return [next((keeps for mark, keeps in WORDS if mark in name.lower()), Keeps.ALL) for name in names]


def _every(all_at: int, *, other: Keeps = Keeps.WINDOW) -> Callable[[Config, int], list[Keeps]]:
    """Return a reader for families in which each `all_at`-th layer keeps everything where nothing else is said."""

    def read(config: Config, layers: int) -> list[Keeps]:
        every = count(config, "sliding_window_pattern") or all_at
        if named := words(config, "layer_types"):
            return _named(named)
        return [Keeps.ALL if at % every == every - 1 else other for at in range(layers)]

    return read


def _all_of(keeps: Keeps) -> Callable[[Config, int], list[Keeps]]:
    return lambda _, layers: [keeps] * layers


def _window_named(config: Config, layers: int) -> list[Keeps]:
    """Read layer_types where there is a window, else let all keep everything."""
    return _named(words(config, "layer_types")) if _window(config) else [Keeps.ALL] * layers


def _alternate(config: Config, layers: int) -> list[Keeps]:
    """Return layers of which the first slides, the second does not, and so on, unless their types are named."""
    named = words(config, "layer_types")
    return _named(named) if named else [Keeps.ALL if at % 2 else Keeps.WINDOW for at in range(layers)]


def _sharing(config: Config, layers: int) -> list[Keeps]:
    """Read Gemma 3n and 4, whose last layers use the cache of earlier ones."""
    own = layers - count(config, "num_kv_shared_layers")
    kinds = _every(5)(config, layers)
    return [keeps if at < own else Keeps.NOTHING for at, keeps in enumerate(kinds)]


def _exaone(config: Config, layers: int) -> list[Keeps]:
    """Read EXAONE 4, whose pattern is a word such as LLLG."""
    pattern = text(config, "sliding_window_pattern")
    if not pattern or not _window(config):
        return [Keeps.ALL] * layers
    return [Keeps.WINDOW if pattern[at % len(pattern)] == "L" else Keeps.ALL for at in range(layers)]


def _mimo(config: Config, layers: int) -> list[Keeps]:
    return [Keeps.WINDOW if mark == 1 else Keeps.ALL for mark in numbers(config, "hybrid_layer_pattern")][:layers]


def _baichuan(config: Config, layers: int) -> list[Keeps]:
    sliding = set(numbers(config, "sliding_window_layers"))
    return [Keeps.WINDOW if at in sliding else Keeps.ALL for at in range(layers)]


def _kimi_linear(config: Config, layers: int) -> list[Keeps]:
    """Read Kimi Linear, which counts its layers from 1."""
    linear = set(numbers(part(config, "linear_attn_config"), "kda_layers"))
    return [Keeps.STATE if at + 1 in linear else Keeps.ALL for at in range(layers)]


def _lfm(config: Config, layers: int) -> list[Keeps]:
    full = set(numbers(config, "full_attn_idxs"))
    if not full:
        return _named(words(config, "layer_types"))
    return [Keeps.ALL if at in full else Keeps.FEW for at in range(layers)]


def _jamba(config: Config, layers: int) -> list[Keeps]:
    period, offset = count(config, "attn_layer_period") or 8, count(config, "attn_layer_offset")
    named = words(config, "layers_block_type")
    return _named(named) or [Keeps.ALL if at % period == offset else Keeps.STATE for at in range(layers)]


def _plamo(config: Config, layers: int) -> list[Keeps]:
    """Read PLaMo 2: one attention in `mamba_step` layers, in the middle of each group."""
    step = count(config, "mamba_step") or 2
    if config.get("mamba_enabled") is False:
        return [Keeps.ALL] * layers
    if layers <= step // 2:
        return [Keeps.STATE] * (layers - 1) + [Keeps.ALL]
    return [Keeps.ALL if at % step == step // 2 else Keeps.STATE for at in range(layers)]


def _griffin(config: Config, layers: int) -> list[Keeps]:
    """Read RecurrentGemma, whose attention slides always."""
    blocks = words(config, "block_types", "_block_types") or ("recurrent", "recurrent", "attention")
    kinds = [Keeps.STATE if block == "recurrent" else Keeps.WINDOW for block in blocks]
    return [kinds[at % len(kinds)] for at in range(layers)]


def _ling(config: Config, layers: int) -> list[Keeps]:
    """Read Ring and Ling with linear attention: the last layer of each group, and what no group holds, keeps all."""
    group = count(config, "layer_group_size") or 1
    whole = layers // group * group
    return [Keeps.ALL if (at + 1) % group == 0 or at >= whole else Keeps.STATE for at in range(layers)]


def _nas(config: Config, _: int) -> list[Keeps]:
    """Read Nemotron NAS, whose blocks may have no attention."""
    attentions = [part(block, "attention") for block in parts(config.get("block_configs"))]
    idle = [bool(attention.get("no_op") or attention.get("replace_with_linear")) for attention in attentions]
    return [Keeps.NOTHING if none else Keeps.ALL for none in idle]


def _window(config: Config) -> int:
    return count(config, "sliding_window")


FAMILIES: Mapping[str, Callable[[Config, int], list[Keeps]]] = {
    "gemma3": _every(6),
    "gemma3n": _sharing,
    "gemma4": _sharing,
    "gemma4_unified": _sharing,
    "cohere2": _every(4),
    "olmo3": _every(4),
    "llama4": _every(4),
    "exaone4": _exaone,
    "gpt_oss": _alternate,
    "step3p5": _alternate,
    "llama": _window_named,
    "mistral": _window_named,
    "ministral3": _window_named,
    "mimo_v2_flash": _mimo,
    "baichuan_m1": _baichuan,
    "recurrent_gemma": _griffin,
    "kimi_linear": _kimi_linear,
    "lfm2": _lfm,
    "lfm2_moe": _lfm,
    "jamba": _jamba,
    "plamo2": _plamo,
    "bailing_moe_linear": _ling,
    "nemotron-nas": _nas,
    "falcon_h1": _all_of(Keeps.STATE_AND_ALL),
    "mamba": _all_of(Keeps.STATE),
    "mamba2": _all_of(Keeps.STATE),
    "falcon_mamba": _all_of(Keeps.STATE),
    "rwkv7": _all_of(Keeps.STATE),
}
"""What reads the layers of a family whose rule is its own."""
SLIDE = frozenset(
    {
        *("gemma3", "gemma3n", "gemma4", "gemma4_unified", "cohere2", "olmo3", "llama4", "exaone4", "exaone_moe"),
        *("gpt_oss", "step3p5", "llama", "mistral", "ministral3", "mimo_v2_flash", "baichuan_m1", "recurrent_gemma"),
        "afmoe",
    }
)
"""Families of which the loader keeps no more than the window; others keep every token whatever config.json says."""
