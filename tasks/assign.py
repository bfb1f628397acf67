"""Give a model a tier of its own, and take a tier away for good."""

from __future__ import annotations

from typing import Any

from state import service as rows
from state import settings, stack, weights
from tasks import advice, roster, upkeep
from tasks.plan.gateway import SERVICE as GATEWAY
from tasks.plan.place import place
from tasks.queue import Context, job


@job("assign")
def assign(context: Context, model: str, quant: str, tier: str, *, alone: bool = False) -> dict[str, Any]:
    """Put a tier for a catalog model into the stack, or with `alone` in place of it, and bring it up.

    The engine comes up before the gateway is told of it, so no request meets a tier that is not there.
    Gives {"tier", "model", "context", "port"}. Raises NotSetUp, NotFound, UsageProblem, DoesNotFit.
    """
    db, home = context.db, context.home
    now = stack.tiers(db)
    if not any((one.name, one.model, one.quant) == (tier, model, quant) for one in now) or (alone and len(now) > 1):
        before = [] if alone else now
        known = advice.find(model, advice.known(home)).model
        there = weights.newest(db, known.quants[quant].source)
        made = place(
            tier,
            known,
            quant,
            before,
            base_port=settings.load(home)["tier-port-base"],
            budget_bytes=roster.budget(db, home),
            weights=there.folder if there else "",
        )
        stack.replace(db, [*before, made])
        roster.made_by_hand(db)
    for following in roster.arrival(tier, roster.leaving(db)):
        context.then(following)
    found = stack.tier(db, tier)
    return {"tier": tier, "model": found.model, "context": found.context, "port": found.port}


@job("retire")
def retire(context: Context, service: str) -> dict[str, Any]:
    """Put down a service that left the stack, and forget it; one that is back in it stays.

    It serves until no gateway that still knows it is left.

    Gives {"service", "gone"}.
    """
    if service not in roster.leaving(context.db):
        return {"service": service, "gone": False}
    _await_last_answers(context)
    rows.want(context.db, service, "down")
    with upkeep.hold(service, context.check):
        upkeep.take_down(context.db, context.home, rows.get(context.db, service))
        return {"service": service, "gone": rows.remove(context.db, service)}


def _await_last_answers(context: Context) -> None:
    """Wait until a gateway that was replaced has ended: some of its requests may be with this tier."""
    while (gate := rows.find(context.db, GATEWAY)) and upkeep.leaving(gate):
        context.report("waiting for the last answers")
        context.wait(0.5)
