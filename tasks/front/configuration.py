"""What the front reads, written for the nodes there are: front.yaml, policy.json and nodes.json in MLXQ_HOME/front."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from state import fleet, keys, on_demand, secrets, settings, stack
from state.db import Database
from state.errors import MlxqError, UsageProblem
from state.fleet import Node
from state.paths import Home
from tasks.fleet import identity, own_models
from tasks.front import plan as front
from tasks.front.plan import FrontFiles
from tasks.plan import gateway
from tasks.runtime import log

PROXY, POLICY, NODES = "front.yaml", "policy.json", "nodes.json"


def wanted(db: Database, home: Home) -> FrontFiles:
    """Return what the front is to read now. Raises UsageProblem, Damaged."""
    own = own_node(db)
    joined = [node for node in fleet.nodes(db) if node.name != own.name]  # a name that was chosen after it joined
    opened = _keys(home, joined) | {own.name: secrets.ensure(home.secrets)[secrets.MASTER]}
    values = settings.load(home)
    return front.files(
        [own, *joined],
        opened,
        own=own.name,
        schemas=schemas(),
        names={**gateway.ALIASES, **values["aliases"]},
        ring=str(keys.file(home)),
        master=keys.digest(secrets.ensure(home.secrets)[secrets.MASTER]),
        redis=values["front-redis"],
    )


def own_node(db: Database) -> Node:
    """Return this machine as a node among others, with the tiers and the models that it serves.

    By the name that it has at every other front: what two fronts share in Redis of a node is about the same machine.
    """
    tiers = stack.tiers(db)
    engines = {tier.name: tier.engine for tier in tiers if tier.desired == "up"}
    engines |= {engine.name: engine for engine in stack.retrieval(db)}
    engines |= {entry.engine.model: entry.engine for entry in on_demand.models(db)}
    engines |= {tier.model: tier.engine for tier in tiers if tier.desired == "up"}
    serves = {name: own_models.served(db, name, engine, engine.context) for name, engine in engines.items()}
    port: int = settings.load(db.home)["litellm-port"]
    name = identity.own_name(db.home)
    by = fleet.changing(db).get(name)
    return Node(name, "mlxq", f"http://{gateway.LOOPBACK}:{port}", serves=serves, changed_by=by)


def _keys(home: Home, nodes: list[Node]) -> dict[str, str]:
    """Return the key of each node; one whose key cannot be read is not asked."""
    opened: dict[str, str] = {}
    for node in nodes:
        try:
            opened[node.name] = fleet.key(home, node.name)
        except (MlxqError, UsageProblem) as problem:
            log.warning("node_without_key", node=node.name, cause=problem.message)
    return opened


@functools.cache
def schemas() -> Mapping[str, dict[str, Any]]:
    """Return the JSON schema of each dialect's requests: the gateway's own allow-list, as data."""
    from tasks.gateway.dialects import schemas as dialects

    models = {
        "chat": dialects.Chat,
        "completions": dialects.Completions,
        "responses": dialects.Responses,
        "messages": dialects.Messages,
        "embeddings": dialects.Embeddings,
    }
    return {name: model.model_json_schema() for name, model in models.items()}


def texts(files: FrontFiles) -> dict[str, str]:
    """Return the content of each file, by its name. JSON is YAML too."""
    return {
        NODES: json.dumps(files.nodes, indent=1),
        POLICY: json.dumps(files.policy, sort_keys=True),
        PROXY: json.dumps(files.proxy, indent=1),
    }


def write(home: Home, files: FrontFiles) -> bool:
    """Write the files that change, each in one step and mode 0600; return whether any did. Raises MlxqError."""
    changed = [name for name, text in texts(files).items() if _write(home.front / name, text)]
    return bool(changed)


def _write(path: Path, text: str) -> bool:
    try:
        if path.read_text(encoding="utf-8") == text:
            return False
    except (OSError, UnicodeDecodeError):
        path.parent.mkdir(mode=0o700, exist_ok=True)
    settings.write_private(path, text)
    return True
