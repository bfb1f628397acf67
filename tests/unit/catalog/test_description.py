"""Models that are in no catalog: what their files tell is taken, what they do not tell is planned with the most."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.published_configs import CONFIGS

from catalog.description.describe import NoShape, describe, model_id
from catalog.description.quantization import quant_of
from catalog.description.repo_facts import RepoFacts
from catalog.fit import UNKNOWN_GROUP, cache_bytes, memory, query_heads, score_bytes
from catalog.load import entries
from catalog.model import Model
from catalog.quality import quality, worth
from catalog.schema import faults

PLAIN: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


def tensor(kind: str, *shape: int) -> dict[str, Any]:
    return {"dtype": kind, "shape": list(shape), "data_offsets": [0, 0]}


def facts(config: dict[str, Any], *, source: str = "hub:someone/Some_Model-4bit", **more: Any) -> RepoFacts:
    return RepoFacts(source, config, more.pop("weights_bytes", 10_000_000), **more)


def described(config: dict[str, Any], **more: Any) -> Model:
    return describe(facts(config, **more)).model


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_what_is_described_is_a_valid_model_file(name: str):
    row = describe(facts(CONFIGS[name])).row

    assert list(faults(row)) == []


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_memory_is_planned_as_for_the_catalog_s_own_entry(name: str):
    """Within 12 % where the weights are those of the entry: at 8K and at the whole window."""
    known = entries()[name]
    for conversion in known.quants.values():
        made = describe(facts(CONFIGS[name], weights_bytes=conversion.bytes))
        for context in (8192, known.context):
            planned = memory(made.model, made.quant, context).total
            assert planned == pytest.approx(memory(known, conversion.name, context).total, rel=0.12)


def test_an_unrated_model_says_so_and_never_beats_a_rated_one():
    made = describe(facts(PLAIN, weights_bytes=400_000_000_000))

    assert str(quality(made.model)) == "unrated"
    assert worth(made.model, made.quant) < 3


def test_a_model_without_headers_is_planned_as_if_a_token_passed_all_of_it():
    mixture = CONFIGS["qwen3-30b-a3b-2507"] | {"quantization": {"bits": 4, "group_size": 64}}
    made = describe(facts(mixture, weights_bytes=17_200_000_000))

    assert made.model.active_params_b == made.model.total_params_b == pytest.approx(30.5, rel=0.02)
    assert any("parameters" in words for words in made.unknown)


def test_a_missing_window_is_small_and_said():
    made = describe(facts({name: value for name, value in PLAIN.items() if name != "max_position_embeddings"}))

    assert made.model.context == 8192
    assert "its window: 8K are planned" in made.unknown
    assert "8K are planned" in made.model.note


def test_missing_heads_come_from_the_headers():
    """64 keys of two heads of 32; a norm of 32 says how large one is."""
    bare = {"model_type": "llama", "num_hidden_layers": 2, "max_position_embeddings": 4096}
    tensors = {
        "model.layers.0.input_layernorm.weight": tensor("BF16", 96),
        "model.layers.0.self_attn.k_proj.weight": tensor("BF16", 64, 96),
        "model.layers.0.self_attn.q_proj.weight": tensor("BF16", 256, 96),
        "model.layers.0.self_attn.k_norm.weight": tensor("BF16", 32),
    }
    made = described(bare, tensors=tensors)

    assert (made.hidden_size, made.attention.kv_heads, made.attention.head_dim) == (96, 2, 32)
    assert made.attention.query_heads == 8


def test_missing_query_heads_are_planned_with_the_most():
    bare = {name: value for name, value in PLAIN.items() if name != "num_attention_heads"} | {"head_dim": 256}
    made = describe(facts(bare))

    assert made.model.attention.query_heads == 0
    assert query_heads(made.model) == UNKNOWN_GROUP * 2
    assert any("query heads" in words for words in made.unknown)


def test_layers_are_counted_by_the_names_of_tensors():
    bare = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
    tensors = {f"model.layers.{at}.mlp.up_proj.weight": tensor("BF16", 8, 64) for at in range(3)}

    assert described(bare, tensors=tensors).layers == 3
    with pytest.raises(NoShape, match="layers"):
        describe(facts(bare))


def test_a_model_of_states_alone_needs_no_more_at_a_longer_prompt():
    made = described(
        {
            "model_type": "mamba",
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "state_size": 16,
            "intermediate_size": 128,
        }
    )

    assert cache_bytes(made, 1_000) == cache_bytes(made, 30_000) == 4 * 4 * 16 * 128
    assert score_bytes(made, 30_000, 1024) == 0
    assert made.context == 32_768


MLX4 = {"group_size": 64, "bits": 4}


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({}, "bf16"),
        ({"torch_dtype": "float16"}, "fp16"),
        ({"quantization": MLX4}, "int4"),
        ({"quantization": MLX4 | {"bits": 8}}, "int8"),
        ({"quantization": MLX4 | {"model.layers.0.mlp.up_proj": {"bits": 8, "group_size": 64}}}, "int4"),
        ({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}, "mxfp4"),
        ({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4", "lm_head": {"bits": 8}}}, "mxfp4-q8"),
        ({"quantization": {"group_size": 16, "bits": 4, "mode": "nvfp4"}}, "nvfp4"),
        ({"quantization": {"group_size": 32, "bits": 8, "mode": "mxfp8"}}, "mxfp8"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "int4"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "int4"),
        ({"quantization_config": {"quant_method": "bitnet"}}, "int2"),
        ({"quantization_config": {"quant_method": "fp8"}}, "bf16"),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
                }
            },
            "int4",
        ),
        ({"text_config": PLAIN | {"quantization": MLX4}}, "int4"),
    ],
)
def test_the_quant_is_what_the_loader_reads(more: dict[str, Any], name: str):
    assert quant_of(facts(PLAIN | more)) == name


def test_packed_weights_are_counted_unpacked():
    """Four bits of MLX, of AWQ, and of gpt-oss as it was published: each holds 64 x 128."""
    mlx = {
        "model.layers.0.mlp.up_proj.weight": tensor("U32", 64, 16),
        "model.layers.0.mlp.up_proj.scales": tensor("BF16", 64, 2),
        "model.layers.0.mlp.up_proj.biases": tensor("BF16", 64, 2),
    }
    awq = {
        "model.layers.0.mlp.up_proj.qweight": tensor("I32", 128, 8),
        "model.layers.0.mlp.up_proj.qzeros": tensor("I32", 1, 8),
        "model.layers.0.mlp.up_proj.scales": tensor("F16", 1, 64),
    }
    blocks = {
        "model.layers.0.mlp.up_proj_blocks": tensor("U8", 64, 4, 16),
        "model.layers.0.mlp.up_proj_scales": tensor("U8", 64, 4),
    }
    for config, tensors in (
        ({"quantization": MLX4}, mlx),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, awq),
        ({"quantization_config": {"quant_method": "mxfp4"}}, blocks),
    ):
        assert described(PLAIN | config, tensors=tensors).total_params_b == round(64 * 128 / 1e9, 6)


def test_experts_towers_tables_and_drafts_are_told_apart():
    million = (1000, 1000)
    tensors = {
        "model.embed_tokens.weight": tensor("BF16", *million),
        "lm_head.weight": tensor("BF16", *million),
        "model.layers.0.mlp.switch_mlp.up_proj.weight": tensor("BF16", 8, *million),
        "model.layers.0.mlp.shared_experts.up_proj.weight": tensor("BF16", *million),
        "model.layers.2.mlp.up_proj.weight": tensor("BF16", *million),
        "mtp.layers.0.up_proj.weight": tensor("BF16", *million),
        "vision_tower.blocks.0.weight": tensor("BF16", *million),
    }
    experts: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "vision_config": {}}
    made = described(PLAIN | experts, tensors=tensors, weights_bytes=28_000_000)

    assert made.total_params_b == 0.014
    assert made.text_params_b == 0.011  # without tower and two draft layers
    assert made.active_params_b == 0.005  # two of eight experts
    assert made.expert_spread == 4
    assert made.tower_bytes == 2_000_000
    assert made.quants["bf16"].loaded == 28_000_000 - 3 * 2_000_000
    assert made.vision
    assert made.moe


def test_eight_bits_that_the_loader_unpacks_take_their_memory_unpacked():
    config = PLAIN | {"quantization_config": {"quant_method": "fp8"}}
    tensors = {"model.layers.0.mlp.up_proj.weight": tensor("F8_E4M3", 1000, 1000)}
    made = described(config, tensors=tensors, weights_bytes=1_000_000)

    assert memory(made, "bf16", 1000).weights == 2_000_000


def test_pictures_need_a_tower_that_is_there():
    """Some conversions keep vision_config and leave the tower out."""
    text_only = {"model.layers.0.mlp.up_proj.weight": tensor("BF16", 8, 8)}

    assert described(PLAIN | {"vision_config": {}}).vision
    assert not described(PLAIN | {"vision_config": {}}, tensors=text_only).vision


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hub:mlx-community/Some_Model-4bit", "mlx-community-some-model-4bit"),
        ("hub:someone/Model@abc/def", "someone-model"),
        ("hub:someone/Model#int4", "someone-model"),
        ("file:/models/My Model", "my-model"),
        ("file:/models/___", "model"),
        (f"hub:someone/{'x' * 90}", "someone-" + "x" * 52),
    ],
)
def test_ids_are_plain(source: str, name: str):
    assert model_id(source) == name


NAMES = ("llama", "qwen3_5", "gemma4", "nemotron_h", "kimi_linear", "step3p5", "deepseek_v3", "never-heard-of")
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(name=st.sampled_from(sorted(CONFIGS)), kind=st.sampled_from(NAMES), data=st.data())
def test_a_config_of_any_shape_is_described_or_refused(name: str, kind: str, data: st.DataObject):
    """Fields taken away or replaced by anything: what comes out is a valid model file, or NoShape."""
    config: dict[str, Any] = copy.deepcopy(CONFIGS[name])
    for part in (config, config.get("text_config", {})):
        for field in data.draw(st.lists(st.sampled_from(sorted(part)), max_size=4)) if part else []:
            part[field] = data.draw(JUNK)
    if data.draw(st.booleans()):
        config["model_type"] = kind
    try:
        row = describe(facts(config)).row
    except NoShape:
        return

    assert list(faults(row)) == []
