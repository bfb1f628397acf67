"""What each engine can do, from engines.yaml. Pure: who has to know asks here, and not the engine."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Literal

from catalog.model import Model
from state.classes import dataclass

SHIPPED = Path(__file__).with_name("engines.yaml")
FALLBACK = "vllm-mlx"
"""The engine in mlxq's own environment, which is always there."""

Backend = Literal["metal", "cpu", "cuda"]


class ModelKind(StrEnum):
    """What an engine must know of a model to reuse its prompts: what a layer remembers, and which path it takes."""

    ATTENTION = "attention"  # every layer keeps keys and values; they can be cut at any token
    HYBRID = "hybrid"  # some layers keep one state, which cannot be cut
    SLIDING = "sliding"  # some layers keep the last tokens only
    ATTENTION_VISION = "attention-vision"
    HYBRID_VISION = "hybrid-vision"
    SLIDING_VISION = "sliding-vision"


def kind(*, recurrent: bool, sliding: bool, vision: bool) -> ModelKind:
    """Return the kind of a model by what its layers keep and whether it takes images."""
    base = ModelKind.HYBRID if recurrent else ModelKind.SLIDING if sliding else ModelKind.ATTENTION
    return ModelKind(f"{base}-vision") if vision else base


def kind_of(model: Model) -> ModelKind:
    """Return the kind of a catalog model."""
    recurrent = model.attention.recurrent > 0 or model.architecture.startswith("hybrid")
    return kind(recurrent=recurrent, sliding=model.attention.sliding > 0, vision=model.vision)


@dataclass(frozen=True)
class Reuse:
    """What of a prompt is not read again."""

    turn: bool
    """The earlier part of a conversation that grew."""
    system: bool
    """A system prompt that was read before, with another question after it."""


EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max")
"""The words of `reasoning_effort`, from the least on."""


@dataclass(frozen=True)
class ThinkingBudget:
    """How an engine limits the thoughts of a model."""

    field: str
    """Of a chat's body, in tokens."""
    kinds: frozenset[ModelKind]
    """Kinds of model for which it ends the thoughts and lets the answer follow."""
    with_tools: bool
    """Whether it does so too where the request has tools."""


@dataclass(frozen=True)
class Abilities:
    """What one engine does by itself on one backend; where it does not, the gateway has to."""

    engine: str
    dialects: frozenset[str]
    """chat, completions, responses, messages, count_tokens: answered, in the right order of events."""
    stop_strings: bool
    """Whether an answer ends before the first of them, whole or streamed, wherever in a token it begins."""
    json_schema: bool
    """Whether a schema binds the answer and leaves the other requests of the batch alone."""
    json_object: bool
    context_check: bool
    """Whether a prompt over the tier's context gets an error with both numbers before it is read."""
    cached_tokens: bool
    """Whether `usage.prompt_tokens_details.cached_tokens` is told."""
    counts_exactly: bool
    """Whether count_tokens agrees with the count that `usage` tells."""
    forced_tools: bool
    """Whether tool_choice "required" or a named function is enforced."""
    max_completion_tokens: bool
    logprobs: bool
    """Whether `logprobs` are given, and `n` over 1 is refused and not ignored."""
    frequency_penalty: bool
    logit_bias: bool
    thinking_budget: ThinkingBudget
    image_check: bool
    """Whether an image to a model that cannot see is refused."""
    cancel_on_close: bool
    """Whether a client that closes its connection frees the slot."""
    embeddings: bool
    rerank: bool
    mtp: bool
    prompt_lookup: bool
    live_cache_quants: bool
    silence_s: float
    """Seconds of a healthy stream's longest silence, also while it reads a prompt."""


@dataclass(frozen=True)
class EngineEntry:
    """One engine as engines.yaml describes it."""

    name: str
    version: str
    """The release that was measured, and that mlxq installs."""
    package: str
    home: str
    environment: Literal["mlxq", "own"]
    """Whether it lives in mlxq's environment or has one of its own."""
    found: str
    download_mb: int
    installed_mb: int
    resident_mb: int
    """Of the process with the built-in model."""
    abilities: Mapping[str, Any]
    reuse: Mapping[ModelKind, Reuse]
    serial: frozenset[ModelKind]
    """Kinds of which it serves one request at a time."""
    unmeasured: frozenset[ModelKind]
    """Kinds whose reuse was read from the source and not measured."""
    disk_cache: frozenset[ModelKind]
    """Kinds whose prompts survive a restart."""
    splits: bool = False
    """Whether it serves a model in parts, one a process; such an engine is never chosen, but asked for."""


def every() -> Mapping[str, EngineEntry]:
    """Return every engine by name, the fallback first. Raises KeyError where engines.yaml lacks a field."""
    return _load()


@cache
def entries() -> Mapping[str, EngineEntry]:
    """Return the engines that a model can be given to as a whole, by name, the fallback first. Raises KeyError."""
    return {name: engine for name, engine in _load().items() if not engine.splits}


def entry(name: str) -> EngineEntry:
    """Return one engine. Raises KeyError for one that is not in engines.yaml."""
    return _load()[name]


def abilities(name: str, backend: str) -> Abilities:
    """Return what the engine `name` does by itself on `backend` (metal, cpu or cuda). Raises KeyError."""
    row = dict(entry(name).abilities)
    for other in ("disk_cache", "translated"):
        row.pop(other)
    dialects, schema = frozenset(row.pop("dialects")), bool(row.pop("json_schema").get(backend, False))
    limit = row.pop("thinking_budget")
    budget = ThinkingBudget(limit["field"], frozenset(map(ModelKind, limit["kinds"])), limit["with_tools"])
    return Abilities(engine=name, dialects=dialects, json_schema=schema, thinking_budget=budget, **row)


def reuses(name: str, model: ModelKind) -> bool:
    """Return whether the engine `name` reads the earlier part of a conversation once, for this kind of model."""
    return entry(name).reuse[model].turn


def best_for(model: ModelKind) -> str:
    """Return the engine that reuses prompts of this kind of model; the fallback where it does, or none does."""
    return next((name for name in entries() if reuses(name, model)), FALLBACK)


@cache
def _load() -> dict[str, EngineEntry]:
    import yaml

    rows: dict[str, dict[str, Any]] = yaml.load(SHIPPED.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    return {name: _entry(name, row) for name, row in rows.items()}


def _entry(name: str, row: Mapping[str, Any]) -> EngineEntry:
    return EngineEntry(
        name=name,
        version=str(row["version"]),
        package=row["package"],
        home=row["home"],
        environment=row["environment"],
        found=row["found"],
        download_mb=int(row.get("download_mb", 0)),
        installed_mb=int(row.get("installed_mb", 0)),
        resident_mb=int(row["resident_mb"]),
        abilities=row["abilities"],
        reuse={ModelKind(word): Reuse(**reuse) for word, reuse in row["reuse"].items()},
        serial=frozenset(map(ModelKind, row["serial"])),
        unmeasured=frozenset(map(ModelKind, row["unmeasured"])),
        disk_cache=frozenset(map(ModelKind, row["abilities"]["disk_cache"])),
        splits=bool(row.get("splits")),
    )
