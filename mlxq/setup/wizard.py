"""The guided set-up on a terminal: show the machine, ask what the models are for, show them, take changes.

It asks and reads. What a person settles on is given back as arguments of the task score; nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from catalog import units
from catalog.offer import Offer
from catalog.pick import Recommendation
from catalog.score import alternatives
from mlxq import render
from mlxq.setup import edit, preview, recommendation
from mlxq.setup.inspection import Inspection
from state.errors import DoesNotFit, NotFound, UsageProblem

INTENTS: Mapping[str, str] = {
    "balanced": "the best answers that fit, at a good speed",
    "agent-fleet": "agents that work side by side: tools, speed, long prompts",
}
"""What the models may be for, with a few words each; the first is the default."""
MOST_OFFERED = 9
"""So many alternatives have a key of one digit."""


def settle(found: Inspection, asked: Mapping[str, Any], *, intent: str | None) -> dict[str, Any]:
    """Ask a person for all that is open; give the arguments of the task score.

    `asked`: what the options say; `intent` is None when no option said it. Raises Abort where the person leaves,
    DoesNotFit when nothing fits this machine.
    """
    _card(found)
    open_question = intent is None and "budget_pct" not in asked
    if found.tiers and _may_stay(found, open_question=open_question) and _stays(found, start=asked["start"]):
        return {**asked, "keep": True}
    wanted = {**asked, "intent": intent or (_intent() if found.hub else next(iter(INTENTS)))}
    return wanted | {"choice": words(_chosen(found, wanted))}


def _may_stay(found: Inspection, *, open_question: bool) -> bool:
    """Say whether the stack that is here can be what the person wants; without a Hub there is no other."""
    if not found.hub:
        return True
    if found.outdated:
        render.say()
        render.prose(found.outdated, err=True)
    return open_question and not found.outdated


def words(chosen: Recommendation) -> dict[str, str]:
    """Give a stack as the task score takes it: "model quant" by tier."""
    return {pick.tier: f"{pick.model} {pick.quant}" for pick in chosen.picks}


def _card(found: Inspection) -> None:
    machine = found.machine
    cores = f", {machine.gpu_cores} GPU cores" if machine.gpu_cores else ""
    memory = f"{units.memory(machine.memory_bytes)}, {units.memory(found.budget)} of it for models"
    facts = {
        "Chip": f"{machine.chip}{cores}, {machine.os}",
        "Memory": memory,
        "Disk": f"{units.files(found.free_bytes)} free for weights",
        "Note": machine.note,
    }
    render.say()
    for name, value in facts.items():
        if value:
            render.prose(value, f"  {name:<8}", err=True)


def _stays(found: Inspection, *, start: bool) -> bool:
    """Show the stack that is here and what it still lacks, and ask whether it stays. Raises Abort."""
    render.say("\nHere already:")
    for tier in found.tiers:
        render.say(f"  {tier.name:<10}{tier.model} {tier.quant}")
    if found.missing:
        render.say(preview.to_come(found, found.missing))
    if not found.hub:
        render.say("No Hub is in reach, so no other models can be fetched now.")
        do = "bring these up" if start else "keep these"
        text, answers = f"Enter to {do}, q to leave all as it is", {"": "keep", "q": "leave"}
    else:
        up = " and bring them up" if start else ""
        text = f"Enter to keep these{up}, c to choose anew, q to leave all as it is"
        answers = {"": "keep", "c": "choose", "q": "leave"}
    return _answer(f"\n{text}", answers) == "keep"


def _intent() -> str:
    render.say("\nWhat are the models for?")
    for number, (name, text) in enumerate(INTENTS.items(), start=1):
        render.say(f"  {number}  {name:<13}{text}")
    keys = {str(number): name for number, name in enumerate(INTENTS, start=1)}
    return _answer("Enter for 1, or a number", {"": next(iter(INTENTS)), **keys, **{name: name for name in INTENTS}})


def _chosen(found: Inspection, asked: Mapping[str, Any]) -> Recommendation:
    """Show what fits best, and change it until the person is content. Raises Abort, DoesNotFit."""
    chosen = found.recommend(asked)
    _show(found, chosen)
    while True:
        text, answers = _ways(found, chosen, pull=asked["pull"])
        match _answer(text, answers):
            case "go":
                return chosen
            case "why":
                render.say()
                render.prose(chosen.explain, err=True)
                render.say()
            case _:
                chosen = _changed(found, asked, chosen)
                _show(found, chosen)


def _ways(found: Inspection, chosen: Recommendation, *, pull: bool) -> tuple[str, dict[str, str]]:
    """Give what can be done with a stack that is shown: the question, and its answers."""
    ways = {"w": "why", "q": "leave"}
    text = "w for why, q to leave all as it is"
    if found.hub:
        ways, text = {"c": "change", **ways}, f"c to change a model, {text}"
    if pull and found.to_fetch(chosen) > found.free_bytes:
        return text.capitalize(), ways
    return f"Enter to go on, {text}", {"": "go", **ways}


def _show(found: Inspection, chosen: Recommendation) -> None:
    """Print the stack with what it takes, and how it differs from the one that is here."""
    render.say()
    recommendation.table(chosen, preview.fetches(found, chosen), err=True)
    for line in [*preview.footer(found, chosen), *preview.differences(found.tiers, chosen)]:
        render.say(line)
    render.say()


def _changed(found: Inspection, asked: Mapping[str, Any], chosen: Recommendation) -> Recommendation:
    """Ask for a tier and another model for it; give the stack with it, or the same one. Raises Abort."""
    tiers = [pick.tier for pick in chosen.picks]
    listed = ", ".join(f"{number} {tier}" for number, tier in enumerate(tiers, start=1))
    keys = {str(number): tier for number, tier in enumerate(tiers, start=1)}
    tier = _answer(f"Which tier: {listed} (Enter to go back)", {"": "", **keys, **{tier: tier for tier in tiers}})
    if not tier:
        return chosen
    offers = alternatives(found.machine, found.known, chosen, tier, measured=found.measured, quant=found.quant)
    _offer(found, offers[:MOST_OFFERED])
    keys = {str(number): f"{one.model.id} {one.quant}" for number, one in enumerate(offers[:MOST_OFFERED], start=1)}
    before = words(chosen)
    while said := _typed(f"\nA number, or a model's name; Enter keeps {before[tier]}"):
        try:
            return found.recommend(asked, before | {tier: _free(keys.get(said) or _named(found, said), tier, before)})
        except (NotFound, UsageProblem, DoesNotFit) as problem:
            render.say(problem.message)
    return chosen


def _offer(found: Inspection, offers: Sequence[Offer]) -> None:
    """Print the alternatives, each with its key."""
    if not offers:
        render.say("\nNo other model that suits this tier fits beside the others; a name may still be given.")
        return
    render.say()
    render.table(
        ["", "MODEL", "QUANT", "CTX", "MEMORY", "TOK/S", "FETCH"],
        [
            [number, offer.model.id, offer.quant, recommendation.tokens(offer.context), units.memory(offer.bytes),
             recommendation.ranged(offer.speed), recommendation.fetch(found.fetch_of(offer.model.id, offer.quant))]
            for number, offer in enumerate(offers, start=1)
        ],
        right=(3, 4, 5, 6),
        err=True,
    )  # fmt: skip


def _typed(text: str) -> str:
    """Ask for words. Raises Abort."""
    return click.prompt(text, default="", show_default=False, err=True).strip()


def _named(found: Inspection, said: str) -> str:
    """Give "model quant" of what a person typed. Raises NotFound, UsageProblem."""
    name, _, quant = said.partition(" ")
    model, chosen = edit.model(name, quant.strip() or None, found.known, found.home)
    return f"{model.id} {chosen}"


def _free(wanted: str, tier: str, before: Mapping[str, str]) -> str:
    """Give what is wanted, unless another tier serves that model. Raises UsageProblem."""
    model = wanted.partition(" ")[0]
    held = next(
        (other for other, serves in before.items() if other != tier and serves.partition(" ")[0] == model), None
    )
    if held:
        raise UsageProblem(f"{model} serves {held} already.")
    return wanted


def _answer(text: str, answers: Mapping[str, str]) -> str:
    """Ask until one of the answers comes, by key or by word; the key "" is Enter. Raises Abort for "leave"."""

    def read(said: str) -> str:
        key = said.strip().lower()
        if key not in answers:
            raise click.UsageError(f"{said!r} is none of: {', '.join(each or 'Enter' for each in answers)}.")
        return answers[key]

    default = "" if "" in answers else None
    found = click.prompt(text, default=default, show_default=False, value_proc=read, err=True)
    if found == "leave":
        raise click.Abort
    return found
