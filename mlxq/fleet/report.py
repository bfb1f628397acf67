"""The nodes of the fleet as commands and the page show them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxq import __version__, render
from state import fleet
from state.db import Database
from state.fleet import Membership, Node
from tasks.fleet import identity
from tasks.plan.fleet import is_lost

MOST_NAMES = 4
"""Names of a node that a table shows."""


@dataclass(frozen=True)
class FleetReport:
    """The fleet, as this node knows it."""

    name: str
    """Of this node."""
    nodes: Sequence[Node]
    memberships: Sequence[Membership]

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "name": self.name,
            "nodes": [document(node) for node in self.nodes],
            "member_of": [{"name": entry.name, "address": entry.addresses[0]} for entry in self.memberships],
        }


def collect(db: Database) -> FleetReport:
    """Return the fleet as state.db has it."""
    return FleetReport(identity.own_name(db.home), fleet.nodes(db), fleet.memberships(db))


def document(node: Node) -> dict[str, Any]:
    """Return one node for programs."""
    return {
        "name": node.name,
        "kind": node.kind,
        "address": node.address,
        "state": state(node),
        "serves": {
            name: {"context": served.context, "slots": served.slots, "decode_tps": served.decode_tps}
            for name, served in node.offered.items()
        },
        "running": node.running,
        "version": node.version or None,
        "seen_s": round(max(0.0, time.time() - node.seen_at), 1) if node.seen_at else None,
        "problem": problem(node),
    }


def state(node: Node) -> str:
    """Return a node's state in one word: healthy, degraded, down or draining."""
    if is_lost(node):
        return "down"
    if node.state == "draining" or node.changed_by is not None:
        return "draining"
    return "degraded" if node.problem else "healthy" if node.seen_at else "joining"


def problem(node: Node) -> str | None:
    """Return what is wrong with a node; another version of mlxq too."""
    if node.problem:
        return node.problem
    if node.changed_by is not None:
        return f"job {node.changed_by} changes it"
    if node.version and node.version != __version__:
        return f"runs mlxq {node.version}, this node {__version__}"
    return None


def words(answer: Mapping[str, Any]) -> str:
    """Return why a node was not seen, as the node that invited says it."""
    return str(answer.get("problem") or "it has not looked yet").rstrip(".")


def rows(nodes: Sequence[Node]) -> list[list[Any]]:
    """Return the cells of a table of nodes."""
    return [
        [node.name, state(node), _served(node), node.running, node.version or node.kind, problem(node) or ""]
        for node in nodes
    ]


HEAD = ("NODE", "STATE", "SERVES", "RUNNING", "VERSION", "PROBLEM")


def _served(node: Node) -> str:
    names = [name for name in node.offered if "/" not in name]
    shown = " ".join(names[:MOST_NAMES])
    return f"{shown} +{len(names) - MOST_NAMES}" if len(names) > MOST_NAMES else shown


def show(report: FleetReport) -> None:
    """Print the fleet."""
    if report.nodes:
        render.table(list(HEAD), rows(report.nodes), right=(3,))
    for membership in report.memberships:
        render.say(f"{report.name} is in the fleet of {membership.name} ({membership.addresses[0]}).")
