"""What each model could do for a tier or for several, and what that is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import Any

from catalog.fit import SMALL_STEP, Memory, cache_bytes, memory, step_for
from catalog.intent import AGENTS, FAST, LONGCTX, STANDARD, Wish
from catalog.machine import Machine
from catalog.model import Model
from catalog.quality import quality, worth
from catalog.speed import Measured, Speed, predict_all
from state.classes import dataclass

BUILTIN = "smollm2-135m"
PROMPT_TOKENS = 8192
"""The context at which speeds are judged: an agent's usual first prompt."""
SESSION_TOKENS, SOON_S = 20_480, 10.0
"""What an agent sends at every turn, and the seconds in which reading it again goes unnoticed. Claude Code and Codex
send about 20K tokens before the first word."""
MISSED_FLOOR = 100.0
"""Points lost below a speed floor: more than any quality is worth, so a floor holds wherever it can."""
THRIFT = 0.02
"""Points that each GB of weights costs: of two models that do the same, the smaller leaves room."""
SPARE = 3
"""The other tiers can take away two models, and one of three remains."""
Reuses = Callable[[Model], bool]
"""Whether the engine that would serve a model reads only what is new in a prompt."""


@dataclass(frozen=True)
class Rated:
    """One model and quant with its speed here."""

    model: Model
    quant: str
    speeds: Mapping[int, Speed]
    """By context in tokens; PROMPT_TOKENS is among them."""
    reuses: bool
    points: float
    """Quality at this quant."""
    agent_points: float
    """The same, judged for the work of agents."""
    _needs: dict[tuple[int, bool], tuple[int, Memory]] = field(default_factory=dict[tuple[int, bool], Any], repr=False)
    """What `need` returned before: an engine is judged once for each group of tiers that it could serve."""

    def need(self, context: int, *, small: bool) -> tuple[int, Memory]:
        """Return the tokens of a chunk of prompt and the memory with one request of `context` tokens.

        `small`: prompts are read in small steps whatever the window.
        """
        if (context, small) not in self._needs:
            step = SMALL_STEP if small else step_for(self.model, context)
            self._needs[context, small] = step, memory(self.model, self.quant, context, 1, step)
        return self._needs[context, small]

    @property
    def speed(self) -> Speed:
        """The speed at which models are compared."""
        return self.speeds[PROMPT_TOKENS]

    @property
    def bytes(self) -> int:
        """The size of the weights."""
        return self.model.quants[self.quant].bytes


@dataclass(frozen=True)
class Offer:
    """One engine that could serve a tier, or several, with its worth there."""

    tiers: tuple[str, ...]
    model: Model
    quant: str
    context: int
    prefill_step: int
    resident: int
    """Bytes that stay: weights, the cache of one full context, the prompts that are kept, the process."""
    reading: int
    """Bytes on top while a prompt of full context is read."""
    cache_bytes: int
    """Of the resident bytes those for prompts of earlier turns."""
    speed: Speed
    """At the context of comparison."""
    decode: float
    """Tokens/s at its own full context."""
    reading_s: float
    """Seconds in which a full context is read."""
    points: float
    """Quality at this quant."""
    worth: float

    @property
    def tier(self) -> str:
        """The first tier it serves, after which the engine is named."""
        return self.tiers[0]

    @property
    def bytes(self) -> int:
        """Its peak while one prompt is read."""
        return self.resident + self.reading


def full_attention(model: Model) -> bool:
    """Return whether vllm-mlx 0.6.0 reuses the prompts of a model like this one: measured for plain attention alone.

    A hybrid read every prompt again, however much memory it had; a sliding window cannot be cut back either.
    """
    return not model.attention.recurrent and not model.attention.sliding and "hybrid" not in model.architecture


