"""How much of its prompts a tier does not read again: the same on every surface.

`mlxq status`, `mlxq top`, `mlxq usage`, `mlxq doctor`, the dashboard and `--json` all take it from here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from state.classes import dataclass
from state.db import Database
from state.metrics import usage
from state.service import Service
from state.stack import Tier

WEEK_S = 6 * 86_400
"""Today and the six days before."""
LITTLE = 0.5
"""A share below this is no reuse to speak of: engines that reuse a prompt reuse nearly all of it."""
REREADS = "reads every prompt again"


@dataclass(frozen=True)
class PromptReuse:
    """What is known of one tier. Shares are 0 to 1."""

    share: float | None = None
    """Of all prompt tokens of the last seven days, those that were not read again; None where there were none."""
    second_turn: float | None = None
    """Of a conversation's earlier part, when the smoke test last asked; None before."""

    @property
    def rereads(self) -> bool:
        """Whether every turn of a conversation is read from its beginning."""
        return self.second_turn is not None and self.second_turn < LITTLE

    @property
    def text(self) -> str:
        """The share, and what is wrong; empty where nothing is known."""
        return ", ".join(filter(None, (percent(self.share), REREADS if self.rereads else "")))


UNKNOWN = PromptReuse()


def percent(share: float | None) -> str:
    """Return a share for people; empty for None."""
    return "" if share is None else f"{share:.0%}"


def of_tiers(db: Database, tiers: Sequence[Tier], rows: Mapping[str, Service]) -> Mapping[str, PromptReuse]:
    """Return what is known of the tiers whose engine is in `rows`: the second turn is that of the engine."""
    sums = _sums(db)
    return {
        tier.name: PromptReuse(_share(sums.get(tier.name)), rows[tier.engine.name].reused)
        for tier in tiers
        if tier.engine.name in rows
    }


def of_engine(db: Database, row: Service, tiers: Sequence[Tier]) -> PromptReuse:
    """Return what is known of the service `row` and all the tiers that it serves."""
    sums = _sums(db)
    own = [sums[tier.name] for tier in tiers if tier.name in sums]
    names = ("prompt_tokens", "cached_tokens")
    total = {name: sum(counts[name] for counts in own) for name in names}
    return PromptReuse(_share(total if own else None), row.reused)


def _sums(db: Database) -> Mapping[str, Mapping[str, int]]:
    """Return the usage of the last seven days by tier."""
    since = time.strftime("%Y-%m-%d", time.gmtime(db.now() - WEEK_S))
    return {row["tier"]: row for row in usage.totals(db, "tier", since)}


def _share(sums: Mapping[str, int] | None) -> float | None:
    return usage.cached_share(sums) if sums else None
