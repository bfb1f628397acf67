"""Which models serve at which tier: chosen together, so that the sum fits and each does its own work.

The choice has two steps. `search` takes the engines with the highest sum of worth that fits the budget; tiers may
share one. `grow` then spends what is left on context, requests side by side and prompts of earlier turns, up to what
the tiers can use. Where a user chose the models, `compose` does the same with these alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from catalog.explain import Absent, explain, explain_chosen, reasons_for, runner_up
from catalog.fit import SMALL_STEP, memory, smallest, step_for
from catalog.intent import AGENTS, INTENTS, LONGCTX, STANDARD, TIERS, Wish
from catalog.machine import Machine, budget
from catalog.model import Model
from catalog.offer import (
    BUILTIN,
    Offer,
    Rated,
    Reuses,
    full_attention,
    lasts,
    offers_for,
    offers_of,
    rate,
    rate_all,
    reached,
)
from catalog.pick import Pick, Recommendation, engine, grow
from catalog.problems import TooSmall
from catalog.quality import quality
from catalog.search import Shape, by_worth, peak, search, shapes
from catalog.speed import Measured, predict
from state.classes import dataclass

SMALL_BUDGET = 12_000_000_000
"""Below this budget prompts are read in chunks of 512 tokens whatever the window."""
PATIENCE_S = 1200.0
"""Seconds in which a full window must be readable where memory or speed is short."""
Wishes = Mapping[str, Wish]
"""What each tier would like to do."""
Groups = Mapping[Shape, list[list[Offer]]]
"""All that could serve, by the way in which the tiers share engines and by engine."""


@dataclass(frozen=True)
class Choice:
    """The offers that were taken, all there were, and the wishes they answer."""

    offers: list[Offer]
    groups: Groups
    wishes: Wishes


def recommend(
    machine: Machine,
    models: Mapping[str, Model],
    intent: str = "balanced",
    *,
    budget_bytes: int | None = None,
    measured: Sequence[Measured] = (),
    tiers: Sequence[str] = TIERS,
    quant: str | None = None,
    reuses: Reuses = full_attention,
) -> Recommendation:
    """Choose the models of the tiers for this machine, together.

    `reuses` says of which models the installed engines read only what is new in a prompt. Raises TooSmall when no
    stack fits, KeyError for an unknown intent or tier, ValueError when no model exists in the quant asked for.
    """
    limit = budget(machine) if budget_bytes is None else budget_bytes
    wishes = {tier: INTENTS[intent][tier] for tier in tiers}
    if not any(quant in {None, *model.quants} for model in models.values() if model.id != BUILTIN):
        raise ValueError(f"No model that could serve exists in {quant}.")
    contexts, richer = _contexts(wishes.values()), int(1.5 * limit)
    rated = rate_all(machine, models, intent, measured, quant, contexts=contexts, limit=richer, reuses=reuses)
    choice = _choose(rated, wishes, limit)
    if choice is None:
        whole = rate_all(machine, models, intent, measured, quant, contexts=contexts, limit=10**18, reuses=reuses)
        raise TooSmall(_smallest(whole, wishes), limit)
    picks = _reasoned(_grown(choice, rated, limit), choice, limit)
    stack = Recommendation(picks, intent, limit, usable_bytes=machine.usable_bytes)
    enlarged = replace(choice, offers=_best(choice.groups, richer))
    better = _absent(machine, models, stack, measured)
    return replace(stack, explain=explain(stack, choice.offers, _grown(enlarged, rated, richer), better))


def _absent(
    machine: Machine, models: Mapping[str, Model], stack: Recommendation, measured: Sequence[Measured]
) -> Absent | None:
    """Return the best model that is rated above all of the stack, with what it would take; None where none is."""
    best = max(pick.quality.points for pick in stack.picks)
    agents = stack.intent == AGENTS
    better = [
        model for model in models.values()
        if not model.retired and quality(model).points > best and (model.tool_calling or not agents)
    ]  # fmt: skip
    if not better:
        return None
    model = max(better, key=lambda candidate: quality(candidate).points)
    quant = smallest(model).name
    context = min(model.context, next(iter(INTENTS[stack.intent].values())).contexts[0])
    need = memory(model, quant, context, 1, step_for(model, context))
    speed = predict(machine, model, quant, context, measured, models=models)
    return Absent(model.id, quant, str(quality(model)), context, need.total, speed.decode, context / speed.prompt)


def _contexts(wishes: Iterable[Wish]) -> tuple[int, ...]:
    """Return every window that any of these wishes names."""
    return tuple(sorted({context for wish in wishes for context in (*wish.contexts, *wish.cramped)}))


def _choose(rated: Sequence[Rated], wishes: Wishes, limit: int) -> Choice | None:
    """Choose by these wishes, or by shorter windows where memory is short; None where nothing fits."""
    for wanted in (wishes, _cramped(wishes), _cramped(wishes, patience=math.inf)):
        groups = _groups(rated, wanted, small=limit < SMALL_BUDGET)
        if stack := _best(groups, limit):
            return Choice(stack, groups, wanted)
    return None


def _best(groups: Groups, limit: int) -> list[Offer]:
    """Return the worthiest stack that fits, however its tiers share engines; empty where nothing fits."""
    stacks = [search(some, limit, by_worth) for some in groups.values()]
    return max(stacks, key=lambda stack: sum(offer.worth for offer in stack) if stack else -math.inf)


def _groups(rated: Sequence[Rated], wishes: Wishes, *, small: bool) -> dict[Shape, list[list[Offer]]]:
    """Return all that could serve, by the way in which the tiers share engines and by engine."""
    groups: dict[tuple[str, ...], list[Offer]] = {}
    by_shape: dict[Shape, list[list[Offer]]] = {}
    for shape in shapes(tuple(wishes)):
        for group in shape:
            if group not in groups:
                groups[group] = offers_for(rated, group, wishes, small=small)
        by_shape[shape] = [groups[group] for group in shape]
    return by_shape


def _cramped(wishes: Wishes, *, patience: float = PATIENCE_S) -> dict[str, Wish]:
    """Return what the tiers can do with when memory or speed is short: less context, more time to read it."""
    return {
        tier: replace(wish, contexts=tuple(sorted({*wish.cramped, *wish.contexts})), patience=patience)
        for tier, wish in wishes.items()
    }


def _smallest(rated: Sequence[Rated], wishes: Wishes) -> int:
    """Return the bytes of the smallest stack there is."""
    groups = _groups(rated, _cramped(wishes, patience=math.inf), small=True)
    stacks = [search(some, 10**18, lambda offer: -float(offer.bytes)) for some in groups.values()]
    return min(peak(stack) for stack in stacks if stack)


def _grown(choice: Choice, rated: Sequence[Rated], limit: int) -> list[Pick]:
    """Return the picks of all tiers, grown into the memory that is left, in the order of the tiers."""
    by_name = {(candidate.model.id, candidate.quant): candidate for candidate in rated}
    engines = [engine(offer, by_name[offer.model.id, offer.quant], choice.wishes) for offer in choice.offers]
    bound = {STANDARD: LONGCTX} if any(offer.tier == LONGCTX for offer in choice.offers) else {}
    grown = grow(engines, limit, bound)
    return _spread(choice.offers, [candidate.pick for candidate in grown], tuple(choice.wishes))


def _spread(offers: Sequence[Offer], picks: Sequence[Pick], tiers: Sequence[str]) -> list[Pick]:
    """Return one pick a tier: an engine's own, or a note of the tier whose engine serves it."""
    by_tier = {pick.tier: pick for pick in picks}
    for offer, pick in zip(offers, picks, strict=True):
        by_tier |= {tier: replace(pick, tier=tier, shares=pick.tier) for tier in offer.tiers[1:]}
    return [by_tier[tier] for tier in tiers]


