"""What the weights of a repo are packed in, in the catalog's words."""

from __future__ import annotations

from catalog.description.repo_facts import Config, RepoFacts, count, part, parts, text, text_of

FOUR, EIGHT = 4, 8
MODES = {"mxfp4": "mxfp4", "nvfp4": "nvfp4", "mxfp8": "mxfp8"}
BITS = range(2, 9)


def quant_of(facts: RepoFacts) -> str:
    """Return the name of the quant, such as int4, mxfp4-q8 or bf16."""
    packed = _packed(facts.config)
    if not packed:
        return _unpacked(facts)
    method = text(packed, "quant_method")
    if method == "fp8":
        return "bf16"  # the loader unpacks it
    mode = MODES.get(text(packed, "mode") or method)
    if mode == "mxfp4":
        return _beside_mxfp4(packed)
    bits = count(packed, "bits", "num_bits") or _bits_of_groups(packed) or (2 if method == "bitnet" else FOUR)
    return mode or f"int{bits if bits in BITS else FOUR}"


def unpacks_to_16_bits(facts: RepoFacts) -> bool:
    """Return whether the loader makes 16-bit weights of what has 8 bits on the disk."""
    packed = _packed(facts.config)
    return text(packed, "quant_method") == "fp8" and "bits" not in packed


def _packed(config: Config) -> Config:
    """Return how the weights are packed, as MLX says it, else as others do; empty where they are not."""
    for name in ("quantization", "quantization_config"):
        for holder in (config, text_of(config)):
            if packing := part(holder, name):
                return packing
    return {}


def _bits_of_groups(packed: Config) -> int:
    """Return the bits that compressed-tensors names for its first group of layers."""
    return next((count(part(group, "weights"), "num_bits") for group in parts(packed.get("config_groups"))), 0)


def _beside_mxfp4(packed: Config) -> str:
    """Return the name by what is packed beside the experts: 8 or 4 bits, or nothing."""
    own = [count(module, "bits") for module in parts(packed)]
    if EIGHT in own:
        return "mxfp4-q8"
    return "mxfp4-q4" if FOUR in own else "mxfp4"


def _unpacked(facts: RepoFacts) -> str:
    """Return the name of weights as they were trained, by what most of their bytes are."""
    kinds = [str(header.get("dtype")) for header in facts.tensors.values()]
    dtype = text(facts.config, "torch_dtype") or text(facts.config, "dtype")
    if kinds and max(kinds.count("F32"), 1) > len(kinds) / 2:
        return "fp32"
    return "fp16" if dtype == "float16" or kinds.count("F16") > len(kinds) / 2 else "bf16"
