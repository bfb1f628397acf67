"""The other nodes of the fleet as the page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlxq.fleet import report
from mlxq.web.labels import Shape
from state import fleet
from state.db import Database
from state.fleet import Node

SHAPES: Mapping[str, Shape] = {
    "healthy": Shape.FULL,
    "joining": Shape.HALF,
    "draining": Shape.HALF,
    "degraded": Shape.WARN,
    "down": Shape.CROSS,
}


@dataclass(frozen=True)
class NodeView:
    """One node."""

    node: Node
    word: str
    """Its state."""
    shape: Shape
    problem: str | None
    """What is wrong with it; None for a node that is well."""
    tiers: Sequence[str]
    """The names that it is asked for."""
    repos: int
    """How many models it answers to by the name of their repo."""


def listing(db: Database) -> list[NodeView]:
    """Return the nodes by name."""
    return [_view(node) for node in fleet.nodes(db)]


def _view(node: Node) -> NodeView:
    word, tiers = report.state(node), [name for name in node.offered if "/" not in name]
    return NodeView(node, word, SHAPES[word], report.problem(node), tiers, len(node.offered) - len(tiers))
