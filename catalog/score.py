"""Which models serve at which tier: chosen together, so that the sum fits and each does its own work.

The choice has two steps. `search` takes the three models, quants and contexts with the highest sum of
worth that fits the budget, the fast one faster than the standard one, all three different. `grow` then
spends what is left on concurrency, prompt caches and context, in turns, up to what the tier can use. Where a person
chose the models, `compose` does the same with these alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from catalog.explain import explain, explain_chosen, reasoned, reasons_for
from catalog.fit import PREFILL_STEP, memory
from catalog.intent import FAST, INTENTS, LONGCTX, STANDARD, TIERS, Wish
from catalog.machine import Machine
from catalog.model import Model
from catalog.offer import BUILTIN, CACHE_FLOOR, Offer, Rated, lasts, offers_at, offers_of, rate, rate_all, reached
from catalog.pick import Pick, Recommendation, first_pick, grow
from catalog.quality import quality
from catalog.search import TooSmall, best_stack, by_worth, search
from catalog.speed import Measured, predict

SLACK = 0.9
"""Share of the usable memory that is planned for; predicted peaks were short by up to a tenth."""
PANIC_SHARE = 0.85
"""From this share of all memory on, macOS may panic (Rapid-MLX, ModelSizing.swift)."""
SMALL_BUDGET, SMALL_STEP = 12_000_000_000, 512
"""Below this budget prompts are read in chunks of 512 tokens: a little slower, half the work space."""
Wishes = Mapping[str, Wish]
"""What each tier would like to do."""
Found = TypeVar("Found")


def budget(machine: Machine) -> int:
    """Give the bytes to plan for: nine tenths of what Metal allows, well away from where macOS panics."""
    return int(SLACK * min(machine.usable_bytes, PANIC_SHARE * machine.memory_bytes))


def recommend(
    machine: Machine,
    known: Mapping[str, Model],
    intent: str = "balanced",
    *,
    budget_bytes: int | None = None,
    measured: Sequence[Measured] = (),
    tiers: Sequence[str] = TIERS,
    quant: str | None = None,
) -> Recommendation:
    """Choose the models of the tiers for this machine, together.

    Raises TooSmall when no stack fits, KeyError for an unknown intent or tier, ValueError when no model
    exists in the quant asked for.
    """
    limit = budget(machine) if budget_bytes is None else budget_bytes
    wishes = {tier: INTENTS[intent][tier] for tier in tiers}
    rated = rate_all(machine, known, intent, measured, quant)
    if not rated:
        raise ValueError(f"No model that could serve exists in {quant}.")
    (offers, chosen), wishes = _or_cramped(lambda wishes: _choose(rated, wishes, limit), wishes)
    picks = grow([first_pick(offer, wishes[offer.tier]) for offer in chosen], known, wishes, limit)
    told = tuple(reasoned(pick, offer, chosen, offers, limit) for pick, offer in zip(picks, chosen, strict=True))
    return Recommendation(told, intent, limit, explain(told, offers, intent, limit))


def compose(
    machine: Machine,
    known: Mapping[str, Model],
    choice: Mapping[str, tuple[str, str]],
    intent: str = "balanced",
    *,
    budget_bytes: int | None = None,
    measured: Sequence[Measured] = (),
) -> Recommendation:
    """Give the stack of models that a person chose, each with the most context and cache that fits beside the others.

    `choice` names model and quant of each tier. Raises TooSmall when they do not fit together, KeyError for
    an unknown intent, tier, model or quant, ValueError for one model at two tiers.
    """
    if len({model for model, _ in choice.values()}) < len(choice):
        raise ValueError("One model serves one tier.")
    limit = budget(machine) if budget_bytes is None else budget_bytes
    rated = {tier: rate(machine, known, model, quant, measured) for tier, (model, quant) in choice.items()}
    wishes = {tier: INTENTS[intent][tier] for tier in choice}
    found, wishes = _or_cramped(lambda wishes: _together(rated, wishes, limit), wishes)
    picks = grow([first_pick(offer, wishes[offer.tier]) for offer in found], known, wishes, limit)
    told = tuple(replace(pick, reasons=reasons_for(pick, offer)) for pick, offer in zip(picks, found, strict=True))
    return Recommendation(told, intent, limit, explain_chosen(told, intent, limit))


def alternatives(
    machine: Machine,
    known: Mapping[str, Model],
    now: Recommendation,
    tier: str,
    *,
    measured: Sequence[Measured] = (),
    quant: str | None = None,
) -> list[Offer]:
    """Give what else could serve at a tier of a stack, the worthiest first, one quant and context of each model.

    The other tiers keep their models, and may have to do with less context. `quant` leaves out all others.
    """
    step, others = _step(now.budget), [pick for pick in now.picks if pick.tier != tier]
    wish = _cramped(INTENTS[now.intent][tier])
    room = now.budget - sum(_least(pick, known, INTENTS[now.intent][pick.tier], step) for pick in others)
    free = [one for one in rate_all(machine, known, now.intent, measured, quant) if _may_serve(one, tier, now)]
    offers = [offer for one in free for offer in offers_of(one, tier, wish, step) if offer.bytes <= room]
    return _best_of_each(offers)


def _may_serve(one: Rated, tier: str, now: Recommendation) -> bool:
    """Say whether a model suits a tier, and serves none yet."""
    return one[0].id not in {pick.model for pick in now.picks} and (tier != LONGCTX or lasts(one[0]))


def _best_of_each(offers: Sequence[Offer]) -> list[Offer]:
    """Give each model's worthiest offer, the worthiest first."""
    best: dict[str, Offer] = {}
    for offer in sorted(offers, key=by_worth, reverse=True):
        best.setdefault(offer.model.id, offer)
    return list(best.values())


