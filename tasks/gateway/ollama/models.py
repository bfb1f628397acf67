"""The models in Ollama's shapes: what a key may ask for, what runs, and what is known of one. Read from state.db."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from state import on_demand, service, stack, weights
from state.db import Database
from state.errors import MlxqError
from state.keys import Key
from state.on_demand import folded
from state.service import SERVING, Service
from state.stack import Engine
from state.weights import Facts, Weights
from tasks.gateway.ollama.fields import tagged
from tasks.gateway.routes import Routes
from tasks.on_demand import requests

API_VERSION = "0.12.6"
"""The version of Ollama's API that these routes follow; programs refuse one that is too old."""
ANSWER_S = 2.0
"""How long a list waits for a disk."""
NEVER = "2318-01-01T00:00:00Z"
"""When a model is unloaded that stays: Ollama's own answer is some 292 years from now."""


@dataclass(frozen=True)
class OllamaModel:
    """One name, and the engine behind it."""

    name: str
    engine: Engine
    weights: Weights | None
    """None until they are pulled, and where their disk does not say."""
    aliases: tuple[str, ...] = ()
    """The other names of a model on this disk."""


def served(db: Database, routes: Routes, key: Key) -> list[OllamaModel]:
    """Return what a key may ask for: tiers, models for embeddings and ranking, and every model on this disk.

    Raises StateUnavailable.
    """
    named = [(tier.name, tier.engine) for tier in stack.tiers(db) if tier.name in routes.tiers]
    named += [(engine.name, engine) for engine in stack.retrieval(db) if engine.name in routes.retrieval]
    allowed = [(name, engine) for name, engine in named if key.may_ask(name)]
    models = [OllamaModel(name, engine, weights.at(db, engine.weights)) for name, engine in allowed]
    return models + list(_on_disk(db, routes, key))


def _on_disk(db: Database, routes: Routes, key: Key) -> Iterator[OllamaModel]:
    """Yield the models on this disk. One that the stack serves has the engine and the keys of that."""
    stacked = {engine.weights: engine for engine in reversed(stack.engines(db)) if engine.weights}
    tiers = {tier.engine.name: tier.name for tier in reversed(stack.tiers(db))}
    for entry in on_demand.models(db):
        engine = stacked.get(entry.engine.weights, entry.engine)
        names = [tiers.get(engine.name, engine.name)] if engine is not entry.engine else on_demand.names(entry)
        own = [name for name in on_demand.names(entry)[:-1] if routes.tier(name) is None]
        if own and key.may_ask(*names):
            files = weights.at(db, engine.weights) or _copied(Path(engine.weights))
            yield OllamaModel(own[0], engine, files, tuple(own[1:]))


def _copied(folder: Path) -> Weights | None:
    """Return what a folder says that the user copied here; None where it says nothing now."""
    try:
        changed_at = folder.stat().st_mtime
        return _read(folder, changed_at)
    except (MlxqError, OSError):
        return None


@lru_cache(maxsize=256)
def _read(folder: Path, changed_at: float) -> Weights:
    """Read the headers of a folder once for each change. Raises MlxqError, OSError."""
    from tasks.weights import model_dir
    from tasks.weights.formats import headers

    scanned = model_dir.read(folder, lambda: headers.inventory(folder), ANSWER_S)
    facts = {field.name: getattr(scanned, field.name) for field in fields(Facts)}
    return Weights(**facts, folder=str(folder), source="", revision="", recipe=None, pulled_at=changed_at)


def find(models: list[OllamaModel], routes: Routes, name: str) -> OllamaModel | None:
    """Return the model behind a name, which may be one that leads to a tier, as `gpt-4o` does."""
    retrieval = (purpose for purpose, route in routes.retrieval.items() if name in route.names)
    wanted = folded(routes.tier(name) or next(retrieval, name))
    return next((model for model in models if wanted in map(folded, (model.name, *model.aliases))), None)


def tags(models: list[OllamaModel]) -> dict[str, Any]:
    """Return GET /api/tags."""
    return {"models": [_entry(model) | {"modified_at": _time(model)} for model in models]}


def running(db: Database, models: list[OllamaModel]) -> dict[str, Any]:
    """Return GET /api/ps: each engine that is loaded, by the first of its names. Raises StateUnavailable."""
    serving = {row.name: row for row in service.listing(db) if row.state in SERVING}
    shown: dict[str, OllamaModel] = {}
    for model in models:
        if model.engine.name in serving:
            shown.setdefault(model.engine.name, model)
    return {"models": [_entry(model) | _loaded(db, model, serving[name]) for name, model in shown.items()]}


def _loaded(db: Database, model: OllamaModel, row: Service) -> dict[str, Any]:
    engine = model.engine
    at = requests.expires_at(db, row, (model.name, *model.aliases))
    return {
        "size": engine.memory_bytes,
        "size_vram": engine.memory_bytes,
        "expires_at": NEVER if at is None else _moment(at),
        "context_length": engine.context,
    }


def show(model: OllamaModel) -> dict[str, Any]:
    """Return POST /api/show."""
    files, engine = model.weights, model.engine
    kind = files.model_type if files else "unknown"
    return {
        "modelfile": "",
        "parameters": "",
        "template": "",
        "details": _details(model),
        "model_info": {
            "general.architecture": kind,
            "general.basename": engine.model,
            "general.parameter_count": files.parameters if files else 0,
            f"{kind}.context_length": engine.context,
        },
        "capabilities": list(_capabilities(engine)),
        "modified_at": _time(model),
    }


def _capabilities(engine: Engine) -> Iterator[str]:
    if engine.purpose != stack.CHAT:
        yield engine.purpose
        return
    yield "completion"
    if engine.tool_parser:
        yield "tools"
    if engine.vision:
        yield "vision"
    if engine.reasoning_parser:
        yield "thinking"


def _entry(model: OllamaModel) -> dict[str, Any]:
    name, files = tagged(model.name), model.weights
    origin = f"{files.source}@{files.revision}" if files and files.source else model.engine.source
    return {
        "name": name,
        "model": name,
        "size": files.size if files else 0,
        "digest": hashlib.sha256(origin.encode()).hexdigest(),
        "details": _details(model),
    }


def _details(model: OllamaModel) -> Mapping[str, Any]:
    files = model.weights
    family = files.model_type if files else ""
    return {
        "parent_model": model.engine.model,
        "format": "safetensors",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": _parameters(files.parameters) if files else "",
        "quantization_level": model.engine.quant,
    }


def _parameters(count: int) -> str:
    """Return a number of parameters as Ollama writes it: 8.0B, 134.52M."""
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"  # noqa: PLR2004 (a billion)


def _time(model: OllamaModel) -> str:
    return _moment(model.weights.pulled_at if model.weights else 0.0)


def _moment(at: float) -> str:
    """Return unix seconds as Ollama writes a time."""
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
