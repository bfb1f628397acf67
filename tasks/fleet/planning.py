"""The plan of a fleet: what each machine of it is, by asking all at once, and what the catalog makes of that."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from catalog import fleet as catalog
from catalog.fleet import FleetPlan, Role
from catalog.intent import INTENTS
from state import facts, fleet
from state.db import Database
from state.errors import MlxqError, NotFound
from state.fleet import Node
from state.job import NewJob
from tasks import kinds, recommend
from tasks.fleet import identity, machine, machine_report
from tasks.fleet.machine_report import NodeMachine
from tasks.fleet.node_client import NodeClient
from tasks.plan.fleet import is_lost

AT_ONCE = 16
Asked = Mapping[str, NodeMachine | str]
"""Name of a machine -> what it is, or why that is not known."""


@dataclass(frozen=True)
class PlannedFleet:
    """A plan, with what it was made of."""

    own: str
    """The name of this machine."""
    machines: Mapping[str, NodeMachine]
    plan: FleetPlan
    sizes: Mapping[str, int]
    """Source -> bytes to download."""
    sources: Mapping[str, str]
    """"model quant" -> source."""

    @property
    def changes(self) -> list[Role]:
        """Return the roles that are others than now, this machine's last."""
        return sorted(self.plan.changes, key=lambda role: role.name == self.own)

    def fetches(self, role: Role) -> dict[str, int]:
        """Return what is to be downloaded for a role: "model quant" -> bytes."""
        wanted = dict.fromkeys(role.choice.values())
        present = self.machines[role.name].weights
        return {words: self.sizes[self.sources[words]] for words in wanted if self.sources[words] not in present}


def ask(db: Database, keep: Collection[str] = ()) -> Asked:
    """Return what each machine of the fleet is, this one first. `keep`: machines that are to stay as they are.

    Raises NotSetUp, NotFound for a name in `keep` that no machine has.
    """
    own, nodes = identity.own_name(db.home), fleet.nodes(db)
    if unknown := sorted(set(keep) - {own, *(node.name for node in nodes)}):
        raise NotFound(f"There is no node {unknown[0]!r} in this fleet.", hint="mlxq node list")
    machines_asked: dict[str, NodeMachine | str] = {own: _own(db, own, keep)}
    with ThreadPoolExecutor(AT_ONCE, "ask-node") as pool:

        def ask_one(node: Node) -> NodeMachine | str:
            return _ask(db, node, keep)

        answers = pool.map(ask_one, nodes)
        machines_asked |= zip((node.name for node in nodes), answers, strict=True)
    return machines_asked


def _own(db: Database, name: str, keep: Collection[str]) -> NodeMachine:
    """Return what this machine is. Raises NotSetUp, MlxqError."""
    described = machine.describe(db)
    try:
        own = machine_report.read(name, described, stays=name in keep)
        return replace(own, plan=replace(own.plan, plans=True))
    except ValueError as problem:
        message = f"What is known of this machine is no row of a machine: {problem}."
        raise MlxqError(message, hint="mlxq setup") from problem


def _ask(db: Database, node: Node, keep: Collection[str]) -> NodeMachine | str:
    """Return what a node is, or why it is not planned for."""
    if node.kind == "openai":
        return "speaks OpenAI's API alone, and does no jobs"
    if node.state == "draining":
        return f"is drained (mlxq node drain {node.name} --undo)"
    if is_lost(node):
        return str(node.problem)

    def described() -> dict[str, Any]:
        with NodeClient.of(db.home, node) as client:
            return client.ask("GET", "/fleet/v1/machine")

    return _read(node.name, described, keep)


def _read(name: str, described: Callable[[], dict[str, Any]], keep: Collection[str]) -> NodeMachine | str:
    try:
        return machine_report.read(name, described(), stays=name in keep)
    except MlxqError as problem:
        return problem.message.rstrip(".")
    except ValueError as problem:
        return f"does not say what machine it is: {problem}"


def plan(db: Database, machines_asked: Asked, intent: str | None = None) -> PlannedFleet:
    """Return the best plan for these machines. `intent`: the one of this machine's stack where it is None."""
    models = recommend.all_models(db.home)
    wanted = intent or facts.get(db, "stack").get("asked", {}).get("intent") or next(iter(INTENTS))
    readable = {name: entry for name, entry in machines_asked.items() if not isinstance(entry, str)}
    plan_made = catalog.plan([entry.plan for entry in readable.values()], models, wanted)
    silent = {name: entry for name, entry in machines_asked.items() if isinstance(entry, str)}
    plan_made = replace(plan_made, unplanned={**plan_made.unplanned, **silent})
    quants = {f"{model.id} {name}": quant for model in models.values() for name, quant in model.quants.items()}
    sources = {words: quant.source for words, quant in quants.items()}
    sizes = {quant.source: quant.bytes for quant in quants.values()}
    return PlannedFleet(identity.own_name(db.home), readable, plan_made, sizes, sources)


def changes(planned: PlannedFleet) -> list[NewJob]:
    """Return the jobs that make the fleet as planned; the first that fails stops those after it."""
    wanted = [(role.name, {"choice": role.choice, "intent": planned.plan.intent}) for role in planned.changes]
    return in_turn("change_node", wanted)


def in_turn(kind: str, wanted: Sequence[tuple[str, Mapping[str, Any]]]) -> list[NewJob]:
    """Return one job for each machine, each of which needs the one before. `wanted`: its name and other arguments."""
    labels = [f"{kind} {name}" for name, _ in wanted]
    return [
        kinds.new(kind, {"node": name, **args}, needs=labels[:number][-1:], label=labels[number])
        for number, (name, args) in enumerate(wanted)
    ]
