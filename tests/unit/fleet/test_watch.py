"""What a look at a node changes."""

from __future__ import annotations

from support.clock import Clock

from state import fleet
from state.db import Database
from state.fleet import Node
from tasks.fleet.watch import NodeWatch
from tasks.plan.fleet import Look

STUDIO = Node("studio", "mlxq", "https://10.0.0.7:4000", "pem", "ab" * 32, addresses=("https://10.0.0.7:4000",))
REFUSED = Look(STUDIO.address, failure="refused", words="it refuses this node's key")


def joined(db: Database) -> Node:
    """Let studio join, again where it did before; return the node as a look begins with it."""
    fleet.put(db, STUDIO)
    return fleet.get(db, "studio")


def test_a_look_from_before_a_node_joined_again_changes_nothing(db: Database, clock: Clock) -> None:
    """It was asked with the key that it revoked as it joined again: `mlxq node join` then failed, one time in ten."""
    before = joined(db)
    clock.now += 1
    after = joined(db)
    NodeWatch()._record(db, before, REFUSED)
    assert fleet.get(db, "studio") == after

    NodeWatch()._record(db, after, REFUSED)
    assert fleet.get(db, "studio").problem == "away: it refuses this node's key"
    assert [row["name"] for row in db.rows("SELECT name FROM events")] == ["node_lost"]


def test_a_look_at_a_node_that_left_meanwhile_changes_nothing(db: Database) -> None:
    node = joined(db)
    fleet.remove(db, "studio")
    NodeWatch()._record(db, node, REFUSED)
    assert fleet.nodes(db) == []
