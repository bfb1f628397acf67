"""How many lines of a batch an engine takes at once."""

from __future__ import annotations

from state import settings, stack
from state.batches.batches import Batch
from state.db import Database
from state.errors import UsageProblem
from state.paths import Home
from tasks.plan import gateway as plan

LEAST = 1


def concurrency(db: Database, home: Home, batch: Batch, model: str) -> int:
    """Return the requests that the engine behind a model's name runs side by side; 1 where it is not known yet.

    What is free of them is the gateway's to say: it begins no line while another request is at work.
    """
    tiers = {tier.name: tier for tier in stack.tiers(db)}
    try:
        names = plan.aliases(settings.load(home)["aliases"], list(tiers.values()))
    except UsageProblem:
        names = dict(plan.ALIASES)
    name = plan.resolve(names | {name: name for name in tiers}, batch.tier or model)
    tier = tiers.get(name or "") or next(iter(tiers.values()), None)
    return max(LEAST, tier.engine.concurrency) if tier else LEAST
