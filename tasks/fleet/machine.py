"""What this machine is and serves, as the node that plans the fleet is told."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from catalog.machine import from_row
from state import facts, stack, weights
from state.db import Database
from state.errors import not_set_up
from tasks import recommend, stack_jobs
from tasks.engines import serving


def describe(db: Database) -> dict[str, Any]:
    """Return it as JSON has it; tasks/fleet/machine_report.py reads it. Raises NotSetUp."""
    tiers = stack.require(db)
    row = facts.get(db, "machine")
    if not row:
        raise not_set_up(db.home.root)
    reuses = serving.reads_once(db, db.home)
    return {
        "machine": row,
        "budget_bytes": stack_jobs.tier_budget(db, db.home),
        "stack": recommend.served(tiers),
        "weights": sorted({entry.source for entry in weights.listing(db)}),
        "reads_once": [name for name, model in recommend.all_models(db.home).items() if reuses(model)],
        "measured": [asdict(entry) for entry in recommend.measured(db, from_row(row))],
    }
