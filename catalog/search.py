"""The best stack of what was offered: one offer a tier, within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from catalog import units
from catalog.intent import FAST, STANDARD
from catalog.offer import Offer

MUCH_FASTER, BARELY_FASTER = 1.5, 1.05
"""Fast over standard, tokens a second: what is wanted, and what must be where nothing better fits."""


class TooSmall(ValueError):
    """Nothing fits. Attributes: needs_bytes of the smallest stack, budget_bytes."""

    def __init__(self, needs_bytes: int, budget_bytes: int) -> None:
        """Take both sizes."""
        self.needs_bytes, self.budget_bytes = needs_bytes, budget_bytes
        super().__init__(
            f"The smallest stack needs {units.memory(needs_bytes)}; the budget is {units.memory(budget_bytes)}: "
            f"{units.memory(self.short_bytes)} too little."
        )

    @property
    def short_bytes(self) -> int:
        """What is missing."""
        return self.needs_bytes - self.budget_bytes


def best_stack(offers: Mapping[str, list[Offer]], limit: int) -> list[Offer]:
    """Give the stack of highest worth that fits. Raises TooSmall."""
    for ratio in (MUCH_FASTER, BARELY_FASTER):
        found = search(list(offers.values()), limit, ratio, by_worth)
        if found:
            return found
    everything = sum(max(offer.bytes for offer in some) for some in offers.values())
    smallest = search(list(offers.values()), everything, BARELY_FASTER, lambda offer: -offer.bytes)
    raise TooSmall(sum(offer.bytes for offer in smallest), limit)


def search(tiers: list[list[Offer]], limit: int, ratio: float, value: Callable[[Offer], float]) -> list[Offer]:
    """Find the best combination by branch and bound; an empty list when none fits."""
    ordered = [sorted(some, key=value, reverse=True) for some in tiers]
    hope = [sum(value(some[0]) for some in ordered[at:]) for at in range(len(ordered) + 1)]
    least = [sum(min(offer.bytes for offer in some) for some in ordered[at:]) for at in range(len(ordered) + 1)]
    best: list[Offer] = []
    most = -math.inf

    def go(at: int, taken: list[Offer], used: int, so_far: float) -> None:
        nonlocal best, most
        if at == len(ordered):
            best, most = list(taken), so_far
            return
        for offer in ordered[at]:
            if so_far + value(offer) + hope[at + 1] <= most:
                return
            if used + offer.bytes + least[at + 1] <= limit and agree(taken, offer, ratio):
                go(at + 1, [*taken, offer], used + offer.bytes, so_far + value(offer))

    go(0, [], 0, 0.0)
    return best


def agree(taken: Sequence[Offer], offer: Offer, ratio: float) -> bool:
    """Say whether an offer may stand beside those taken: another model, and fast is faster than standard."""
    for one in taken:
        if one.model.id == offer.model.id:
            return False
        pair = {one.tier: one, offer.tier: offer}
        if STANDARD in pair and FAST in pair and pair[FAST].speed.decode < ratio * pair[STANDARD].speed.decode:
            return False
    return True


def by_worth(offer: Offer) -> float:
    """Rank offers by what they are worth."""
    return offer.worth
