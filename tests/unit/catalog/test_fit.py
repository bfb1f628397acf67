"""Memory is counted layer by layer, and its parts are told apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.fit import cache_bytes, memory, token_bytes
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
    assert need.total == need.weights + need.kv + need.prefill + need.overhead
    assert 1.0e9 < need.kv < 1.3e9
    assert need.prefill == 1024 * 4096 * 350


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
    states = told.recurrent * 1024 * model.hidden_size

    assert cache_bytes(model, context) <= classic + states
