"""Which models serve at which tier: chosen together, so that the sum fits and each does its own work.

The choice has two steps. `_search` takes the three models, quants and contexts with the highest sum of
worth that fits the budget, the fast one faster than the standard one, all three different. `_grow` then
spends what is left on concurrency, prompt caches and context, in turns, up to what the tier can use. Where a person
chose the models, `compose` does the same with these alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from catalog.fit import PREFILL_STEP, Memory, cache_bytes, memory
from catalog.intent import FAST, INTENTS, LONGCTX, STANDARD, TIERS, Wish
from catalog.machine import Machine
from catalog.model import Model
from catalog.quality import Quality, quality
from catalog.quality import worth as points_of
from catalog.speed import Measured, Speed, predict

BUILTIN = "smollm2-135m"

SLACK = 0.9
"""Share of the usable memory that is planned for; predicted peaks were short by up to a tenth."""
PANIC_SHARE = 0.85
"""From this share of all memory on, macOS may panic (Rapid-MLX, ModelSizing.swift)."""
PROMPT_TOKENS = 8192
"""The context at which speeds are judged: an agent's usual first prompt."""
CACHE_FLOOR = 64_000_000
"""The least an engine may keep of old prompts, bytes."""
MISSED_FLOOR = 100.0
"""Points lost below a speed floor: more than any quality is worth, so a floor holds wherever it can."""
MUCH_FASTER, BARELY_FASTER = 1.5, 1.05
"""Fast over standard, tokens a second: what is wanted, and what must be where nothing better fits."""
SIZE = 1.5
"""Worth of each doubling of all parameters: of two models with like scores, the larger knows more."""
SMALL_BUDGET, SMALL_STEP = 12_000_000_000, 512
"""Below this budget prompts are read in chunks of 512 tokens: a little slower, half the work space."""


class TooSmall(ValueError):
    """Nothing fits. Attributes: needs_bytes of the smallest stack, budget_bytes."""

    def __init__(self, needs_bytes: int, budget_bytes: int) -> None:
        """Take both sizes."""
        self.needs_bytes, self.budget_bytes = needs_bytes, budget_bytes
        super().__init__(
            f"The smallest stack needs {needs_bytes / 1e9:.2f} GB; the budget is {budget_bytes / 1e9:.2f} GB."
        )


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


@dataclass(frozen=True)
class Offer:
    """One model, quant and context that could serve at a tier, with its worth there."""

    tier: str
    model: Model
    quant: str
    context: int
    prefill_step: int
    bytes: int
    speed: Speed
    worth: float


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
    rated = _rated(machine, known, intent, measured, quant)
    if not rated:
        raise ValueError(f"No model that could serve exists in {quant}.")
    try:
        offers, chosen = _choose(rated, wishes, limit)
    except TooSmall:
        wishes = {tier: _cramped(wish) for tier, wish in wishes.items()}
        offers, chosen = _choose(rated, wishes, limit)
    picks = _grow([_pick(offer, wishes[offer.tier]) for offer in chosen], known, wishes, limit)
    told = tuple(_reasoned(pick, offer, chosen, offers, limit) for pick, offer in zip(picks, chosen, strict=True))
    return Recommendation(told, intent, limit, _explain(told, offers, intent, limit))


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
    step = _step(limit)
    rated = {tier: _rate(machine, known, model, quant, measured) for tier, (model, quant) in choice.items()}
    wishes = {tier: INTENTS[intent][tier] for tier in choice}
    found = _search([_reach(one, tier, wishes[tier], step) for tier, one in rated.items()], limit, 0.0, _by_worth)
    if not found:
        wishes = {tier: _cramped(wish) for tier, wish in wishes.items()}
        offers = [_reach(one, tier, wishes[tier], step) for tier, one in rated.items()]
        found = _search(offers, limit, 0.0, _by_worth)
        if not found:
            raise TooSmall(sum(min(offer.bytes for offer in some) for some in offers), limit)
    picks = _grow([_pick(offer, wishes[offer.tier]) for offer in found], known, wishes, limit)
    told = tuple(replace(pick, reasons=_reasons(pick, offer)) for pick, offer in zip(picks, found, strict=True))
    lines = [f"{pick.tier}: {pick.model} {pick.quant}. " + "; ".join(pick.reasons) + "." for pick in told]
    return Recommendation(told, intent, limit, "\n".join([_used(told, intent, limit), *lines]))


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
    best: dict[str, Offer] = {}
    for one in _rated(machine, known, now.intent, measured, quant):
        if one[0].id in {pick.model for pick in now.picks} or (tier == LONGCTX and not lasts(one[0])):
            continue
        for offer in _offers_of(one, tier, wish, step):
            if offer.bytes <= room and (offer.model.id not in best or offer.worth > best[offer.model.id].worth):
                best[offer.model.id] = offer
    return sorted(best.values(), key=_by_worth, reverse=True)