def _reasoned(picks: Sequence[Pick], choice: Choice, limit: int) -> tuple[Pick, ...]:
    """Add the reasons and the runners-up."""
    by_tier = {tier: offer for offer in choice.offers for tier in offer.tiers}
    return tuple(
        replace(
            pick,
            reasons=reasons_for(pick, by_tier[pick.tier].model),
            runner_up="" if pick.shares else runner_up(by_tier[pick.tier], choice.offers, choice.groups, limit),
        )
        for pick in picks
    )


def compose(
    machine: Machine,
    models: Mapping[str, Model],
    choice: Mapping[str, tuple[str, str]],
    intent: str = "balanced",
    *,
    budget_bytes: int | None = None,
    measured: Sequence[Measured] = (),
    reuses: Reuses = full_attention,
) -> Recommendation:
    """Return the stack of models that a user chose, each with the most context that fits beside the others.

    `choice` names model and quant of each tier; tiers that name the same share its engine. Raises TooSmall when they
    do not fit together, KeyError for an unknown intent, tier, model or quant.
    """
    limit = budget(machine) if budget_bytes is None else budget_bytes
    wishes = {tier: INTENTS[intent][tier] for tier in choice}
    contexts = _contexts(wishes.values())
    groups = _named_groups(choice)
    rated = {
        group: rate(machine, models, *choice[group[0]], contexts=contexts, measured=measured, reuses=reuses)
        for group in groups
    }
    selection = _together(rated, wishes, limit)
    picks = _grown(selection, list(rated.values()), limit)
    reasoned = tuple(replace(pick, reasons=reasons_for(pick, models[pick.model])) for pick in picks)
    stack = Recommendation(reasoned, intent, limit, usable_bytes=machine.usable_bytes)
    return replace(stack, explain=explain_chosen(stack))