def rate_all(
    machine: Machine,
    models: Mapping[str, Model],
    intent: str,
    measured: Sequence[Measured],
    only: str | None,
    *,
    contexts: Iterable[int],
    limit: int,
    reuses: Reuses = full_attention,
) -> list[Rated]:
    """Return every model and quant that may serve at all and whose weights fit, with its speed at these contexts."""
    wanted = (PROMPT_TOKENS, *contexts)
    return [
        rate(machine, models, model.id, quant, contexts=wanted, measured=measured, reuses=reuses)
        for model in _newest(models)
        if model.id != BUILTIN and not model.retired and (intent != AGENTS or model.tool_calling)
        for quant, conversion in model.quants.items()
        if only in {None, quant} and conversion.bytes < limit
    ]


def rate(
    machine: Machine,
    models: Mapping[str, Model],
    model: str,
    quant: str,
    *,
    contexts: Iterable[int],
    measured: Sequence[Measured] = (),
    reuses: Reuses = full_attention,
) -> Rated:
    """Return one model and quant with its speed here. Raises KeyError."""
    entry = models[model]
    able = sorted({min(context, entry.context) for context in contexts} | {PROMPT_TOKENS})
    speeds = predict_all(machine, entry, quant, able, measured, models=models)
    return Rated(entry, quant, speeds, reuses(entry), worth(entry, quant), worth(entry, quant, agents=True))


def _newest(models: Mapping[str, Model]) -> Iterable[Model]:
    """Return of each maker's models of one shape the best: Qwen3.8 27B stands for its elders of 27B."""
    best: dict[tuple[object, ...], Model] = {}
    for model in models.values():
        shape = (model.repo.partition("/")[0] or model.id, model.layers, model.hidden_size, model.total_params_b)
        if shape not in best or quality(model).points > quality(best[shape]).points:
            best[shape] = model
    return best.values()


def offers_for(rated: Sequence[Rated], tiers: Sequence[str], wishes: Mapping[str, Wish], *, small: bool) -> list[Offer]:
    """Return all engines that could serve these tiers together, the worthiest first, without what is beaten outright.

    `small`: memory is so short that prompts are read in small steps whatever the window.
    """
    offers = [
        offer
        for candidate in rated
        if tiers[0] != LONGCTX or lasts(candidate.model)
        for offer in offers_of(candidate, tiers, wishes, small=small)
    ]
    return _thinned(offers)


def offers_of(rated: Rated, tiers: Sequence[str], wishes: Mapping[str, Wish], *, small: bool) -> list[Offer]:
    """Return one offer for each context that the model was made for and that can be read in time."""
    contexts = sorted({context for tier in tiers for context in wishes[tier].contexts})
    least = max(wishes[tier].contexts[0] for tier in tiers)
    patience = max(wishes[tier].patience for tier in tiers)
    merit = sum(_merit(rated, wishes[tier], own=at == 0) for at, tier in enumerate(tiers))
    return [
        _offer(rated, context, [wishes[tier] for tier in tiers], tuple(tiers), merit, small=small)
        for context in contexts
        if least <= context <= rated.model.context and context in rated.speeds
        if context / rated.speeds[context].prompt <= patience
    ]


def reached(rated: Rated, tiers: Sequence[str], wishes: Mapping[str, Wish], *, small: bool) -> list[Offer]:
    """Return the offers of a model that a user named, also where it can do with less context than is wished."""
    offers = offers_of(rated, tiers, wishes, small=small)
    if offers:
        return offers
    longest = max(context for context in rated.speeds if context <= rated.model.context)
    patient = {
        tier: replace(wishes[tier], contexts=(min(wishes[tier].contexts[0], longest),), patience=math.inf)
        for tier in tiers
    }
    return offers_of(rated, tiers, patient, small=small)


