"""Make a model file of a repo or a folder that no file of the catalog describes.

What is made has the fields of catalog/models/*.yaml, so that all that reads a model reads this one. Nothing is guessed
in its favor: quality is unrated, what cannot be known is planned with the most, and `note` says so.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from catalog.description.geometry import WINDOW_UNKNOWN, Geometry, NoShape, shape
from catalog.description.parameters import Parameters, parameters
from catalog.description.parsers import reasoning_parser, tool_parser
from catalog.description.quantization import quant_of, unpacks_to_16_bits
from catalog.description.repo_facts import RepoFacts, type_of
from catalog.load import model
from catalog.model import Model
from state.classes import dataclass

BITS: Mapping[str, float] = {
    **{f"int{bits}": bits + 0.5 for bits in range(2, 9)},
    "bf16": 16.0,
    "fp16": 16.0,
    "fp32": 32.0,
    "mxfp4": 4.25,
    "nvfp4": 4.5,
    "mxfp8": 8.25,
    "mxfp4-q4": 4.3,
    "mxfp4-q8": 4.7,
}
"""Bits a parameter takes with its scales, by quant: what counts parameters where no header was read."""
FAMILIES: tuple[tuple[str, str], ...] = (
    ("gemma4", "Gemma 4"),
    ("gemma3", "Gemma 3"),
    ("gemma", "Gemma"),
    ("qwen3_5", "Qwen3.5"),
    ("qwen3", "Qwen3"),
    ("qwen", "Qwen"),
    ("llama", "Llama"),
    ("mistral", "Mistral"),
    ("ministral", "Mistral"),
    ("glm", "GLM"),
    ("gpt_oss", "gpt-oss"),
    ("granite", "Granite"),
    ("nemotron", "Nemotron"),
    ("lfm2", "LFM2"),
    ("minimax", "MiniMax"),
    ("phi", "Phi"),
    ("smollm", "SmolLM"),
    ("deepseek", "DeepSeek"),
)
"""What a family of architectures is called, by how its model_type begins."""
LEAST_BYTES, LEAST_PARAMS_B = 1, 1e-6
ID_LENGTH = 60


@dataclass(frozen=True)
class Description:
    """A model as it was described, and the file that says so."""

    row: dict[str, Any]
    """The fields of a model file."""
    quant: str
    unknown: tuple[str, ...]
    """What nothing tells, and what is planned instead; empty for a model of which all is known."""

    @property
    def window_told(self) -> bool:
        """Return whether the files tell for how long prompts the model was made."""
        return not any(words.startswith(WINDOW_UNKNOWN) for words in self.unknown)

    @property
    def model(self) -> Model:
        """Return the model."""
        return model(self.row)


def describe(facts: RepoFacts) -> Description:
    """Return the description of a repo or folder. Raises NoShape where not even layers or width are told."""
    geometry = shape(facts)
    counted = parameters(facts, geometry.layers)
    quant = facts.converted or quant_of(facts)
    numbers = _numbers(counted) if counted else _guessed(facts)
    unknown = _unknown(facts, geometry, counted)
    vision = "vision_config" in facts.config and not (counted and not counted.tower_bytes)
    row: dict[str, Any] = {
        "id": model_id(facts.source),
        "name": _name(facts.source),
        "family": family(type_of(facts.config)),
        **_origin(facts),
        **numbers,
        "architecture": _architecture(geometry, float(numbers["expert_spread"])),
        "layers": geometry.layers,
        "hidden_size": geometry.hidden_size,
        "attention": _written(asdict(geometry.attention)) | {"full": geometry.attention.full},
        "context": geometry.context,
        "tool_parser": tool_parser(facts),
        "reasoning_parser": reasoning_parser(facts),
        "vision": vision,
        "tower_bytes": counted.tower_bytes if counted and vision else 0,
        "loader": "mlx-vlm" if vision else "mlx-lm",
        "quants": {quant: _conversion(facts, counted, float(numbers["total_params_b"]))},
    }
    if unknown:
        row["note"] = f"Not told by its files: {'; '.join(unknown)}."
    return Description(row, quant, unknown)


def model_id(source: str) -> str:
    """Return the id of a described model: `org/Name_X` becomes `org-name-x`; a folder has the name of its last part.

    Accents fall, as letters of other scripts do.
    """
    letters = unicodedata.normalize("NFKD", _name(source).lower())
    without_accents = "".join(letter for letter in letters if not unicodedata.combining(letter))
    plain = re.sub(r"[^a-z0-9.]+", "-", without_accents).strip("-.")
    return plain[:ID_LENGTH].rstrip("-.") or "model"


def family(model_type: str) -> str:
    """Return what people call the family of a model_type; the type itself where it is not known."""
    return next((name for start, name in FAMILIES if model_type.startswith(start)), model_type or "own")


def _name(source: str) -> str:
    """Return what a source is called: `org/name`, or the last part of a folder."""
    kind, _, name = source.partition("#")[0].partition(":")
    if kind == "file":
        return name.rstrip("/").rpartition("/")[2] or "model"
    return name.partition("@")[0]


def _origin(facts: RepoFacts) -> dict[str, Any]:
    """Return where it is from, as far as that is known."""
    kind, _, name = facts.source.partition(":")
    repo = {"repo": name.partition("@")[0].partition("#")[0]} if kind == "hub" else {}
    return repo | {"licence": facts.licence or "unknown", "gated": facts.gated}


def _numbers(counted: Parameters) -> dict[str, Any]:
    """Return the counts in billions, as model files have them."""
    counts = {
        "total_params_b": max(1, counted.total),
        "active_params_b": max(1, counted.active),
        "text_params_b": max(1, counted.text),
        "input_params_b": counted.input,
    }
    billions = {name: max(LEAST_PARAMS_B, round(value / 1e9, 6)) for name, value in counts.items() if value}
    return billions | {"expert_spread": round(counted.spread, 3)}


def _guessed(facts: RepoFacts) -> dict[str, Any]:
    """Return the counts that the size of the weights makes likely; of experts, none is left out."""
    total = round(max(LEAST_BYTES, facts.weights_bytes) * 8 / BITS[quant_of(facts)] / 1e9, 6)
    return {"total_params_b": max(LEAST_PARAMS_B, total), "expert_spread": 1.0}


def _architecture(geometry: Geometry, spread: float) -> str:
    """Return the catalog's word, with what experts and a compressed cache add to it."""
    if spread <= 1:
        return geometry.architecture
    if geometry.attention.latent and geometry.architecture == "transformer":
        return "moe-mla"
    return "moe" if geometry.architecture.startswith("transformer") else f"{geometry.architecture}-moe"


