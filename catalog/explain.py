"""Why these models: in words, with what was next and what more memory would change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from catalog import units
from catalog.fit import cache_bytes
from catalog.intent import LONGCTX
from catalog.offer import Offer
from catalog.pick import Pick
from catalog.search import BARELY_FASTER, MUCH_FASTER, agree, by_worth, search


def reasoned(pick: Pick, offer: Offer, chosen: Sequence[Offer], offers: Mapping[str, list[Offer]], limit: int) -> Pick:
    """Add the reasons and the runner-up to a pick."""
    others = [one for one in chosen if one is not offer]
    room = limit - sum(one.bytes for one in others)
    rivals = (
        one for one in offers[pick.tier]
        if one.model.id != pick.model and one.bytes <= room and agree(others, one, BARELY_FASTER)
    )  # fmt: skip
    second = max(rivals, key=lambda one: one.worth, default=None)
    runner_up = f"{second.model.id} {second.quant}" if second else ""
    return replace(pick, reasons=reasons_for(pick, offer), runner_up=runner_up)


def reasons_for(pick: Pick, offer: Offer) -> tuple[str, ...]:
    """Say what speaks for a pick."""
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
        told.append(f"{kept}: {pick.context // 1024}K tokens take {units.memory(cache_bytes(model, pick.context))}")
    if model.tool_calling:
        told.append("calls tools")
    return tuple(told)


def explain(picks: Sequence[Pick], offers: Mapping[str, list[Offer]], intent: str, limit: int) -> str:
    """Say why these, what was next, and what more memory would change."""
    lines = [_used(picks, intent, limit)]
    for pick in picks:
        lines.append(_line(pick))
        lines.append(f"  Next would be {pick.runner_up}." if pick.runner_up else "  Nothing else fits here.")
    lines.append(_with_more(picks, offers, limit))
    return "\n".join(lines)


def explain_chosen(picks: Sequence[Pick], intent: str, limit: int) -> str:
    """Say what speaks for each model of a stack that a person chose."""
    return "\n".join([_used(picks, intent, limit), *map(_line, picks)])


def _used(picks: Sequence[Pick], intent: str, limit: int) -> str:
    return f"Intent {intent}, budget {units.memory(limit)}, used {units.memory(sum(pick.bytes for pick in picks))}."


def _line(pick: Pick) -> str:
    return f"{pick.tier}: {pick.model} {pick.quant}. {'; '.join(pick.reasons)}."


def _with_more(picks: Sequence[Pick], offers: Mapping[str, list[Offer]], limit: int) -> str:
    """Say what half as much memory again would change."""
    richer = int(limit * 1.5)
    then = search(list(offers.values()), richer, MUCH_FASTER, by_worth)
    changes = [
        f"{offer.tier} would be {offer.model.id} {offer.quant}"
        for offer, pick in zip(then, picks, strict=False)
        if (offer.model.id, offer.quant) != (pick.model, pick.quant)
    ]
    changed = "; ".join(changes) or "the same models, more context and cache"
    return f"With {units.memory(richer)}: {changed}."
