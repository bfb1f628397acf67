"""What each model could do at a tier, and what that is worth there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from catalog.fit import memory
from catalog.intent import FAST, LONGCTX, STANDARD, Wish
from catalog.machine import Machine
from catalog.model import Model
from catalog.quality import quality
from catalog.quality import worth as points_of
from catalog.speed import Measured, Speed, predict

BUILTIN = "smollm2-135m"
PROMPT_TOKENS = 8192
"""The context at which speeds are judged: an agent's usual first prompt."""
CACHE_FLOOR = 64_000_000
"""The least an engine may keep of old prompts, bytes."""
MISSED_FLOOR = 100.0
"""Points lost below a speed floor: more than any quality is worth, so a floor holds wherever it can."""
SIZE = 1.5
"""Worth of each doubling of all parameters: of two models with like scores, the larger knows more."""
SPARE = 3
"""The other tiers can take away two models, and one of three remains."""
Rated = tuple[Model, str, Speed]


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


def rate_all(
    machine: Machine, known: Mapping[str, Model], intent: str, measured: Sequence[Measured], only: str | None
) -> list[Rated]:
    """Give every model and quant that may serve at all, with its speed here."""
    return [
        rate(machine, known, model.id, quant, measured)
        for model in _newest(known)
        if model.id != BUILTIN and (intent != "agent-fleet" or model.tool_calling)
        for quant in model.quants
        if only in {None, quant}
    ]


def rate(machine: Machine, known: Mapping[str, Model], model: str, quant: str, measured: Sequence[Measured]) -> Rated:
    """Give one model and quant with its speed here. Raises KeyError."""
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


def offers_at(rated: Sequence[Rated], tier: str, wish: Wish, step: int) -> list[Offer]:
    """Give all that could serve at this tier, the worthiest first, without what is beaten outright."""
    found: list[Offer] = []
    for one in rated:
        if tier != LONGCTX or lasts(one[0]):
            found += offers_of(one, tier, wish, step)
    return _thinned(found)


def offers_of(rated: Rated, tier: str, wish: Wish, step: int) -> list[Offer]:
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


def reached(rated: Rated, tier: str, wish: Wish, step: int) -> list[Offer]:
    """Give the offers of a model that somebody wants here, also when it was made for less context than is wished."""
    contexts = tuple(context for context in wish.contexts if context <= rated[0].context)
    return offers_of(rated, tier, replace(wish, contexts=contexts or (rated[0].context,)), step)


def lasts(model: Model) -> bool:
    """Say whether the architecture suits long contexts: at most half of the layers keep every token."""
    return model.attention.latent > 0 or 2 * model.attention.full <= model.layers


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