def _named_groups(choice: Mapping[str, tuple[str, str]]) -> list[tuple[str, ...]]:
    """Return the tiers that name the same model and quant, together."""
    groups: dict[tuple[str, str], list[str]] = {}
    for tier, wanted in choice.items():
        groups.setdefault(wanted, []).append(tier)
    return [tuple(tiers) for tiers in groups.values()]


def _together(rated: Mapping[tuple[str, ...], Rated], wishes: Wishes, limit: int) -> Choice:
    """Return the best windows with which these models fit beside each other. Raises TooSmall."""
    small = limit < SMALL_BUDGET
    most: list[list[Offer]] = []
    for wanted in (wishes, _cramped(wishes)):
        most = [reached(rating, group, wanted, small=small) for group, rating in rated.items()]
        if offers := _windows(most, limit):
            return Choice(offers, {tuple(rated): most}, wanted)
    raise TooSmall(peak([min(some, key=lambda offer: offer.bytes) for some in most]), limit)


def _windows(groups: Sequence[Sequence[Offer]], limit: int) -> list[Offer]:
    """Return the worthiest window of each that fits: what a user chose need not agree in speed or quality."""
    chosen = [min(some, key=lambda offer: offer.bytes) for some in groups]
    if peak(chosen) > limit:
        return []
    for at, some in enumerate(groups):
        for offer in sorted(some, key=by_worth, reverse=True):
            after = [*chosen[:at], offer, *chosen[at + 1 :]]
            if peak(after) <= limit:
                chosen = after
                break
    return chosen


def alternatives(
    machine: Machine,
    models: Mapping[str, Model],
    now: Recommendation,
    tier: str,
    *,
    measured: Sequence[Measured] = (),
    quant: str | None = None,
    reuses: Reuses = full_attention,
) -> list[Offer]:
    """Return what else could serve at a tier of a stack, the worthiest first, one quant and context of each model.

    Tiers that share its engine go along. The others keep their models, and may have to do with less context. `quant`
    leaves out all others.
    """
    group = (tier, *followers(now, tier))
    wishes = _cramped({pick.tier: INTENTS[now.intent][pick.tier] for pick in now.picks})
    neighbors = _least(machine, models, now, group, measured, reuses=reuses)
    small, contexts = now.budget < SMALL_BUDGET, _contexts(wishes.values())
    rated = rate_all(machine, models, now.intent, measured, quant, contexts=contexts, limit=now.budget, reuses=reuses)
    free = [candidate for candidate in rated if _may_serve(candidate.model, tier, now)]
    offers = [offer for candidate in free for offer in offers_of(candidate, group, wishes, small=small)]
    return _best_of_each([offer for offer in offers if peak([*neighbors, offer]) <= now.budget])


