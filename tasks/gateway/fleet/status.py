"""How this node is, as other nodes of the fleet are told: what it serves, how fast, how busy."""

from __future__ import annotations

from typing import Any

from catalog.intent import TIERS
from state import facts, service, stack
from state import on_demand as models_on_disk
from state.db import Database
from state.keys import Key
from state.metrics import bench, sample
from state.service import ROUTED
from state.stack import Engine
from tasks.fleet import identity
from tasks.gateway import models
from tasks.gateway.on_demand import OnDemand
from tasks.gateway.routes import Routes
from tasks.plan.fleet import NodeStatus, ServedModel

EVERYTHING = Key("fleet", "", 0.0, kind="fleet")
"""Nodes may ask for all models."""
IN_USE_S = 7 * 86400.0
"""From how far back speeds count that requests saw."""


def status(db: Database, routes: Routes, on_demand: OnDemand, *, running: int, version: str) -> dict[str, Any]:
    """Return the document. `running`: requests that are answered now."""
    engines = {engine.name: engine for engine in stack.engines(db)}
    engines |= {entry.engine.name: entry.engine for entry in models_on_disk.models(db)}
    listed = models.listing(routes, on_demand, EVERYTHING) or {"data": []}
    offered = {*routes.tiers, *TIERS, *routes.retrieval, *on_demand.known.shown}
    serves = {
        name: ServedModel(name, entry["context_length"], *_capacity(db, engines, routes, on_demand, name))
        for entry in listed["data"]
        if (name := entry["id"]) in offered and entry["state"] != "stopped"
    }
    return NodeStatus(
        identity.own_name(db.home), version, serves=serves, running=running, problem=_problem(db)
    ).document()


def _capacity(
    db: Database, engines: dict[str, Engine], routes: Routes, on_demand: OnDemand, name: str
) -> tuple[int, float | None]:
    """Return how many requests for a name run side by side, and the tokens/s of one where they are known."""
    engine = engines.get(_engine(routes, on_demand, name))
    return (engine.concurrency, _speed(db, engine)) if engine else (1, None)


def _engine(routes: Routes, on_demand: OnDemand, name: str) -> str:
    """Return the engine behind a name; empty for one that makes vectors."""
    tier = routes.tier(name) or on_demand.tier(name)
    if tier is not None and tier in routes.tiers:
        return routes.tiers[tier].engine
    model = on_demand.find(name)
    return model.engine if model else ""


def _speed(db: Database, engine: Engine) -> float | None:
    """Return what requests saw lately, else what the newest benchmark did."""
    decode_tps = sample.in_use(db, engine.name, db.now() - IN_USE_S).decode_tps
    if decode_tps is not None:
        return decode_tps
    chip = str(facts.get(db, "machine").get("chip", ""))
    return next(iter(reversed(bench.speeds(db, engine.model, engine.quant, chip).values())), None)


def _problem(db: Database) -> str | None:
    """Return which services should run and do not serve."""
    down = [row.name for row in service.listing(db) if row.desired == "up" and row.state not in ROUTED]
    return f"not serving: {', '.join(down)}" if down else None
