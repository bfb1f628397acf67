"""Looks at the nodes of the fleet in a thread of its own, so that none of them delays anything here.

Each is asked at the same time as the others, with a short limit. What a look changes is written at once, and one event
an outage. The same thread tells the nodes that invited this one when its addresses change.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from state import event, fleet
from state.db import Database
from state.errors import MlxqError
from state.fleet import Node
from tasks.fleet import identity, joining
from tasks.fleet.node_client import NodeClient, NodeFailure
from tasks.plan import fleet as plan
from tasks.plan.fleet import Look
from tasks.queue import tick
from tasks.runtime import log, runtime

LOOK_S = 3.0
LISTS_S = 60.0
"""How often a node's own list of models is compared with what it says it serves."""
NOTE_S = 30.0
"""How often it is written that a node answered, while nothing else changes."""
AT_ONCE = 16


class NodeWatch:
    """What is remembered of the nodes between looks."""

    def __init__(self) -> None:
        self._due = threading.Event()
        self._thread: threading.Thread | None = None
        self._failures: dict[str, int] = {}
        self._listed: dict[str, float] = {}

    def begin(self) -> None:
        """Have the nodes looked at, where there are any and no look is under way; return at once."""
        db = runtime.database()
        if not (fleet.nodes(db) or fleet.memberships(db)):
            return
        self._due.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="node-watch", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not runtime.stopping.is_set():
            self._due.wait()
            self._due.clear()
            try:
                self.look(runtime.database())
            except MlxqError as problem:  # the next tick looks again
                log.warning("nodes_not_looked_at", cause=problem.message)

    def look(self, db: Database) -> None:
        """Look at every node once, and write what that changes."""
        nodes = fleet.nodes(db)
        for name in self._failures.keys() - {node.name for node in nodes}:
            del self._failures[name]
        for node, observation in self._looks(nodes):
            self._record(db, node, observation)
        announce(db)

    def _looks(self, nodes: Sequence[Node]) -> list[tuple[Node, Look]]:
        """Return how each node is; all are asked at the same time."""
        if not nodes:
            return []
        with ThreadPoolExecutor(min(AT_ONCE, len(nodes)), "look-at-node") as pool:
            return list(zip(nodes, pool.map(self._look, nodes), strict=True))

    def _look(self, node: Node) -> Look:
        lists = time.monotonic() - self._listed.get(node.name, -LISTS_S) >= LISTS_S
        try:
            with NodeClient.of(runtime.home, node) as client:
                observation = client.look(lists=lists)
                if lists and observation.status:
                    self._listed[node.name] = time.monotonic()
                    return _asked_again(client, node, observation)
        except MlxqError as problem:
            return Look(node.address, failure="refused", words=problem.message)
        return observation

    def _record(self, db: Database, node: Node, observation: Look) -> None:
        """Write what a look changes, with an event where it begins or ends an outage.

        A node that joined again meanwhile was looked at with a key that it had revoked.
        """
        failures = self._failures.get(node.name, 0)
        self._failures[node.name] = 0 if observation.status else failures + 1
        judgement = plan.judge(node, observation, failures, db.now())
        changes = dict(judgement.changes)
        if node.seen_at and 0 <= changes.get("seen_at", node.seen_at) - node.seen_at < NOTE_S and not node.problem:
            changes.pop("seen_at", None)
        with db.transaction():
            current = fleet.find(db, node.name)
            same = current is not None and current.joined_at == node.joined_at
            if same and fleet.change(db, node.name, **changes) and judgement.event:
                event.record(db, judgement.event, subject=node.name, cause=judgement.cause)


def _asked_again(client: NodeClient, node: Node, observation: Look) -> Look:
    """Return a look that lists, of the names that were answered with 404, those alone that are answered now."""
    if observation.listed is None or not node.missing:
        return observation
    still = {name for name in node.missing if name in observation.listed and not _serves(client, name)}
    return Look(observation.address, observation.status, listed=observation.listed - still)


def _serves(client: NodeClient, name: str) -> bool:
    """Return whether a node has a model now; one that does not say has it not."""
    try:
        return client.serves(name)
    except NodeFailure:
        return False


def announce(db: Database) -> None:
    """Report the addresses of this machine to each node that invited it, where they are others than it knows."""
    memberships = fleet.memberships(db)
    if not memberships or not identity.is_open(db.home):
        return
    with suppress(MlxqError):  # told at the next look
        addresses = identity.addresses(db.home)
        for membership in memberships:
            if membership.announced != addresses:
                joining.announce(db, membership, addresses)


WATCH = NodeWatch()


@tick("look at the nodes of the fleet", LOOK_S)
def look_at_nodes() -> None:
    """Look at each node of the fleet."""
    WATCH.begin()
