"""Why these models: in words, with windows, waits and sources, what was next, and what more memory would change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from catalog import engines, units
from catalog.intent import FAST
from catalog.model import Model
from catalog.offer import Offer
from catalog.pick import Pick, Recommendation
from catalog.search import Shape, agree, peak
from state.classes import dataclass

KILO = 1024


@dataclass(frozen=True)
class Absent:
    """A better model that is not in the stack, and why."""

    model: str
    quant: str
    quality: str
    context: int
    needs_bytes: int
    decode: float
    reading_s: float


def runner_up(
    offer: Offer, chosen: Sequence[Offer], groups: Mapping[Shape, Sequence[Sequence[Offer]]], limit: int
) -> str:
    """Return "model quant" of what would serve in place of this engine's model; empty where nothing else fits."""
    neighbors = [rival for rival in chosen if rival is not offer]
    offered: Sequence[Offer] = next(
        (some for shape in groups.values() for some in shape if some and some[0].tiers == offer.tiers), ()
    )
    rivals = (
        rival for rival in offered
        if rival.model.id != offer.model.id and peak([*neighbors, rival]) <= limit and agree(neighbors, rival)
    )  # fmt: skip
    second = max(rivals, key=lambda rival: rival.worth, default=None)
    return f"{second.model.id} {second.quant} with {tokens(second.context)}" if second else ""


def reasons_for(pick: Pick, model: Model) -> tuple[str, ...]:
    """Return what speaks for a pick and what a user should know of it."""
    if pick.shares:
        return (f"it uses the engine of {pick.shares}", *(_thinking(model, pick.tier) if pick.tier == FAST else ()))
    return (
        f"quality {pick.quality}",
        f"{pick.speed.decode:.0f} tokens/s ({_basis(pick)})",
        f"a full window is read in {seconds(pick.reading_s)}",
        *_details(pick, model),
    )


def _basis(pick: Pick) -> str:
    """Return what a speed rests on, with its source where there is one."""
    return f"published by {pick.speed.source}" if pick.speed.source else pick.speed.basis


def _details(pick: Pick, model: Model) -> list[str]:
    """Return what the architecture and the engine make of prompts, answers and tools."""
    details = ["calls tools" if model.tool_calling else "its tool calls are not read"]
    details += _thinking(model, pick.tier)
    cache = f"keeps {units.memory(pick.cache_bytes)} of earlier prompts" if pick.cache_bytes else ""
    details.append(cache or _rereads(model))
    if not model.attention.query_heads:
        details.append("its file names no query heads: memory is planned with the most that such a model has")
    return details


def _thinking(model: Model, tier: str) -> list[str]:
    """Return whether answers at a tier are thought over first; nothing of a model that cannot."""
    if not model.reasoning_parser:
        return []
    return [
        "thinks only when a request asks for it"
        if tier == FAST
        else "thinks before it answers, unless a request says no"
    ]


def _rereads(model: Model) -> str:
    """Return that every prompt is read whole, and the engine that would read it once where there is one."""
    words, better = "reads every prompt from its first token", engines.best_for(engines.kind_of(model))
    return words if better == engines.FALLBACK else f"{words}, which {better} would not (mlxq engine install {better})"


def explain(
    stack: Recommendation,
    offers: Sequence[Offer],
    richer: Sequence[Pick],
    absent: Absent | None = None,
) -> str:
    """Return why these, what was next, what is missing, and what more memory would change."""
    lines = [
        _used(stack),
        *(line for pick in stack.picks for line in (_line(pick), *_next(pick))),
        *_one_family(offers),
    ]
    lines.append(_missing(absent, stack) if absent else _best_of_all(stack))
    lines.append(_with_more(stack, richer))
    return "\n".join([*lines, *_sources([offer.model for offer in offers])])


def _sources(models: Sequence[Model]) -> list[str]:
    """Return where the scores of each model were published."""
    return [f"Scores of {model.id}: {model.scores_from}." for model in models if model.scores and model.scores_from]


def _next(pick: Pick) -> list[str]:
    if pick.shares:
        return []
    return [f"  Next would be {pick.runner_up}." if pick.runner_up else "  Nothing else fits here."]