def _least(pick: Pick, known: Mapping[str, Model], wish: Wish, step: int) -> int:
    """Give the bytes with which a pick's model can still serve at its tier."""
    reach = reached((known[pick.model], pick.quant, pick.speed), pick.tier, _cramped(wish), step)
    return min(offer.bytes for offer in reach)


def _cramped(wish: Wish) -> Wish:
    """Give what a tier can do with when memory is short: less context, one request at a time."""
    return replace(wish, contexts=(wish.contexts[0] // 2, *wish.contexts), concurrency=(1, wish.concurrency[1]))


def _or_cramped(choose: Callable[[Wishes], Found], wishes: Wishes) -> tuple[Found, Wishes]:
    """Choose by these wishes, or by smaller ones where memory is short. Gives also the wishes; raises TooSmall."""
    try:
        return choose(wishes), wishes
    except TooSmall:
        cramped = {tier: _cramped(wish) for tier, wish in wishes.items()}
        return choose(cramped), cramped


def _together(rated: Mapping[str, Rated], wishes: Wishes, limit: int) -> list[Offer]:
    """Give the worthiest offers of these models, one a tier, that fit beside each other. Raises TooSmall."""
    offers = [reached(one, tier, wishes[tier], _step(limit)) for tier, one in rated.items()]
    found = search(offers, limit, 0.0, by_worth)
    if not found:
        raise TooSmall(sum(min(offer.bytes for offer in some) for some in offers), limit)
    return found


def _choose(
    rated: Sequence[Rated], wishes: Mapping[str, Wish], limit: int
) -> tuple[dict[str, list[Offer]], list[Offer]]:
    """Give the offers of every tier and the best stack of them. Raises TooSmall."""
    offers = {tier: offers_at(rated, tier, wish, _step(limit)) for tier, wish in wishes.items()}
    return offers, best_stack(offers, limit)


def _step(limit: int) -> int:
    """Give how many tokens of a prompt are read at once."""
    return SMALL_STEP if limit < SMALL_BUDGET else PREFILL_STEP


def builtin(machine: Machine, known: Mapping[str, Model], *, budget_bytes: int | None = None) -> Recommendation:
    """Give all three tiers on the model that travels with mlxq, for when no Hub is in reach.

    Raises TooSmall when not even that fits.
    """
    limit = budget(machine) if budget_bytes is None else budget_bytes
    contexts = {STANDARD: 4096, FAST: 2048, LONGCTX: known[BUILTIN].context}
    picks = tuple(_builtin_pick(machine, known[BUILTIN], tier, context) for tier, context in contexts.items())
    made = Recommendation(picks, "built-in", limit, "No Hub is in reach: every tier serves the built-in model.")
    if made.total > limit:
        raise TooSmall(made.total, limit)
    return made


def _builtin_pick(machine: Machine, model: Model, tier: str, context: int) -> Pick:
    quant = next(iter(model.quants))
    return Pick(
        tier=tier,
        model=model.id,
        quant=quant,
        context=context,
        concurrency=1,
        memory=memory(model, quant, context, prefill_step=SMALL_STEP),
        cache_bytes=CACHE_FLOOR,
        speed=predict(machine, model, quant, context),
        quality=quality(model),
        prefill_step=SMALL_STEP,
        reasons=("it travels with mlxq; no Hub is in reach",),
    )
