"""How much memory a model needs while it serves, part by part, and how far one prompt raises it."""

from __future__ import annotations

from catalog import images
from catalog.model import Attention, Model, Quant
from state.classes import dataclass

PREFILL_STEP, SMALL_STEP = 1024, 512
"""Tokens of a prompt that the engine works on at once. mlxq passes it; vllm-mlx by itself takes 2048, and 1024 for a
model that can see. Rapid-MLX measured 512 on a 4B and a 9B: at most 0.7 % slower, with 27 to 29 % less memory."""
SCORE_ROOM = 1 << 30
"""Bytes of attention scores from which a prompt is read in small steps."""
FUSED_HEADS = frozenset({64, 80, 128})
"""Head sizes for which MLX attends to a long prompt without writing the scores down. Others take `use_fallback` in
mlx/backend/metal/scaled_dot_product_attention.cpp ("Unfused path is faster ... query_head_dim == 256"); none is fused
at 512. An M5 fuses 256 in a causal chunk of 1024 tokens without an array mask, which a batching engine has, and peaks
measured on an M5 Max held the scores: so no chip is counted as fused at 256."""
CACHE_VALUE_BYTES = SCORE_BYTES = 2
"""The live cache and the scores are held in 16 bits, whatever the weights are."""
UNKNOWN_GROUP = 16
"""Query heads to a head of the cache, where a file names none: the most among the models of the catalog."""
MEASURED_STEP = 2048
"""Tokens of a chunk in the measurements behind the constants below: mlx-lm's default."""
STATE_SIZE, STATE_VALUE_BYTES = 128, 4
"""Values a channel of a recurrent state (Mamba-2 state, Gated DeltaNet key size), in 32 bits."""
UNKNOWN_WIDTH = 2
"""Channels of a recurrent layer for each of the hidden state, where a file names none: the usual expansion."""
GUESSED_SHARE, GUESSED_BYTES = 1.05, 2_000_000_000
LEAST_WINDOW = 2048
"""Tokens; no chat fits below."""
PROCESS_BYTES = 300_000_000
"""Python, MLX and vllm-mlx without torch: 287 MB resident with a 98 MB model loaded."""


@dataclass(frozen=True)
class Space:
    """The work space of one chunk of a prompt, beside attention's scores.

    MLX keeps what its running command buffers have written. A buffer is closed after 40 to 50 MB of input or as many
    operations (mlx/backend/metal/device.cpp), and only a few run at once: the space grows with the chunk up to
    `flight`, and is less by the share that weights have in what a layer reads.
    """

    flight: float
    """Bytes in flight where all that a layer reads are activations."""
    hidden: float
    """Bytes of a layer's activations, per token and value of the hidden state."""
    sparse: float
    """How many times the activations a layer of experts handles."""
    recurrent: float
    """Bytes per token and value that recurrent layers keep beside."""
    kept: float
    """Share of the whole model's activations that is kept at most: operations close a buffer too."""


SPACE = Space(flight=981e6, hidden=94.5, sparse=4.82, recurrent=112, kept=0.38)
"""Fitted by benchmarks/fit.py on benchmarks/data/peaks.csv, peaks of mlx-lm 0.30 to 0.31; `benchmarks/predict.py
--memory` says how far they are off."""


@dataclass(frozen=True)
class Memory:
    """The bytes of one engine, by what they are for."""

    weights: int
    kv: int
    """Cache of all running requests at full context."""
    prefill: int
    """Work space while one prompt of full length is read, or the images in it, which are read before it."""
    overhead: int
    """The process itself."""

    @property
    def resident(self) -> int:
        """What stays while no prompt is read."""
        return self.weights + self.kv + self.overhead

    @property
    def total(self) -> int:
        """All four together: the peak while a prompt of full length is read."""
        return self.resident + self.prefill


def memory(model: Model, quant: str, context: int, concurrency: int = 1, prefill_step: int = PREFILL_STEP) -> Memory:
    """Return what one engine needs, in bytes, with `concurrency` requests of `context` tokens, one of them being read.

    `prefill_step` is the size of a chunk of prompt in tokens. The weights are those of the whole folder, for an engine
    that serves a model with a vision tower loads it, or more where the loader unpacks them. Raises KeyError when the
    model has no such quant.
    """
    return Memory(
        weights=max(model.quants[quant].bytes, model.quants[quant].loaded),
        kv=concurrency * cache_bytes(model, context),
        prefill=max(reading_bytes(model, quant, context, prefill_step), image_bytes(model)),
        overhead=PROCESS_BYTES,
    )


def peak(model: Model, quant: str, context: int, prefill_step: int = MEASURED_STEP, space: Space = SPACE) -> int:
    """Return the peak that MLX reports for one request of text: no vision tower, no process beside it.

    This is what benchmarks publish (`mx.get_peak_memory`). Where attention is unfused, the engines that published
    long prompts also stored them: a copy of the cache, after the scores are gone; the larger of the two counts. In a
    plan that copy is part of the cache for prompts. Raises KeyError when the model has no such quant.
    """
    cache, reading = cache_bytes(model, context), reading_bytes(model, quant, context, prefill_step, space)
    if scores := score_bytes(model, context, min(context, prefill_step)):
        reading += max(0, cache - scores)
    return text_bytes(model, quant) + cache + reading


