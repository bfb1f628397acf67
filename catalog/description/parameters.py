"""How many parameters a model has, and which of them a token of text passes, from the headers of its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from catalog.description.repo_facts import Config, RepoFacts, Tensors, count, lengths, part, parts, text_of
from state.classes import dataclass

WORD_BITS = 32
TOWER = re.compile(
    r"(?:^|\.)(?:vision_\w+|visual|audio_\w+|embed_vision|embed_audio|multi_modal_projector|mm_projector|mlp1"
    r"|patch_merger|aligner|resampler|speech_encoder|image_newline|vit)\."
)
"""What reads images or sound, by the names that models give it."""
EXPERTS = re.compile(r"(?:^|\.)(?:experts|switch_mlp|switch_glu|input_linear|output_linear)(?:\.|$)")
SHARED = re.compile(r"shared")
TABLE = re.compile(r"(?:^|\.)(?:embed_tokens|embed_in|wte|tok_embeddings|word_embeddings|embeddings?)\.weight$")
PER_LAYER_TABLE = re.compile(r"(?:^|\.)embed_tokens_per_layer\.")
HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)\.(?:weight|qweight)$")
DRAFT = re.compile(r"(?:^|\.)(?:mtp|mtp_layers|nextn|eagle|medusa)\.")
NUMBERED = re.compile(r"(?:^|\.)layers\.(\d+)\.")
EXPERT_COUNT = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "num_routed_experts")
EXPERTS_USED = (
    *("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_top_k", "moe_topk", "moe_k"),
    "num_selected_experts",
)
SIZES: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
}
"""Bytes of a value; all other types have one."""
BESIDE = (
    "scales",
    "biases",
    "qzeros",
    "g_idx",
    "weight_scale",
    "weight_scale_inv",
    "weight_zero_point",
    "weight_shape",
)
"""The last words of tensors that hold no parameters but say how others are packed."""


@dataclass(frozen=True)
class Parameters:
    """Parameters in numbers, not in billions, and bytes of what text does not need."""

    total: int
    active: int
    """Of those that text passes, the ones that one token passes."""
    text: int
    """Without towers and draft heads."""
    input: int
    """Of an input embedding of its own; 0 with experts, of whose speeds the constants were fitted without it."""
    spread: float
    """Experts to each that a token uses; 1 without experts."""
    tower_bytes: int
    """Bytes of what reads images or sound."""
    draft_bytes: int
    """Bytes of draft heads, which the loader leaves out."""


def parameters(facts: RepoFacts, layers: int) -> Parameters | None:
    """Return what the headers count; None where there are none."""
    if not facts.tensors:
        return None
    counted = list(_counted(facts))
    towers = [tensor for tensor in counted if TOWER.search(tensor.name)]
    drafts = [tensor for tensor in counted if _is_draft(tensor.name, layers)]
    apart = {tensor.name for tensor in (*towers, *drafts)}
    text = [tensor for tensor in counted if tensor.name not in apart]
    written = sum(tensor.parameters for tensor in text)
    spread = _spread(facts.config)
    experts = sum(
        tensor.parameters for tensor in text if EXPERTS.search(tensor.name) and not SHARED.search(tensor.name)
    )
    tables = sum(tensor.parameters for tensor in text if PER_LAYER_TABLE.search(tensor.name))
    return Parameters(
        total=sum(tensor.parameters for tensor in counted),
        active=max(1, written - tables - round(experts * (1 - 1 / spread))),
        text=written,
        input=0 if experts else _input(text),
        spread=spread if experts else 1.0,
        tower_bytes=sum(tensor.bytes for tensor in towers),
        draft_bytes=sum(tensor.bytes for tensor in drafts),
    )


@dataclass(frozen=True)
class _Tensor:
    name: str
    parameters: int
    bytes: int


def _counted(facts: RepoFacts) -> Iterator[_Tensor]:
    """Return each tensor with the parameters that it holds, packed ones unpacked."""
    packed = _packing(facts.config)
    for name, header in facts.tensors.items():
        values = math.prod(lengths(header))
        if _says_how(name, facts.tensors):
            yield _Tensor(name, 0, values * SIZES.get(str(header.get("dtype")), 1))
            continue
        yield _Tensor(
            name, values * _times(name, header, facts.tensors, packed), values * SIZES.get(str(header.get("dtype")), 1)
        )


def _says_how(name: str, tensors: Tensors) -> bool:
    """Return whether a tensor only says how another is packed."""
    module, _, last = name.rpartition(".")
    if last in {"scales", "biases"}:
        return any(f"{module}.{word}" in tensors for word in ("weight", "qweight"))
    return last in BESIDE or last.endswith("_scales")


def _times(name: str, header: Mapping[str, Any], tensors: Tensors, packed: Config) -> int:
    """Return how many parameters one value of a tensor holds."""
    module, _, last = name.rpartition(".")
    if last.endswith("_blocks"):
        return 2  # mxfp4 as gpt-oss was published: two values a byte
    if last in {"qweight", "weight_packed"}:
        return WORD_BITS // (count(packed, "bits", "num_bits") or 4)
    if header.get("dtype") == "U32" and f"{module}.scales" in tensors:
        return WORD_BITS // (_own_bits(module, packed) or 4)
    return 1


def _own_bits(module: str, packed: Config) -> int:
    """Return the bits of one module: its own where the config names it, else those of all."""
    own = part(packed, module) or part(packed, f"language_model.{module}") or part(packed, module.partition(".")[2])
    return count(own, "bits") or count(packed, "bits")


def _packing(config: Config) -> Config:
    """Return how the weights are packed, as MLX says it or as others do."""
    for holder in (config, text_of(config)):
        for name in ("quantization", "quantization_config"):
            if packing := part(holder, name):
                groups = [part(group, "weights") for group in parts(packing.get("config_groups"))]
                return {**packing, **groups[0]} if groups else packing
    return {}


def _is_draft(name: str, layers: int) -> bool:
    """Return whether a tensor is of a head that drafts: named so, or a layer beyond the last."""
    numbered = NUMBERED.search(name)
    return bool(DRAFT.search(name)) or (numbered is not None and int(numbered[1]) >= layers > 0)


def _spread(config: Config) -> float:
    """Return the experts to each that a token uses; 1 where config.json names none."""
    for holder in (text_of(config), config, part(text_of(config), "ffn_config")):
        experts, used = count(holder, *EXPERT_COUNT), count(holder, *EXPERTS_USED)
        if experts and used:
            return max(1.0, experts / used)
    return 1.0


def _input(text: list[_Tensor]) -> int:
    """Return the parameters of an embedding that a token looks up and does not pass: where the head has its own."""
    if not any(HEAD.search(tensor.name) for tensor in text):
        return 0
    return sum(tensor.parameters for tensor in text if TABLE.search(tensor.name))
