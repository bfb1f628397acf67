"""What serves at each tier, and how it grows into the memory that is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from catalog.fit import PREFILL_STEP, Memory, cache_bytes, memory
from catalog.intent import Wish
from catalog.model import Model
from catalog.offer import CACHE_FLOOR, Offer
from catalog.quality import Quality, quality
from catalog.speed import Speed


@dataclass(frozen=True)
class Pick:
    """What serves at one tier, and why."""

    tier: str
    model: str
    quant: str
    context: int
    concurrency: int
    memory: Memory
    cache_bytes: int
    speed: Speed
    quality: Quality
    prefill_step: int = PREFILL_STEP
    """Tokens of prompt read at once."""
    reasons: tuple[str, ...] = ()
    runner_up: str = ""
    """"model quant" that would serve here if this model did not exist; empty when none would fit."""

    @property
    def bytes(self) -> int:
        """The tier's share of the budget."""
        return self.memory.total + self.cache_bytes


@dataclass(frozen=True)
class Recommendation:
    """One stack for one machine."""

    picks: tuple[Pick, ...]
    intent: str
    budget: int
    explain: str = ""

    @property
    def total(self) -> int:
        """Bytes all tiers need together."""
        return sum(pick.bytes for pick in self.picks)

    def tier(self, name: str) -> Pick:
        """Give the pick of one tier. Raises KeyError."""
        for pick in self.picks:
            if pick.tier == name:
                return pick
        raise KeyError(name)


def first_pick(offer: Offer, wish: Wish) -> Pick:
    """Give the least that an offer can serve with."""
    side_by_side = wish.concurrency[0]
    need = memory(offer.model, offer.quant, offer.context, side_by_side, offer.prefill_step)
    return Pick(
        offer.tier, offer.model.id, offer.quant, offer.context, side_by_side, need, CACHE_FLOOR,
        offer.speed, quality(offer.model), offer.prefill_step,
    )  # fmt: skip


def grow(picks: list[Pick], known: Mapping[str, Model], wishes: Mapping[str, Wish], limit: int) -> list[Pick]:
    """Spend what is left, a step a tier and turn, until nothing more fits or nothing more is of use."""
    grown = list(picks)
    progress = True
    while progress:
        progress = False
        for at, pick in enumerate(grown):
            spare = limit - sum(one.bytes for one in grown) + pick.bytes
            for bigger in _steps(pick, known[pick.model], wishes[pick.tier]):
                if bigger.bytes <= spare:
                    grown[at], progress = bigger, True
                    break
    return grown


def _steps(pick: Pick, model: Model, wish: Wish) -> list[Pick]:
    """Give the next things this tier could use, the most useful first."""
    steps: list[Pick] = []
    one_prompt = cache_bytes(model, pick.context)
    if pick.cache_bytes < one_prompt:
        steps.append(replace(pick, cache_bytes=one_prompt))
    if 2 * pick.context <= min(wish.contexts[-1], model.context, wish.patience * pick.speed.prompt):
        steps.append(_resized(pick, model, 2 * pick.context, pick.concurrency))
    if pick.concurrency < wish.concurrency[1]:
        steps.append(_resized(pick, model, pick.context, pick.concurrency + 1))
    if pick.cache_bytes < wish.concurrency[1] * one_prompt:
        steps.append(replace(pick, cache_bytes=pick.cache_bytes + one_prompt))
    return steps


def _resized(pick: Pick, model: Model, context: int, concurrency: int) -> Pick:
    need = memory(model, pick.quant, context, concurrency, pick.prefill_step)
    return replace(pick, context=context, concurrency=concurrency, memory=need)
