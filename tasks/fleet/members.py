"""The machines of the fleet as jobs change them: a node, over its API, and this machine, in its own ledger."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, cast

from state import fleet, ledger, stack
from state.db import Database
from state.errors import UsageProblem
from tasks import recommend
from tasks.fleet import identity, node_jobs, own_models
from tasks.fleet.node_client import NodeClient, NodeFailure

OWN = "own"
"""In place of a key's name, for what this machine does for its own fleet."""
JobRow = Mapping[str, Any]
"""A job as `node_jobs.document` has it; a node may send anything."""


class FleetMember(Protocol):
    """One machine. Each call may raise Offline, and what the machine answers."""

    name: str

    def post(self, command: str, args: Mapping[str, Any], key: str) -> list[int]:
        """Have it enqueue the jobs of a command, once for each idempotency key; return their numbers there."""
        ...

    def jobs(self, number: int) -> list[JobRow]:
        """Return a job with what came of it."""
        ...

    def cancel(self, number: int) -> None:
        """Cancel a job."""
        ...

    def served(self) -> dict[str, str]:
        """Return "model quant" by tier of its stack."""
        ...

    def running(self) -> int:
        """Return how many requests it answers now."""
        ...

    def problem(self, tiers: Sequence[str]) -> str | None:
        """Return why it does not serve these tiers; None where it does."""
        ...


class NodeMember:
    """A node that joined."""

    def __init__(self, client: NodeClient) -> None:
        self.name = client.node.name
        self._client = client

    def post(self, command: str, args: Mapping[str, Any], key: str) -> list[int]:
        """Have it enqueue jobs, by a request that is signed with its key."""
        return self._client.post_jobs(command, args, key)

    def jobs(self, number: int) -> list[JobRow]:
        """Return a job with what came of it."""
        rows = self._client.ask("GET", f"/fleet/v1/jobs/{number}").get("jobs")
        return [as_object(row) for row in cast("list[Any]", rows)] if isinstance(rows, list) else []

    def cancel(self, number: int) -> None:
        """Cancel a job."""
        self._client.ask("POST", f"/fleet/v1/jobs/{number}/cancel")

    def served(self) -> dict[str, str]:
        """Return "model quant" by tier, as the machine describes itself."""
        tiers = as_object(self._client.ask("GET", "/fleet/v1/machine").get("stack"))
        return {tier: str(words) for tier, words in tiers.items()}

    def running(self) -> int:
        """Return how many requests it answers now; 0 where it does not say."""
        status = self._client.look().status
        return status.running if status else 0

    def problem(self, tiers: Sequence[str]) -> str | None:
        """Return what is wrong by its status, and by asking each tier for one token."""
        look = self._client.look()
        if look.status is None:
            return look.words
        if missing := sorted(set(tiers) - look.status.serves.keys()):
            return look.status.problem or f"not serving: {', '.join(missing)}"
        try:
            silent = [tier for tier in tiers if not self._client.answers(tier)]
        except NodeFailure as failure:
            return failure.words
        return look.status.problem or (f"no answer from {', '.join(silent)}" if silent else None)


class OwnMember:
    """This machine."""

    def __init__(self, db: Database, name: str) -> None:
        self.name = name
        self._db = db

    def post(self, command: str, args: Mapping[str, Any], key: str) -> list[int]:
        """Enqueue the jobs in this ledger."""
        return node_jobs.enqueue(self._db, OWN, key, command, args)

    def jobs(self, number: int) -> list[JobRow]:
        """Return a job with what came of it."""
        return [node_jobs.document(row) for row in node_jobs.find(self._db, OWN, number)]

    def cancel(self, number: int) -> None:
        """Cancel a job."""
        ledger.cancel(self._db, number)

    def served(self) -> dict[str, str]:
        """Return "model quant" by tier of the stack."""
        return recommend.served(stack.tiers(self._db))

    def running(self) -> int:
        """Return 0: apps ask this machine's gateway too, and its engines end after their last answers anyway."""
        return 0

    def problem(self, tiers: Sequence[str]) -> str | None:  # noqa: ARG002 (its jobs asked each tier for an answer)
        """Return which of its services should run and do not serve."""
        return own_models.problem(self._db)


@contextmanager
def of(db: Database, name: str) -> Generator[FleetMember]:
    """Yield the machine of a name. Raises NotFound, Damaged, UsageProblem for a server that does no jobs."""
    if name == identity.own_name(db.home):
        yield OwnMember(db, name)
        return
    node = fleet.get(db, name)
    if node.kind == "openai":
        raise UsageProblem(f"{name} speaks OpenAI's API alone: it does no jobs.", hint="mlxq node list")
    with NodeClient.of(db.home, node) as client:
        yield NodeMember(client)


def as_object(value: Any) -> dict[str, Any]:
    """Return an object that another machine sends; an empty one for anything else."""
    rows = cast("dict[Any, Any]", value) if isinstance(value, dict) else {}
    return {str(name): entry for name, entry in rows.items()}