def _least(pick: Pick, known: Mapping[str, Model], wish: Wish, step: int) -> int:
    """Give the bytes with which a pick's model can still serve at its tier."""
    reach = _reach((known[pick.model], pick.quant, pick.speed), pick.tier, _cramped(wish), step)
    return min(offer.bytes for offer in reach)


def _reach(rated: Rated, tier: str, wish: Wish, step: int) -> list[Offer]:
    """Give the offers of a model that somebody wants here, also when it was made for less context than is wished."""
    contexts = tuple(context for context in wish.contexts if context <= rated[0].context)
    return _offers_of(rated, tier, replace(wish, contexts=contexts or (rated[0].context,)), step)


def builtin(machine: Machine, known: Mapping[str, Model]) -> Recommendation:
    """Give all three tiers on the model that travels with mlxq, for when no Hub is in reach.

    Raises TooSmall when not even that fits.
    """
    limit = budget(machine)
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


Rated = tuple[Model, str, Speed]


def _rated(
    machine: Machine, known: Mapping[str, Model], intent: str, measured: Sequence[Measured], only: str | None
) -> list[Rated]:
    """Give every model and quant that may serve at all, with its speed here."""
    return [
        _rate(machine, known, model.id, quant, measured)
        for model in _newest(known)
        if model.id != BUILTIN and (intent != "agent-fleet" or model.tool_calling)
        for quant in model.quants
        if only in {None, quant}
    ]


def _rate(machine: Machine, known: Mapping[str, Model], model: str, quant: str, measured: Sequence[Measured]) -> Rated:
    return known[model], quant, predict(machine, known[model], quant, PROMPT_TOKENS, measured, known=known)


def _newest(known: Mapping[str, Model]) -> Iterable[Model]:
    """Give of each maker's models of one shape the best: Qwen3.8 27B stands for its elders of 27B."""
    best: dict[tuple[object, ...], Model] = {}
    for model in known.values():
        shape = (
            model.repo.partition("/")[0] or model.id,
            model.layers,
            model.hidden_size,
            model.total_params_b,
        )
        if shape not in best or quality(model).points > quality(best[shape]).points:
            best[shape] = model
    return best.values()


