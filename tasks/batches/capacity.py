"""How many lines of a batch are on their way to an engine at once."""

from __future__ import annotations

from state import settings, stack
from state.batches.batches import Batch
from state.db import Database
from state.errors import UsageProblem
from state.paths import Home
from tasks.plan import gateway as plan

AHEAD = 2
"""How many times what an engine runs side by side it is given, so that it has the next lines while answers are on their
way to the results. It reads the prompts of those that begin together at once; one by one they stop the others for a
step each: 80 lines of 48 tokens took a twelfth longer with a single line that waits.
"""
LEAST = AHEAD


def in_flight(db: Database, home: Home, batch: Batch, model: str) -> int:
    """Return AHEAD times the requests that the engine behind a model's name runs side by side, which are one at least.

    Engines are started with this number and have what is more wait (`--max-num-seqs` of both programs). What is free of
    them is the gateway's to say: it begins no line while another request is at work.
    """
    tiers = {tier.name: tier for tier in stack.tiers(db)}
    try:
        names = plan.aliases(settings.load(home)["aliases"], list(tiers.values()))
    except UsageProblem:
        names = dict(plan.ALIASES)
    name = plan.resolve(names | {name: name for name in tiers}, batch.tier or model)
    tier = tiers.get(name or "") or next(iter(tiers.values()), None)
    return max(LEAST, AHEAD * tier.engine.concurrency) if tier else LEAST
