"""What a request for a tier means for its engine, which may serve others too, and for the gateway.

No huey: commands use it. The callers hold a transaction, so that of two requests the second sees the first.
"""

from __future__ import annotations

from collections.abc import Sequence

from state import ledger, stack
from state import service as rows
from state.classes import dataclass
from state.db import Database
from state.job import NewJob
from state.stack import Tier
from tasks import kinds
from tasks.plan.gateway import SERVICE as GATEWAY

DRAINS = "SELECT id FROM jobs WHERE kind = 'drain' AND service = ? AND state IN ('blocked', 'queued', 'running')"


@dataclass(frozen=True)
class Effects:
    """What becomes of services when tiers are to be served or not."""

    services: list[str]
    """The services to start or to stop."""
    reroutes: bool = False
    """Whether a tier comes or goes whose engine runs for others: the gateway must be told."""


def start(db: Database, names: Sequence[str]) -> Effects:
    """Record that these tiers and services should be served; return what that takes."""
    tiers = stack.tiers(db)
    stack.set_desired(db, names, "up")
    return Effects(stack.services(tiers, names), any(_is_rerouted(tier, tiers, names, now="down") for tier in tiers))


def stop(db: Database, names: Sequence[str]) -> Effects:
    """Record that these tiers and services should not be served; return what that takes.

    An engine stays while a tier is left that should be served.
    """
    before = stack.tiers(db)
    effects = stops(before, names)
    stack.set_desired(db, names, "down")
    return effects


def cancel_drain(db: Database, name: str) -> None:
    """Have a drain of the service stop waiting; one that has not begun is dropped."""
    for row in db.rows(DRAINS, (name,)):
        ledger.cancel(db, row["id"])


def stops(tiers: Sequence[Tier], names: Sequence[str]) -> Effects:
    """Return what it takes to stop these tiers and services. Pure."""
    serving = {tier.engine.name for tier in tiers if tier.desired == "up" and tier.name not in names}
    stopped = [name for name in stack.services(tiers, names) if name not in serving]
    staying = [tier for tier in tiers if tier.engine.name in serving]
    return Effects(stopped, any(_is_rerouted(tier, tiers, names, now="up") for tier in staying))


def _is_rerouted(tier: Tier, tiers: Sequence[Tier], names: Sequence[str], *, now: str) -> bool:
    """Return whether a tier among `names` changes from `now`, and the gateway does not see it by its engine."""
    return tier.name in names and tier.desired == now and len(stack.served_by(tiers, tier.engine.name)) > 1


def reroute(db: Database, after: Sequence[str] = ()) -> list[NewJob]:
    """Return the jobs that tell the gateway, if it should run, which tiers are served now.

    `after`: labels of jobs before, whatever becomes of them.
    """
    row = rows.find(db, GATEWAY)
    gateway = [kinds.new("start", {"service": GATEWAY}, needs=["configure"], label=GATEWAY)]
    return [kinds.new("configure", after=after), *(gateway if row and row.desired == "up" else [])]
