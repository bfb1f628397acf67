"""Whether a model that makes vectors or ranks documents fits beside the engines that are there. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from catalog import retrieval
from catalog.problems import UnknownModel
from catalog.retrieval import RetrievalModel
from state.errors import NotFound
from state.settings import TIER_PORTS
from state.stack import CHAT, Engine, Purpose
from tasks.plan.placement import require_room

PURPOSES: tuple[Purpose, ...] = ("embedding", "rerank")
"""What an engine without a tier is for, which is its name too."""
SMALL_SHARE = 12
"""An embedding model that takes at most this part of the budget costs the tiers little."""
NONE = "none"
"""Asked for in place of a model: take the engine away."""
NAMES = ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002")
"""Names that clients of OpenAI send unasked; the embedding model answers to them."""


def find(name: str, purpose: Purpose) -> tuple[RetrievalModel, str]:
    """Return a model and its quant by id or repo, with `:QUANT` behind it where one is wanted. Raises NotFound."""
    try:
        return retrieval.find(name, purpose)
    except UnknownModel as problem:
        names = ", ".join(problem.nearest)
        raise NotFound(
            f"mlxq serves no {purpose} model {name!r}; it serves {names}.",
            hint=f"mlxq setup --{purpose} {problem.nearest[0]}",
        ) from problem


def place(
    purpose: Purpose, model: RetrievalModel, quant: str, engines: Sequence[Engine], *, base_port: int, budget_bytes: int
) -> Engine:
    """Return the engine for a model beside `engines`, of which one for the same purpose is replaced.

    `budget_bytes` is for all engines together. Its port is the first behind those of the tiers that is free. Raises
    DoesNotFit with the sum.
    """
    remaining = [engine for engine in engines if engine.name != purpose]
    require_room(f"{model.id} {quant}", model.memory_bytes(quant), remaining, budget_bytes)
    return replace(engine(purpose, model, quant), port=_port(remaining, base_port))


def engine(name: str, model: RetrievalModel, quant: str, weights: str = "") -> Engine:
    """Return the engine `name` that serves a model; it has no port yet."""
    return Engine(
        name=name,
        model=model.id,
        quant=quant,
        source=model.quants[quant].source,
        port=0,
        context=model.longest_input,
        memory_bytes=model.memory_bytes(quant),
        cache_bytes=0,
        concurrency=1,
        weights=weights,
        purpose=model.purpose,
    )


def offered(free_bytes: int, budget_bytes: int, *, hub: bool) -> tuple[RetrievalModel, str] | None:
    """Return the embedding model and quant worth offering beside tiers that leave `free_bytes` of the budget.

    It is small against the budget, or fits in what is left. Without a Hub it is the one that travels as a wheel.
    """
    model, quant = find("qwen3-embedding-0.6b" if hub else "all-minilm-l6-v2", "embedding")
    need = model.memory_bytes(quant)
    return (model, quant) if need <= max(free_bytes, budget_bytes // SMALL_SHARE) else None


def _port(remaining: Sequence[Engine], base_port: int) -> int:
    taken, first = {engine.port for engine in remaining}, base_port + TIER_PORTS
    return next(port for port in range(first, first + len(taken) + 1) if port not in taken)


def configuration(engines: Sequence[Engine], aliases: Mapping[str, str]) -> dict[str, dict[str, object]]:
    """Return what gateway.yaml says of the engines that are not for chats, by their purpose.

    `aliases`: the user's, to tiers and to these.
    """
    return {
        engine.purpose: row(engine, [name for name, to in aliases.items() if to == engine.name])
        for engine in engines
        if engine.purpose != CHAT
    }


def row(engine: Engine, own_names: Sequence[str]) -> dict[str, object]:
    """Return what the gateway must know of an engine that makes vectors or ranks documents."""
    model = retrieval.entries().get(engine.model)
    repos = [model.repo, *(quant.repo for quant in model.quants.values() if quant.repo)] if model else []
    names = [*own_names, engine.model, *repos, *(NAMES if engine.purpose == "embedding" else ())]
    return {
        "port": engine.port,
        "longest_input": engine.context,
        "dimensions": model.dimensions if model else 0,
        "shortens": bool(model and model.shortens),
        "names": list(dict.fromkeys(names)),
        "answer_timeout_s": engine.answer_timeout_s,
    }