def followers(now: Recommendation, tier: str) -> tuple[str, ...]:
    """Return the tiers that use the engine of this one."""
    return tuple(pick.tier for pick in now.picks if pick.shares == tier)


def _least(
    machine: Machine,
    models: Mapping[str, Model],
    now: Recommendation,
    group: Sequence[str],
    measured: Sequence[Measured],
    *,
    reuses: Reuses,
) -> list[Offer]:
    """Return the engines of the other tiers with the least they can serve with."""
    remaining = {pick.tier: (pick.model, pick.quant) for pick in now.picks if pick.tier not in group}
    wishes = _cramped({name: INTENTS[now.intent][name] for name in remaining})
    contexts, small = _contexts(wishes.values()), now.budget < SMALL_BUDGET
    least: list[Offer] = []
    for names in _named_groups(remaining):
        candidate = rate(machine, models, *remaining[names[0]], contexts=contexts, measured=measured, reuses=reuses)
        least.append(min(reached(candidate, names, wishes, small=small), key=lambda offer: offer.bytes))
    return least


def _may_serve(model: Model, tier: str, now: Recommendation) -> bool:
    """Return whether a model suits a tier, and serves none yet."""
    return model.id not in {pick.model for pick in now.picks} and (tier != LONGCTX or lasts(model))


def _best_of_each(offers: Sequence[Offer]) -> list[Offer]:
    """Return each model's worthiest offer, the worthiest first."""
    best: dict[str, Offer] = {}
    for offer in sorted(offers, key=by_worth, reverse=True):
        best.setdefault(offer.model.id, offer)
    return list(best.values())


def builtin(
    machine: Machine,
    models: Mapping[str, Model],
    *,
    budget_bytes: int | None = None,
    tiers: Sequence[str] = TIERS,
) -> Recommendation:
    """Return these tiers on one engine, the first's, of the model that travels with mlxq; for when no Hub is in reach.

    Raises TooSmall when not even that fits.
    """
    limit = budget(machine) if budget_bytes is None else budget_bytes
    pick = replace(_builtin_pick(machine, models[BUILTIN]), tier=tiers[0])
    picks = (pick, *(replace(pick, tier=tier, shares=pick.tier) for tier in tiers[1:]))
    explained = "No Hub is in reach: every tier serves the built-in model."
    stack = Recommendation(picks, "built-in", limit, explained, machine.usable_bytes)
    if stack.total > limit:
        raise TooSmall(stack.total, limit)
    return stack


def _builtin_pick(machine: Machine, model: Model) -> Pick:
    """Return the engine of the built-in model: the same weights in three would take three times as long to start."""
    quant = next(iter(model.quants))
    speed = predict(machine, model, quant, model.context)
    return Pick(
        tier=STANDARD,
        model=model.id,
        quant=quant,
        context=model.context,
        concurrency=BUILTIN_REQUESTS,
        memory=memory(model, quant, model.context, BUILTIN_REQUESTS, SMALL_STEP),
        cache_bytes=BUILTIN_CACHE,
        speed=speed,
        quality=quality(model),
        prefill_step=SMALL_STEP,
        reading_s=model.context / speed.prompt,
        reasons=("it travels with mlxq; no Hub is in reach",),
    )


BUILTIN_REQUESTS = 3
"""That it answers at once: one a tier."""
BUILTIN_CACHE = 48_000_000
"""Bytes the built-in model keeps of old prompts: two of 1,024 tokens, with which its engine stays below 400 MB."""
