"""The best stack of what was offered: one engine for each group of tiers, within a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from catalog.intent import FAST, LONGCTX, STANDARD
from catalog.offer import Offer

MUCH_FASTER, FASTER = 1.5, 1.25
"""Fast over standard, tokens a second, each at its own context and both at the same: less is not worth an engine."""
FARTHER = 2
"""The window of longctx over that of standard: less is not worth an engine of its own."""
Shape = tuple[tuple[str, ...], ...]
"""Which tiers share an engine."""


def shapes(tiers: Sequence[str]) -> list[Shape]:
    """Return the ways in which these tiers may share engines: each its own, longctx at standard's, all at one."""
    apart: Shape = tuple((tier,) for tier in tiers)
    ways: list[Shape] = [apart]
    if STANDARD in tiers and LONGCTX in tiers and len(tiers) > 2:  # noqa: PLR2004 - with two tiers it is the last way
        pair = (STANDARD, LONGCTX)
        ways.append((pair, *((tier,) for tier in tiers if tier not in pair)))
    if len(tiers) > 1:
        ways.append((tuple(tiers),))
    return ways


def peak(offers: Sequence[Offer]) -> int:
    """Return the bytes that engines take together while one of them reads a prompt of its full context."""
    return sum(offer.resident for offer in offers) + max((offer.reading for offer in offers), default=0)


def search(groups: Sequence[Sequence[Offer]], limit: int, value: Callable[[Offer], float]) -> list[Offer]:
    """Return the best combination by branch and bound, one offer a group; an empty list when none fits."""
    ordered = [sorted(some, key=value, reverse=True) for some in groups]
    if not all(ordered):
        return []
    hope = [sum(value(some[0]) for some in ordered[at:]) for at in range(len(ordered) + 1)]
    least = [sum(min(offer.resident for offer in some) for some in ordered[at:]) for at in range(len(ordered) + 1)]
    best: list[Offer] = []
    most = -math.inf

    def go(at: int, chosen: list[Offer], so_far: float) -> None:
        nonlocal best, most
        if at == len(ordered):
            best, most = list(chosen), so_far
            return
        for offer in ordered[at]:
            if so_far + value(offer) + hope[at + 1] <= most:
                return
            together = [*chosen, offer]
            if peak(together) + least[at + 1] <= limit and agree(chosen, offer):
                go(at + 1, together, so_far + value(offer))

    go(0, [], 0.0)
    return best


def agree(chosen: Sequence[Offer], offer: Offer) -> bool:
    """Return whether an engine may stand beside those taken.

    It serves another model; fast is much faster than standard, each at its own context; longctx has at least twice the
    window of standard, and standard is no weaker than longctx.
    """
    for neighbor in chosen:
        if neighbor.model.id == offer.model.id:
            return False
        pair = {neighbor.tier: neighbor, offer.tier: offer}
        if STANDARD in pair and FAST in pair and not _faster(pair[STANDARD], pair[FAST]):
            return False
        if STANDARD in pair and LONGCTX in pair and not _farther(pair[STANDARD], pair[LONGCTX]):
            return False
    return True


def _faster(standard: Offer, fast: Offer) -> bool:
    """Return whether a fast one of its own earns its place beside this standard."""
    own = fast.decode >= MUCH_FASTER * standard.decode
    return own and fast.speed.decode >= FASTER * standard.speed.decode


def _farther(standard: Offer, longctx: Offer) -> bool:
    """Return whether a longctx of its own earns its place beside this standard."""
    return longctx.context >= FARTHER * standard.context and standard.points >= longctx.points


def by_worth(offer: Offer) -> float:
    """Rank offers by what they are worth."""
    return offer.worth