def _written(attention: Mapping[str, int]) -> dict[str, int]:
    """Return the fields that say something."""
    return {name: value for name, value in attention.items() if value}


def _conversion(facts: RepoFacts, counted: Parameters | None, total_params_b: float) -> dict[str, Any]:
    """Return the one quant that there is, or that will be made here."""
    if facts.converted:
        size = round(total_params_b * 1e9 * BITS[facts.converted] / 8)
        computed = "computed: parameters x bits / 8"
        return {"source": facts.source, "bytes": max(LEAST_BYTES, size), "bytes_from": computed, "confidence": "low"}
    fields: dict[str, Any] = {
        "source": facts.source,
        "bytes": max(LEAST_BYTES, facts.weights_bytes),
        "bytes_from": "its files",
        "confidence": "low",
    }
    if unpacks_to_16_bits(facts) and counted:
        return fields | {"loaded": max(LEAST_BYTES, 2 * counted.text)}
    left_out = counted.draft_bytes if counted else 0
    if left_out and counted:
        fields["loaded"] = max(LEAST_BYTES, facts.weights_bytes - counted.tower_bytes - left_out)
    return fields


def _unknown(facts: RepoFacts, geometry: Geometry, counted: Parameters | None) -> tuple[str, ...]:
    """Return what nothing tells, with what is planned instead."""
    unknown = list(geometry.unknown)
    if counted is None:
        unknown.append("its parameters: they are counted by its size, as if a token passed all of them")
    if not facts.template:
        unknown.append("a chat template: it continues text, and may not follow a conversation")
    return tuple(unknown)


__all__ = ["Description", "NoShape", "describe", "family", "model_id"]