def _cramped(wish: Wish) -> Wish:
    """Give what a tier can do with when memory is short: less context, one request at a time."""
    return replace(wish, contexts=(wish.contexts[0] // 2, *wish.contexts), concurrency=(1, wish.concurrency[1]))


def _choose(
    rated: Sequence[Rated], wishes: Mapping[str, Wish], limit: int
) -> tuple[dict[str, list[Offer]], list[Offer]]:
    """Give the offers of every tier and the best stack of them. Raises TooSmall."""
    offers = {tier: _offers(rated, tier, wish, _step(limit)) for tier, wish in wishes.items()}
    return offers, _best(offers, limit)


def _step(limit: int) -> int:
    """Give how many tokens of a prompt are read at once."""
    return SMALL_STEP if limit < SMALL_BUDGET else PREFILL_STEP


def _by_worth(offer: Offer) -> float:
    return offer.worth


def _offers(rated: Sequence[Rated], tier: str, wish: Wish, step: int) -> list[Offer]:
    """Give all that could serve at this tier, the worthiest first, without what is beaten outright."""
    found: list[Offer] = []
    for one in rated:
        if tier != LONGCTX or lasts(one[0]):
            found += _offers_of(one, tier, wish, step)
    return _thinned(found)


def lasts(model: Model) -> bool:
    """Say whether the architecture suits long contexts: at most half of the layers keep every token."""
    return model.attention.latent > 0 or 2 * model.attention.full <= model.layers


def _offers_of(rated: Rated, tier: str, wish: Wish, step: int) -> list[Offer]:
    """Give one offer for each context that the model was made for and that can be read in time."""
    model, quant, speed = rated
    longest = min(model.context, max(wish.contexts[0], int(wish.patience * speed.prompt)))
    side_by_side = wish.concurrency[0]
    return [
        Offer(
            tier, model, quant, context, step,
            memory(model, quant, context, side_by_side, step).total + CACHE_FLOOR,
            speed, _worth(model, quant, context, wish, speed),
        )
        for context in wish.contexts
        if context <= longest
    ]  # fmt: skip


def _worth(model: Model, quant: str, context: int, wish: Wish, speed: Speed) -> float:
    """Add up what a model is worth at a tier, in points of quality."""
    points = wish.quality * (points_of(model, quant) + SIZE * math.log2(model.total_params_b))
    points += wish.speed * math.log2(min(speed.decode, wish.ample) / wish.plain)
    points += wish.context * math.log2(context / wish.contexts[-1])
    points -= 0.5 * (model.quants[quant].confidence == "low")
    short = min(1.0, speed.decode / wish.decode, speed.prompt / wish.prompt)
    if short < 1:
        points -= MISSED_FLOOR * (1 - math.log2(short))
    return wish.weight * points


SPARE = 3
"""The other tiers can take away two models, and one of three remains."""


def _thinned(offers: list[Offer]) -> list[Offer]:
    """Drop an offer that can be part of no best stack.

    That is: three other models are as small, worth more, and no slower (fast) or no faster (standard); or its
    own model is all that in another quant or context.
    """
    kept: list[Offer] = []
    for offer in sorted(offers, key=lambda one: (-one.worth, one.bytes)):
        better = {one.model.id for one in kept if one.bytes <= offer.bytes and _as_free(one, offer)}
        if len(better) < SPARE and offer.model.id not in better:
            kept.append(offer)
    return kept


def _as_free(one: Offer, other: Offer) -> bool:
    """Say whether `one` leaves the other tiers as much choice as `other` does."""
    if one.tier == FAST:
        return one.speed.decode >= other.speed.decode
    return one.tier != STANDARD or one.speed.decode <= other.speed.decode


def _best(offers: Mapping[str, list[Offer]], limit: int) -> list[Offer]:
    """Give the stack of highest worth that fits. Raises TooSmall."""
    for ratio in (MUCH_FASTER, BARELY_FASTER):
        found = _search(list(offers.values()), limit, ratio, _by_worth)
        if found:
            return found
    everything = sum(max(offer.bytes for offer in some) for some in offers.values())
    smallest = _search(list(offers.values()), everything, BARELY_FASTER, lambda offer: -offer.bytes)
    raise TooSmall(sum(offer.bytes for offer in smallest), limit)


def _search(tiers: list[list[Offer]], limit: int, ratio: float, value: Callable[[Offer], float]) -> list[Offer]:
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
            if used + offer.bytes + least[at + 1] <= limit and _agree(taken, offer, ratio):
                go(at + 1, [*taken, offer], used + offer.bytes, so_far + value(offer))

    go(0, [], 0, 0.0)
    return best


def _agree(taken: Sequence[Offer], offer: Offer, ratio: float) -> bool:
    """Say whether an offer may stand beside those taken: another model, and fast is faster than standard."""
    for one in taken:
        if one.model.id == offer.model.id:
            return False
        pair = {one.tier: one, offer.tier: offer}
        if STANDARD in pair and FAST in pair and pair[FAST].speed.decode < ratio * pair[STANDARD].speed.decode:
            return False
    return True


def _pick(offer: Offer, wish: Wish) -> Pick:
    side_by_side = wish.concurrency[0]
    need = memory(offer.model, offer.quant, offer.context, side_by_side, offer.prefill_step)
    return Pick(
        offer.tier, offer.model.id, offer.quant, offer.context, side_by_side, need, CACHE_FLOOR,
        offer.speed, quality(offer.model), offer.prefill_step,
    )  # fmt: skip


def _grow(picks: list[Pick], known: Mapping[str, Model], wishes: Mapping[str, Wish], limit: int) -> list[Pick]:
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


def _reasoned(pick: Pick, offer: Offer, chosen: Sequence[Offer], offers: Mapping[str, list[Offer]], limit: int) -> Pick:
    """Add the reasons and the runner-up to a pick."""
    others = [one for one in chosen if one is not offer]
    room = limit - sum(one.bytes for one in others)
    rivals = (
        one for one in offers[pick.tier]
        if one.model.id != pick.model and one.bytes <= room and _agree(others, one, BARELY_FASTER)
    )  # fmt: skip
    second = max(rivals, key=lambda one: one.worth, default=None)
    return replace(pick, reasons=_reasons(pick, offer), runner_up=f"{second.model.id} {second.quant}" if second else "")


def _reasons(pick: Pick, offer: Offer) -> tuple[str, ...]:
    model, speed = offer.model, pick.speed
    told = [
        f"quality {pick.quality}",
        f"{speed.decode:.0f} tokens/s, prompts at {speed.prompt:.0f}/s ({speed.basis})",
    ]
    if pick.tier == LONGCTX:
        kept = (
            "a compressed cache"
            if model.attention.latent
            else f"{model.attention.full} of {model.layers} layers keep every token"
        )
        told.append(f"{kept}: {pick.context // 1024}K tokens take {_gb(cache_bytes(model, pick.context))}")
    if model.tool_calling:
        told.append("calls tools")
    return tuple(told)


def _explain(picks: Sequence[Pick], offers: Mapping[str, list[Offer]], intent: str, limit: int) -> str:
    """Say why these, what was next, and what more memory would change."""
    lines = [_used(picks, intent, limit)]
    for pick in picks:
        lines.append(f"{pick.tier}: {pick.model} {pick.quant}. " + "; ".join(pick.reasons) + ".")
        lines.append(f"  Next would be {pick.runner_up}." if pick.runner_up else "  Nothing else fits here.")
    lines.append(_with_more(picks, offers, limit))
    return "\n".join(lines)


def _used(picks: Sequence[Pick], intent: str, limit: int) -> str:
    return f"Intent {intent}, budget {_gb(limit)}, used {_gb(sum(pick.bytes for pick in picks))}."


def _with_more(picks: Sequence[Pick], offers: Mapping[str, list[Offer]], limit: int) -> str:
    """Say what half as much memory again would change."""
    richer = int(limit * 1.5)
    then = _search(list(offers.values()), richer, MUCH_FASTER, _by_worth)
    changes = [
        f"{offer.tier} would be {offer.model.id} {offer.quant}"
        for offer, pick in zip(then, picks, strict=False)
        if (offer.model.id, offer.quant) != (pick.model, pick.quant)
    ]
    return f"With {_gb(richer)}: {'; '.join(changes) if changes else 'the same models, more context and cache'}."


def _gb(size: int) -> str:
    """Write bytes as gigabytes (1e9)."""
    return f"{size / 1e9:.1f} GB"