def _offer(
    rated: Rated, context: int, wishes: Sequence[Wish], tiers: tuple[str, ...], merit: float, *, small: bool
) -> Offer:
    """Return one model at one context. `merit`: what it is worth to these tiers whatever the context."""
    model, speed = rated.model, rated.speeds[context]
    step, need = rated.need(context, small=small)
    cache = cache_bytes(model, context) if rated.reuses else 0
    value = merit + sum(_window_worth(context, wish) for wish in wishes)
    return Offer(
        tiers, model, rated.quant, context, step, need.resident + cache, need.prefill, cache,
        rated.speed, speed.decode, context / speed.prompt, rated.points, value,
    )  # fmt: skip


def lasts(model: Model) -> bool:
    """Return whether the architecture suits long contexts: at most half of the layers keep every token."""
    return model.attention.latent > 0 or 2 * model.attention.full <= model.layers


def _window_worth(context: int, wish: Wish) -> float:
    """Return what a window is worth at a tier, in points of the quality index: at most 0, with all that is wished."""
    return wish.weight * wish.context * math.log2(min(context, wish.contexts[-1]) / wish.contexts[-1])


def worth_at(rated: Rated, context: int, wish: Wish, *, own: bool) -> float:
    """Return what a model with a window of `context` tokens is worth at a tier. `own`: it has the engine to itself."""
    return _merit(rated, wish, own=own) + _window_worth(context, wish)


def _merit(rated: Rated, wish: Wish, *, own: bool) -> float:
    """Return what a model is worth at a tier whatever its window. `own`: it has the engine to itself."""
    model, speed = rated.model, rated.speed
    points = wish.quality * min(wish.clever, rated.agent_points if wish.agents else rated.points)
    points += wish.speed * math.log2(min(speed.decode, wish.ample) / wish.plain)
    points -= THRIFT * rated.bytes / 1e9
    points -= 0.5 * (model.quants[rated.quant].confidence == "low")
    points -= wish.tools * (not model.tool_calling)
    if not rated.reuses:
        points -= wish.reread * math.log2(1 + SESSION_TOKENS / speed.prompt / SOON_S)
    short = min(1.0, speed.decode / wish.decode, speed.prompt / wish.prompt)
    if short < 1:
        points -= MISSED_FLOOR * (1 - math.log2(short))
    return wish.weight * (points + wish.own * own)


def _thinned(offers: Sequence[Offer]) -> list[Offer]:
    """Drop an offer that can be part of no best stack.

    That is: three other models with as long a context are as small, worth more, and leave the other tiers as much
    choice; or its own model is all that in another quant. All of them serve the same tiers.
    """
    thinned: list[Offer] = []
    if offers:
        beats = {LONGCTX: _beats_for_longctx, FAST: _beats_for_fast}.get(offers[0].tier, _beats)
        for offer in sorted(offers, key=lambda candidate: (-candidate.worth, candidate.bytes)):
            if not _needless(offer, thinned, beats):
                thinned.append(offer)
    return thinned


def _needless(offer: Offer, rivals: Sequence[Offer], beats: Callable[[Offer, Offer], bool]) -> bool:
    """Return whether enough other models, or its own in another quant, worth as much, do all that this offer does."""
    resident, reading = offer.resident, offer.reading
    better: set[str] = set()
    for rival in rivals:
        if rival.resident <= resident and rival.reading <= reading and beats(rival, offer):
            better.add(rival.model.id)
            if len(better) == SPARE or rival.model.id == offer.model.id:
                return True
    return False


def _beats_for_longctx(rival: Offer, offer: Offer) -> bool:
    """Return whether `rival` is no harder to put beside a standard: it has the window, and is not above its quality."""
    return rival.context >= offer.context and rival.points <= offer.points


def _beats_for_fast(rival: Offer, offer: Offer) -> bool:
    """Return whether `rival` is no harder to put beside a standard that it must outrun."""
    return rival.context >= offer.context and rival.decode >= offer.decode


def _beats(rival: Offer, offer: Offer) -> bool:
    """Return whether `rival` is no harder to put beside a fast, which outruns it, and a longctx."""
    return (
        rival.context == offer.context
        and rival.points >= offer.points
        and (rival.tier != STANDARD or rival.decode <= offer.decode)
    )
