"""Memory is counted layer by layer, and its parts are told apart."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.fit import (
    PREFILL_STEP,
    SCORE_ROOM,
    SMALL_STEP,
    cache_bytes,
    memory,
    peak,
    query_heads,
    reading_bytes,
    score_bytes,
    step_for,
    token_bytes,
)
from catalog.load import entries
from catalog.model import Model

KNOWN = entries()
MODELS = st.sampled_from(sorted(KNOWN.values(), key=lambda model: model.id))
CONTEXTS = st.integers(1, 1 << 20)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3-8b", 147_456),  # every layer
        ("qwen3.5-9b", 32_768),  # one layer in four
        ("gemma-3-27b", 81_920),  # one in six
        ("gemma-4-31b", 81_920),  # one in six, with heads of their own
        ("gpt-oss-20b", 24_576),  # every second
        ("glm-4.7-flash", 54_144),  # a latent of 512 + 64 values
        ("nemotron-3-nano-30b-a3b", 6_144),  # six of 52
        ("llama-3.3-70b", 327_680),
    ],
)
def test_a_token_costs_what_the_layers_keep(name: str, expected: int):
    """The figures are those of the models' own config.json files, in 16 bits."""
    assert expected == token_bytes(KNOWN[name].attention)


def test_sliding_layers_stop_at_their_window():
    """Gemma 3 27B at 32K keeps 3.12 GB, of which 0.44 GB is windows."""
    model = KNOWN["gemma-3-27b"]

    assert cache_bytes(model, 32_768) == 436_207_616 + 32_768 * 81_920
    assert cache_bytes(model, 100) == 100 * (81_920 + 52 * 8192)


def test_layers_that_reuse_anothers_cache_keep_none():
    """Gemma 4 E2B: only the first 15 of its 35 layers have a cache (mlx-lm gemma4_text.make_cache)."""
    told = KNOWN["gemma-4-e2b"].attention

    assert (told.full, told.sliding) == (3, 12)


def test_the_published_peak_of_a_27b_is_met():
    """Rapid-MLX measured about 20 GB for Qwen3.8-27B at 4 bits with a prompt of 8K."""
    need = memory(KNOWN["qwen3.8-27b"], "int4", 8192, prefill_step=2048)

    assert 19e9 < need.total < 22e9


def test_the_four_parts_are_told_apart():
    need = memory(KNOWN["qwen3.5-9b"], "int4", 32_768)

    assert need.weights == 5_950_000_000
    assert need.total == need.resident + need.prefill
    assert need.resident == need.weights + need.kv + need.overhead
    assert 1.0e9 < need.kv < 1.3e9
    assert need.prefill == reading_bytes(KNOWN["qwen3.5-9b"], "int4", 32_768, 1024)


@given(model=MODELS, context=CONTEXTS, requests=st.integers(1, 8))
def test_more_context_and_more_requests_never_need_less(model: Model, context: int, requests: int):
    quant = next(iter(model.quants))
    here = memory(model, quant, context, requests)

    assert here.total <= memory(model, quant, context + 1, requests).total
    assert requests * memory(model, quant, context, 1).kv == here.kv
    assert here.total <= memory(model, quant, context, requests + 1).total


@given(model=MODELS, context=CONTEXTS)
def test_an_estimate_never_exceeds_what_full_attention_would_keep(model: Model, context: int):
    """The classic formula overstates hybrid and sliding models; ours may never exceed it but for fixed states."""
    told = model.attention
    if told.latent or told.full_kv_heads:
        return
    classic = model.layers * 4 * told.kv_heads * told.head_dim * context
    states = told.recurrent * 512 * (told.recurrent_width or 2 * model.hidden_size)

    assert cache_bytes(model, context) <= classic + states


@pytest.mark.parametrize(
    ("name", "heads"),
    [("qwen3.8-27b", 24), ("qwen3.5-122b-a10b", 32), ("qwen3.5-4b", 16), ("gemma-4-31b", 32)],
)
def test_attention_that_is_not_fused_holds_a_score_for_each_pair_and_head(name: str, heads: int):
    """Chunk x context x query heads x 2 bytes, where MLX has no fused kernel for the size of the heads."""
    assert score_bytes(KNOWN[name], 65_536, 512) == 512 * 65_536 * heads * 2


@pytest.mark.parametrize("name", ["qwen3-8b", "gpt-oss-120b", "minimax-m2.5", "qwen3-coder-30b-a3b"])
def test_fused_attention_holds_none(name: str):
    assert score_bytes(KNOWN[name], 65_536, 512) == 0


def test_a_hybrid_keeps_the_states_that_were_measured():
    """One entry of Qwen3.8 27B holds 48 states, 146 MiB, before its first token."""
    assert round(cache_bytes(KNOWN["qwen3.8-27b"], 0) / 2**20) == 144


@given(model=MODELS, context=st.integers(1024, 1 << 18))
def test_long_prompts_are_read_in_small_steps_where_the_scores_would_take_much_room(model: Model, context: int):
    step = step_for(model, context)

    assert step in {PREFILL_STEP, SMALL_STEP}
    assert step == SMALL_STEP or score_bytes(model, context, step) <= SCORE_ROOM
    for quant in model.quants:
        small = reading_bytes(model, quant, context, SMALL_STEP)
        assert small <= reading_bytes(model, quant, context, PREFILL_STEP)


@given(model=MODELS)
def test_a_file_without_query_heads_is_counted_with_the_most_that_such_a_model_has(model: Model):
    silent = dataclasses.replace(model, attention=dataclasses.replace(model.attention, query_heads=0))
    if model.attention.latent:
        return

    assert query_heads(silent) >= query_heads(model)


def test_every_shipped_model_names_its_query_heads_and_states():
    for model in KNOWN.values():
        assert model.attention.query_heads
        assert bool(model.attention.recurrent) == bool(model.attention.recurrent_width)


@pytest.mark.parametrize(
    ("name", "quant", "context", "step", "measured"),
    [
        ("qwen3.6-35b-a3b", "int4", 8_192, 2048, 21.7),
        ("qwen3.6-35b-a3b", "int4", 196_608, 2048, 38.0),
        ("qwen3.6-35b-a3b", "int8", 196_608, 2048, 55.3),
        ("qwen3.5-4b", "int4", 98_304, 2048, 13.83),
        ("qwen3.5-4b", "int4", 98_304, 512, 9.81),
        ("llama-3.1-8b", "int4", 131_072, 2048, 23.1),
        ("gemma-4-e2b", "int4", 4_096, 2048, 3.65),
        ("glm-4.7-flash", "int4", 1_024, 2048, 17.63),
    ],
)  # fmt: skip
def test_published_peaks_are_met(name: str, quant: str, context: int, step: int, measured: float):
    """Within 12 %, none under by more than 8 %; the sources are in benchmarks/data/peaks*.csv."""
    told = peak(KNOWN[name], quant, context, step) / 1e9 / measured - 1

    assert -0.08 <= told <= 0.12
