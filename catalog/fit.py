"""How much memory a model needs while it serves: four parts, told apart."""

from __future__ import annotations

from dataclasses import dataclass

from catalog.model import Attention, Model, Quant

PREFILL_STEP = 1024
"""Tokens of a prompt that the engine works on at once. mlxq passes it; vllm-mlx by itself takes 2048, and 1024 for a
model that can see."""
CACHE_VALUE_BYTES = 2
"""The live cache is held in 16 bits, whatever the weights are."""
PREFILL_BYTES = 350
"""Bytes a token of the chunk and value of the hidden state. Rapid-MLX: a 4B model peaks at 18.6 GB with
chunks of 16384 and at 5.6 GB with 2048, which is 354; 282 peaks of weklund-agent/mlx_transformers_benchmark
agree (1.24 GB over weights and cache at 1K tokens, 2.11 GB at 4K)."""
STATE_SIZE = 128
"""Values a channel of a recurrent state (Mamba-2 state, Gated DeltaNet key size)."""
STATE_CHANNELS = 2
"""Channels of a recurrent layer for each of the hidden state; the usual expansion, an upper bound for
DeltaNet."""
STATE_VALUE_BYTES = 4
PROCESS_BYTES = 300_000_000
"""Python, MLX and vllm-mlx without torch: 287 MB resident with a 98 MB model loaded."""
WEIGHTS_SLACK = 0.05
"""Buffers MLX keeps beside the weights; part of the rule weights x 1.05 fitted on the same 282 peaks."""


@dataclass(frozen=True)
class Memory:
    """The bytes of one engine, by what they are for."""

    weights: int
    kv: int
    """Cache of all running requests at full context."""
    prefill: int
    """Work space while a prompt is read."""
    overhead: int
    """The process itself and the buffers it keeps."""

    @property
    def total(self) -> int:
        """All four together."""
        return self.weights + self.kv + self.prefill + self.overhead


def memory(model: Model, quant: str, context: int, concurrency: int = 1, prefill_step: int = PREFILL_STEP) -> Memory:
    """Say what one engine needs, in bytes, with `concurrency` requests of `context` tokens each.

    `prefill_step` is the size of a chunk of prompt in tokens.
    Raises KeyError when the model has no such quant.
    """
    weights = model.quants[quant].bytes
    chunk = min(context, prefill_step)
    return Memory(
        weights=weights,
        kv=concurrency * cache_bytes(model, context),
        prefill=chunk * model.hidden_size * PREFILL_BYTES,
        overhead=PROCESS_BYTES + int(weights * WEIGHTS_SLACK),
    )


def cache_bytes(model: Model, context: int) -> int:
    """Give the bytes one request of `context` tokens keeps: each kind of layer counted for what it keeps."""
    told = model.attention
    tokens = token_bytes(told) * context
    window = told.sliding * _pair(told.kv_heads, told.head_dim) * min(context, told.window)
    state = STATE_VALUE_BYTES * STATE_SIZE * STATE_CHANNELS * model.hidden_size
    return tokens + window + told.recurrent * state


def token_bytes(told: Attention) -> int:
    """Give the bytes each further token adds: only full-attention layers grow with the context."""
    if told.latent:
        return told.full * told.latent * CACHE_VALUE_BYTES
    return told.full * _pair(told.full_kv_heads or told.kv_heads, told.full_head_dim or told.head_dim)


def _pair(heads: int, size: int) -> int:
    """Bytes of the keys and values of one token in one layer."""
    return 2 * heads * size * CACHE_VALUE_BYTES


def smallest(model: Model) -> Quant:
    """Give the conversion with the fewest bytes."""
    return min(model.quants.values(), key=lambda quant: quant.bytes)
