"""How this node is, as other nodes of the fleet are told: what it serves, how fast, how busy."""

from __future__ import annotations

from typing import Any

from state import on_demand as models_on_disk
from state import stack
from state.db import Database
from state.keys import Key
from tasks.fleet import identity, own_models
from tasks.gateway import models
from tasks.gateway.on_demand import OnDemand
from tasks.gateway.routes import Routes
from tasks.plan.fleet import NodeStatus

EVERYTHING = Key("fleet", "", 0.0, kind="fleet")
"""Nodes may ask for all models."""


def status(db: Database, routes: Routes, on_demand: OnDemand, *, running: int, version: str) -> dict[str, Any]:
    """Return the document. `running`: requests that are answered now.

    A tier that this machine does not have is not served, though its gateway answers the name with another.
    """
    engines = {engine.name: engine for engine in stack.engines(db)}
    engines |= {entry.engine.name: entry.engine for entry in models_on_disk.models(db)}
    listed = models.listing(routes, on_demand, EVERYTHING) or {"data": []}
    offered = {*routes.tiers, *routes.retrieval, *on_demand.known.shown}
    serves = {
        name: own_models.served(db, name, engines.get(_engine(routes, on_demand, name)), entry["context_length"])
        for entry in listed["data"]
        if (name := entry["id"]) in offered and entry["state"] != "stopped"
    }
    return NodeStatus(
        identity.own_name(db.home), version, serves=serves, running=running, problem=own_models.problem(db)
    ).document()


def _engine(routes: Routes, on_demand: OnDemand, name: str) -> str:
    """Return the engine behind a name; empty for one that makes vectors."""
    tier = routes.tier(name) or on_demand.tier(name)
    if tier is not None and tier in routes.tiers:
        return routes.tiers[tier].engine
    model = on_demand.find(name)
    return model.engine if model else ""
