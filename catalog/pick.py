"""What serves at each tier, and how it grows into the memory that is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from catalog.fit import PREFILL_STEP, SMALL_STEP, Memory, cache_bytes, memory, step_for
from catalog.intent import Wish
from catalog.offer import Offer, Rated
from catalog.quality import Quality, quality
from catalog.speed import Speed
from state.classes import dataclass


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
    """What the engine keeps of prompts of earlier turns; 0 where it could not use them."""
    speed: Speed
    quality: Quality
    prefill_step: int = PREFILL_STEP
    """Tokens of prompt read at once."""
    reading_s: float = 0.0
    """Seconds in which a prompt of full context is read."""
    shares: str = ""
    """The tier whose engine serves this one too; empty where it has its own."""
    reasons: tuple[str, ...] = ()
    runner_up: str = ""
    """"model quant" that would serve here if this model did not exist; empty when none would fit."""

    @property
    def resident(self) -> int:
        """The bytes that stay while no prompt is read; 0 where another tier's engine serves."""
        return 0 if self.shares else self.memory.resident + self.cache_bytes

    @property
    def bytes(self) -> int:
        """The peak of the tier's engine, while it reads a prompt of full context; 0 where another's serves."""
        return 0 if self.shares else self.memory.total + self.cache_bytes


@dataclass(frozen=True)
class Recommendation:
    """One stack for one machine."""

    picks: tuple[Pick, ...]
    intent: str
    budget: int
    explain: str = ""
    usable_bytes: int = 0
    """What Metal or the operating system allows; 0 where it was not asked for."""

    @property
    def engines(self) -> tuple[Pick, ...]:
        """The picks that have an engine of their own."""
        return tuple(pick for pick in self.picks if not pick.shares)

    @property
    def total(self) -> int:
        """Bytes at the peak: all engines there, and one of them reads a prompt of its full context."""
        return together(self.engines)

    @property
    def at_once(self) -> int:
        """Bytes when all engines read a prompt of their full context at the same time."""
        return sum(pick.bytes for pick in self.engines)

    @property
    def over(self) -> int:
        """Bytes by which `at_once` passes what the machine allows; 0 where it does not."""
        return max(0, self.at_once - self.usable_bytes) if self.usable_bytes else 0

    def tier(self, name: str) -> Pick:
        """Return the pick of one tier. Raises KeyError."""
        for pick in self.picks:
            if pick.tier == name:
                return pick
        raise KeyError(name)


def together(picks: Sequence[Pick]) -> int:
    """Return the bytes of these engines while one of them reads a prompt of its full context."""
    return sum(pick.resident for pick in picks) + max((pick.memory.prefill for pick in picks), default=0)


def first_pick(offer: Offer) -> Pick:
    """Return the least that an offer can serve with."""
    need = memory(offer.model, offer.quant, offer.context, 1, offer.prefill_step)
    return Pick(
        offer.tier, offer.model.id, offer.quant, offer.context, 1, need, offer.cache_bytes,
        offer.speed, quality(offer.model), offer.prefill_step, offer.reading_s,
    )  # fmt: skip


@dataclass(frozen=True)
class GrowingEngine:
    """One engine as it grows: its pick, what is known of its model, what its tiers together could use."""

    pick: Pick
    rated: Rated
    contexts: tuple[int, ...]
    concurrency: int
    patience: float

    def steps(self) -> list[Pick]:
        """Return the next things this engine could use, the most useful first."""
        pick, model = self.pick, self.rated.model
        one_prompt = cache_bytes(model, pick.context)
        longer = min((context for context in self.contexts if context > pick.context), default=0)
        steps: list[Pick] = []
        if longer in self.rated.speeds and longer / self.rated.speeds[longer].prompt <= self.patience:
            steps.append(self._resized(longer, pick.concurrency))
        if pick.concurrency < self.concurrency:
            steps.append(self._resized(pick.context, pick.concurrency + 1))
        if self.rated.reuses and pick.cache_bytes < self.concurrency * one_prompt:
            steps.append(replace(pick, cache_bytes=pick.cache_bytes + one_prompt))
        return steps

    def _resized(self, context: int, concurrency: int) -> Pick:
        """Return the pick with another context or more requests; it always keeps the prompts of one full context."""
        pick, model = self.pick, self.rated.model
        small = pick.prefill_step == SMALL_STEP and step_for(model, pick.context) != SMALL_STEP
        step = SMALL_STEP if small else step_for(model, context)
        cache = max(pick.cache_bytes, cache_bytes(model, context)) if self.rated.reuses else 0
        need = memory(model, pick.quant, context, concurrency, step)
        reading = context / self.rated.speeds[context].prompt if context in self.rated.speeds else pick.reading_s
        return replace(
            pick, context=context, concurrency=concurrency, memory=need, cache_bytes=cache,
            prefill_step=step, reading_s=reading,
        )  # fmt: skip


def engine(offer: Offer, rated: Rated, wishes: Mapping[str, Wish]) -> GrowingEngine:
    """Return an engine that serves with the least its offer can."""
    wanted = [wishes[tier] for tier in offer.tiers]
    contexts = tuple(sorted({context for wish in wanted for context in wish.contexts}))
    concurrency = max(wish.concurrency for wish in wanted)
    return GrowingEngine(first_pick(offer), rated, contexts, concurrency, max(wish.patience for wish in wanted))


def grow(engines: Sequence[GrowingEngine], limit: int, bound: Mapping[str, str]) -> list[GrowingEngine]:
    """Spend what is left, a step an engine and turn, until nothing more fits or nothing more is of use.

    `bound`: tiers whose window may be at most half of that of another tier, by the tier bound.
    """
    grown = list(engines)
    progress = True
    while progress:
        progress = False
        for at, candidate in enumerate(grown):
            for bigger in candidate.steps():
                after = [*grown[:at], replace(candidate, pick=bigger), *grown[at + 1 :]]
                if together([member.pick for member in after]) <= limit and _in_bounds(after, bound):
                    grown, progress = after, True
                    break
    return grown


def _in_bounds(engines: Sequence[GrowingEngine], bound: Mapping[str, str]) -> bool:
    """Return whether no window has outgrown the one it must stay below."""
    windows = {candidate.pick.tier: candidate.pick.context for candidate in engines}
    return all(
        2 * windows[lower] <= windows[upper] for lower, upper in bound.items() if lower in windows and upper in windows
    )