def text_bytes(model: Model, quant: str) -> int:
    """Return the bytes of the weights that text needs. Raises KeyError when the model has no such quant."""
    conversion = model.quants[quant]
    return conversion.loaded or conversion.bytes - model.tower_bytes


def reading_bytes(model: Model, quant: str, context: int, prefill_step: int, space: Space = SPACE) -> int:
    """Return how far the reading of a prompt of `context` tokens raises the memory, in chunks of `prefill_step`.

    Where attention is unfused, the last chunk writes a score for each of its tokens, each earlier one and each head.
    Elsewhere one layer's cache is copied as it grows: llama-3.1-8b peaked one layer and 0.6 GB over weights and cache
    from 1K to 128K (guruswami-ai/mlx-benchmarks). Raises KeyError when the model has no such quant.
    """
    chunk = min(context, prefill_step)
    beside = cache_bytes(model, context) // max(1, model.attention.full)
    return _work_bytes(model, quant, chunk, space) + (score_bytes(model, context, chunk) or beside)


def image_bytes(model: Model) -> int:
    """Return how far the images of a request raise the memory of a model that sees; 0 for one that does not.

    A tower passes all patches at once: 16,384 for the most pixels of a request. One of Qwen 3.5's width (1152) writes
    some 100 KB a patch and layer, as SPACE has it for any layer, so that what is in flight bounds it.
    """
    return int(SPACE.flight) + images.room_bytes() if model.vision else 0


def _work_bytes(model: Model, quant: str, chunk: int, space: Space) -> int:
    """Return the work space of one chunk beside attention's scores."""
    width = recurrent_width(model) if model.attention.recurrent else 0
    layer = space.hidden * model.hidden_size * chunk * (space.sparse if model.moe else 1)
    share = layer / (layer + text_bytes(model, quant) / model.layers)
    return int(min(space.flight * share, space.kept * model.layers * layer) + space.recurrent * width * chunk)


def score_bytes(model: Model, context: int, chunk: int) -> int:
    """Return the bytes of attention scores while the last `chunk` of `context` tokens is read; 0 where none is kept."""
    layers = model.attention
    if not layers.full or (not layers.latent and (layers.full_head_dim or layers.head_dim) in FUSED_HEADS):
        return 0
    return chunk * context * query_heads(model) * SCORE_BYTES


def query_heads(model: Model) -> int:
    """Return the heads that ask in a full-attention layer; a cautious guess where the file does not say."""
    layers = model.attention
    kv_heads = layers.full_kv_heads or layers.kv_heads
    return layers.query_heads or UNKNOWN_GROUP * max(1, kv_heads)


def recurrent_width(model: Model) -> int:
    """Return the channels of a recurrent layer; a cautious guess where the file does not say."""
    return model.attention.recurrent_width or UNKNOWN_WIDTH * model.hidden_size


def step_for(model: Model, context: int) -> int:
    """Return the chunk in which prompts of up to `context` tokens are read: small where scores would take much room."""
    return PREFILL_STEP if score_bytes(model, context, PREFILL_STEP) <= SCORE_ROOM else SMALL_STEP


def cache_bytes(model: Model, context: int) -> int:
    """Return the bytes one request of `context` tokens keeps: each kind of layer counted for what it keeps."""
    layers = model.attention
    tokens = token_bytes(layers) * context
    window = layers.sliding * _pair(layers.kv_heads, layers.head_dim) * min(context, layers.window)
    state = STATE_VALUE_BYTES * (layers.recurrent_state or STATE_SIZE) * recurrent_width(model)
    return tokens + window + layers.recurrent * state


def token_bytes(layers: Attention) -> int:
    """Return the bytes each further token adds: only full-attention layers grow with the context."""
    return token_values(layers) * CACHE_VALUE_BYTES


def token_values(layers: Attention) -> int:
    """Return the values each further token adds to the cache, over all layers whose cache grows."""
    if layers.latent:
        return layers.full * layers.latent
    return 2 * layers.full * (layers.full_kv_heads or layers.kv_heads) * (layers.full_head_dim or layers.head_dim)


def _pair(heads: int, size: int) -> int:
    """Return the bytes of the keys and values of one token in one layer."""
    return 2 * heads * size * CACHE_VALUE_BYTES


def windows(model: Model) -> tuple[int, ...]:
    """Return the windows that a model can be served with, in tokens: doublings from LEAST_WINDOW, and its own."""
    doublings = (LEAST_WINDOW << step for step in range(model.context.bit_length()))
    return tuple(sorted({min(window, model.context) for window in doublings}))


def longest_window(model: Model, quant: str, limit: int) -> int:
    """Return the longest window with which a model alone takes no more than `limit` bytes; 0 where none does.

    Raises KeyError when the model has no such quant.
    """
    fitting = (w for w in windows(model) if memory(model, quant, w, 1, step_for(model, w)).total <= limit)
    return max(fitting, default=0)


def guessed_bytes(weights_bytes: int) -> int:
    """Return what serving weights of this size may take, with one request of 8K, where nothing but the size is known.

    97 % of the quants of the catalog take no more by `memory`.
    """
    return int(GUESSED_SHARE * weights_bytes) + GUESSED_BYTES


def smallest(model: Model) -> Quant:
    """Return the conversion with the fewest bytes."""
    return min(model.quants.values(), key=lambda quant: quant.bytes)