def explain_chosen(stack: Recommendation) -> str:
    """Return what speaks for each model of a stack that a user chose."""
    return "\n".join([_used(stack), *map(_line, stack.picks)])


def _used(stack: Recommendation) -> str:
    """Return what the stack takes, with one window being read and with all of them."""
    used = (
        f"Intent {stack.intent}, budget {units.memory(stack.budget)}; uses {units.memory(stack.total)} "
        "while one full window is read"
    )
    if len(stack.engines) < 2:  # noqa: PLR2004 - one engine reads one prompt
        return f"{used}."
    sentence = f"{used}, {units.memory(stack.at_once)} when all engines read at once"
    return f"{sentence}: {units.memory(stack.over)} more than the machine allows." if stack.over else f"{sentence}."


def _line(pick: Pick) -> str:
    """Return one tier in a sentence."""
    return f"{pick.tier}: {pick.model} {pick.quant}, a window of {tokens(pick.context)}. {'; '.join(pick.reasons)}."


def _one_family(offers: Sequence[Offer]) -> list[str]:
    """Return a warning where one fault of a family would reach every engine."""
    families = {offer.model.family for offer in offers}
    if len(offers) < 2 or len(families) > 1:  # noqa: PLR2004 - one engine has one family
        return []
    return [f"All engines serve {families.pop()}: a fault of its template or parser would reach every tier."]


def _missing(absent: Absent, stack: Recommendation) -> str:
    """Return why the best model that is not here is not here."""
    name = f"{absent.model} (quality {absent.quality}) is not here"
    if absent.needs_bytes > stack.budget:
        needs, limit = units.apart(absent.needs_bytes, stack.budget)
        return f"{name}: with a window of {tokens(absent.context)} it needs {needs}; the budget is {limit}."
    return (
        f"{name}: it would answer at {absent.decode:.0f} tokens/s and read {tokens(absent.context)} in "
        f"{seconds(absent.reading_s)}."
    )


def _best_of_all(stack: Recommendation) -> str:
    """Return that no model was left out for its size or speed."""
    best = max(stack.engines, key=lambda pick: pick.quality.points)
    return f"No model of the catalog, however large, is rated above {best.model}."


def _with_more(stack: Recommendation, richer: Sequence[Pick]) -> str:
    """Return what half as much memory again would change, an engine at a time."""
    later = {pick.tier: pick for pick in richer}
    tiers_by_change: dict[str, list[str]] = {}
    for pick in stack.picks:
        if change := _change(pick, later.get(pick.tier)):
            tiers_by_change.setdefault(change, []).append(pick.tier)
    changes = [f"{units.listed(tiers)} would {change}" for change, tiers in tiers_by_change.items()]
    return f"With {units.memory(int(stack.budget * 1.5))}: {'; '.join(changes) or 'the same models and windows'}."


def _change(current: Pick, later: Pick | None) -> str:
    """Return what would become of one tier; empty where nothing would."""
    if later is None or (current.model, current.quant, current.context) == (later.model, later.quant, later.context):
        return ""
    window = f"a window of {tokens(later.context)}"
    if current.context != later.context:
        window += f" instead of {tokens(current.context)}"
    if (current.model, current.quant) == (later.model, later.quant):
        return f"have {window}"
    own = ", in an engine of its own" if current.shares and not later.shares else ""
    return f"be {later.model} {later.quant}{_better(current, later)} with {window}{own}"


def _better(current: Pick, later: Pick) -> str:
    """Return the difference in quality of another model; nothing of another quant, or where one has no score."""
    if current.model == later.model or not (current.quality.benchmark and later.quality.benchmark):
        return ""
    return f" (quality {later.quality.points:.0f} instead of {current.quality.points:.0f})"


def tokens(count: int) -> str:
    """Return a window as people say it: 32K, 1M."""
    if count < KILO:
        return str(count)
    return f"{count // KILO}K" if count < KILO * KILO else f"{count // KILO // KILO}M"


def seconds(duration: float) -> str:
    """Return a wait in words."""
    if duration < 90:  # noqa: PLR2004 - from a minute and a half on people count in minutes
        return f"{max(1, round(duration))} s"
    return f"{round(duration / 60)} min"
