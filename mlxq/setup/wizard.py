"""The setup wizard: show the machine, ask what the models are for, show them, and let the user change them.

The wizard only asks and reads. It returns the user's choice as arguments of the task score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from catalog import units
from catalog.offer import Offer
from catalog.pick import Recommendation
from catalog.quality import quality
from catalog.retrieval import RetrievalModel
from catalog.score import alternatives, followers
from mlxq import described, render
from mlxq.setup import preview, recommendation
from mlxq.setup.inspection import Inspection
from state.errors import MlxqError
from tasks.plan import retrieval

INTENTS: Mapping[str, str] = {
    "balanced": "the best answers that fit, at a good speed",
    "agent-fleet": "agents that work side by side: tools, speed, long prompts",
}
"""The intents, with a description; the first is the default."""
QUIT = "[q]uit without changes"
MOST_OFFERED = 9
"""Alternatives that can be chosen by one digit."""


def settle(inspection: Inspection, arguments: Mapping[str, Any], *, intent: str | None) -> dict[str, Any]:
    """Ask the user for everything the options leave open. Return the arguments of the task score.

    `arguments`: those given by options; `intent` is None if no option named it. Raises Abort if the user quits,
    DoesNotFit if nothing fits this machine.
    """
    _show_machine(inspection, arguments)
    open_question = intent is None and "budget_pct" not in arguments
    if (
        inspection.tiers
        and _may_keep(inspection, open_question=open_question)
        and _keeps(inspection, start=arguments["start"])
    ):
        return {**arguments, "keep": True}
    completed = {**arguments, "intent": intent or (_intent() if inspection.hub else next(iter(INTENTS)))}
    choice = words(_chosen(inspection, completed))  # may add embeddings to `completed`
    files = inspection.described_of(choice)
    return completed | {"choice": choice} | ({"described": files} if files else {})


def _may_keep(inspection: Inspection, *, open_question: bool) -> bool:
    """Return whether the user may keep the current stack; without the Hub there is no alternative."""
    if not inspection.hub:
        return True
    if inspection.outdated:
        render.say()
        render.prose(inspection.outdated, err=True)
    return open_question and not inspection.outdated


def words(chosen: Recommendation) -> dict[str, str]:
    """Return a stack as the task score takes it: "model quant" by tier."""
    return {pick.tier: f"{pick.model} {pick.quant}" for pick in chosen.picks}


def _show_machine(inspection: Inspection, arguments: Mapping[str, Any]) -> None:
    machine = inspection.machine
    cores = f", {machine.gpu_cores} GPU cores" if machine.gpu_cores else ""
    memory = f"{units.memory(machine.memory_bytes)}, {units.memory(inspection.budget(arguments))} of it for models"
    lines = {
        "Chip": f"{machine.chip}{cores}, {machine.os}",
        "Memory": memory,
        "Disk": f"{units.files(inspection.free_bytes)} free for weights",
        "Note": machine.note,
    }
    render.say()
    for name, value in lines.items():
        if value:
            render.prose(value, f"  {name:<8}", err=True)


def _keeps(inspection: Inspection, *, start: bool) -> bool:
    """Show the current stack and what is left to download, and ask whether to keep it. Raises Abort."""
    render.say("\nCurrent stack:")
    for tier in inspection.tiers:
        render.say(f"  {tier.name:<10}{tier.model} {tier.quant}")
    if inspection.missing:
        render.say(preview.download_size(inspection, inspection.missing))
    if not inspection.hub:
        render.say("The Hub is unreachable, so no other models can be downloaded now.")
        action = "start these" if start else "keep these"
        text, answers = f"[Enter] {action} · {QUIT}", {"": "keep", "q": "quit"}
    else:
        action = "keep and start these" if start else "keep these"
        text = f"[Enter] {action} · [c]hoose other models · {QUIT}"
        answers = {"": "keep", "c": "choose", "q": "quit"}
    return _answer(f"\n{text}", answers) == "keep"


def _intent() -> str:
    render.say("\nWhat are the models for?")
    for number, (name, text) in enumerate(INTENTS.items(), start=1):
        render.say(f"  {number}  {name:<13}{text}")
    keys = {str(number): name for number, name in enumerate(INTENTS, start=1)}
    return _answer("A number · [Enter] 1", {"": next(iter(INTENTS)), **keys, **{name: name for name in INTENTS}})


def _chosen(inspection: Inspection, arguments: dict[str, Any]) -> Recommendation:
    """Show the recommendation and change it until the user accepts; add embeddings to `arguments` if the user does.

    Raises Abort, DoesNotFit.
    """
    undecided = "retrieval" not in arguments
    chosen = inspection.recommend(arguments)
    _show(inspection, arguments, chosen, undecided=undecided)
    while True:
        text, answers = _choices(inspection, chosen, arguments, undecided=undecided)
        match _answer(text, answers):
            case "continue":
                return chosen
            case "why":
                _show_reasons(chosen)
                continue
            case "embedding":
                chosen = _with_embedding(inspection, arguments, chosen)
            case "no embedding":
                del arguments["retrieval"]
                chosen = inspection.recommend(arguments, words(chosen))
            case _:
                chosen = _changed(inspection, arguments, chosen)
        _show(inspection, arguments, chosen, undecided=undecided)


def _show_reasons(chosen: Recommendation) -> None:
    render.say()
    for line in preview.reasons(chosen):
        render.prose(line, err=True)
    render.say()


def _offered(
    inspection: Inspection, chosen: Recommendation, arguments: Mapping[str, Any]
) -> tuple[RetrievalModel, str] | None:
    """Return the embedding model to offer; None where there is one, it was decided, or memory is short."""
    if "retrieval" in arguments or any(engine.purpose == "embedding" for engine in inspection.retrieval):
        return None
    return retrieval.offered(chosen.budget - chosen.total, chosen.budget, hub=inspection.hub)


def _with_embedding(inspection: Inspection, arguments: dict[str, Any], chosen: Recommendation) -> Recommendation:
    """Add the offered embedding model where the tiers fit beside it; return the stack. Raises Abort."""
    offer = _offered(inspection, chosen, arguments)
    assert offer is not None, "only what is offered can be chosen"
    model, quant = offer
    added = {"retrieval": {"embedding": f"{model.id}:{quant}"}}
    try:
        changed = inspection.recommend({**arguments, **added}, words(chosen))
    except MlxqError as problem:
        render.say(problem.message)
        return chosen
    if not _agreed(chosen, changed):
        return chosen
    arguments.update(added)
    return changed


def _embedding(model: RetrievalModel, quant: str) -> str:
    size, fetch = units.memory(model.memory_bytes(quant)), units.files(model.quants[quant].bytes)
    return f"{model.id} {quant}, {size} of memory, {fetch} to download"


def _choices(
    inspection: Inspection, chosen: Recommendation, arguments: Mapping[str, Any], *, undecided: bool
) -> tuple[str, dict[str, str]]:
    """Return the question below a recommendation, and its answers.

    `undecided`: no option says which models make embeddings.
    """
    answers = {"w": "why", "q": "quit"}
    text = f"[w]hy these · {QUIT}"
    if _offered(inspection, chosen, arguments):
        answers = {"e": "embedding", **answers}
    elif undecided and "retrieval" in arguments:
        answers = {"e": "no embedding", **answers}
    if inspection.hub:
        answers, text = {"c": "change", **answers}, f"[c]hange a model · {text}"
    if arguments["pull"] and inspection.to_fetch(chosen, arguments) > inspection.free_bytes:
        return text, answers
    return f"[Enter] continue · {text}", {"": "continue", **answers}


def _show(inspection: Inspection, arguments: Mapping[str, Any], chosen: Recommendation, *, undecided: bool) -> None:
    """Print the stack, its totals, how it differs from the current one, and what [e] does, if anything."""
    render.say()
    recommendation.table(chosen, preview.fetches(inspection, chosen), err=True)
    for line in [*preview.footer(inspection, arguments, chosen), *preview.differences(inspection.tiers, chosen)]:
        render.say(line)
    preview.show_engine(inspection, [pick.model for pick in chosen.picks], err=True)
    render.say()
    if offer := _offered(inspection, chosen, arguments):
        render.prose(f"[e] adds embeddings, for search in documents: {_embedding(*offer)}.", err=True)
        render.say()
    elif undecided and "retrieval" in arguments:
        render.say("[e] removes the embeddings.\n")


def _changed(inspection: Inspection, arguments: Mapping[str, Any], chosen: Recommendation) -> Recommendation:
    """Ask for a tier and a model for it. Return the changed stack, or the same one. Raises Abort."""
    tiers = [pick.tier for pick in chosen.picks]
    listed = ", ".join(f"{number} {tier}" for number, tier in enumerate(tiers, start=1))
    keys = {str(number): tier for number, tier in enumerate(tiers, start=1)}
    tier = _answer(f"Which tier? {listed} · [Enter] back", {"": "", **keys, **{tier: tier for tier in tiers}})
    if not tier:
        return chosen
    offers = alternatives(
        inspection.machine,
        inspection.models,
        chosen,
        tier,
        measured=inspection.measured,
        quant=inspection.quant,
        reuses=inspection.reuses,
    )
    _offer(inspection, offers[:MOST_OFFERED])
    keys = {
        str(number): f"{offer.model.id} {offer.quant}" for number, offer in enumerate(offers[:MOST_OFFERED], start=1)
    }
    before = words(chosen)
    while text := _typed(f"\nA number or a model name · [Enter] keep {before[tier]}"):
        try:
            choice = _shared(keys.get(text) or _named(inspection, text), tier, before)
            changed = inspection.recommend(arguments, before | dict.fromkeys((tier, *followers(chosen, tier)), choice))
        except MlxqError as problem:
            render.say(problem.message)
        else:
            return changed if _agreed(chosen, changed) else chosen
    return chosen


def _agreed(before: Recommendation, after: Recommendation) -> bool:
    """Show what a change costs the other tiers, and ask whether to make it. Raises Abort."""
    lines = preview.costs(before, after)
    if not lines:
        return True
    render.say("\nTo make room:")
    for line in lines:
        render.say(line)
    return _answer("[Enter] change it · [n] keep what there was", {"": "yes", "y": "yes", "n": "no"}) == "yes"


def _offer(inspection: Inspection, offers: Sequence[Offer]) -> None:
    """Print the alternatives, each with its number."""
    if not offers:
        render.say("\nNo other suitable model fits next to the other tiers; you can still enter a name.")
        return
    render.say()
    render.table(
        ["", "MODEL", "QUANT", "QUALITY", "CTX", "MEMORY", "TOK/S", "DOWNLOAD"],
        [
            [number, offer.model.id, offer.quant, recommendation.points(quality(offer.model)),
             recommendation.tokens(offer.context), units.memory(offer.bytes), recommendation.brief(offer.speed.decode),
             recommendation.fetch(inspection.fetch_of(offer.model.id, offer.quant))]
            for number, offer in enumerate(offers, start=1)
        ],
        right=(3, 4, 5, 6, 7),
        err=True,
    )  # fmt: skip


def _typed(question: str) -> str:
    """Prompt for a line of text. Raises Abort."""
    return click.prompt(question, default="", show_default=False, err=True).strip()


def _named(inspection: Inspection, text: str) -> str:
    """Return "model quant" for what the user typed. Raises as described.find does."""
    name, _, quant = text.partition(" ")
    entry = described.find(name, quant.strip() or None, inspection.models, inspection.home)
    if entry.row:
        inspection.add(entry.row)
    return f"{entry.model.id} {entry.quant}"


def _shared(choice: str, tier: str, before: Mapping[str, str]) -> str:
    """Return `choice`, in the quant that another tier uses where it serves that model: the two share its engine."""
    model = choice.partition(" ")[0]
    served = (text for other, text in before.items() if other != tier and text.partition(" ")[0] == model)
    return next(served, choice)


def _answer(question: str, answers: Mapping[str, str]) -> str:
    """Prompt until the user enters one of the keys; the key "" is Enter. Raises Abort for "quit"."""

    def parse(text: str) -> str:
        key = text.strip().lower()
        if key not in answers:
            raise click.UsageError(f"{text!r} must be one of: {', '.join(key or 'Enter' for key in answers)}.")
        return answers[key]

    default = "" if "" in answers else None
    answer = click.prompt(question, default=default, show_default=False, value_proc=parse, err=True)
    if answer == "quit":
        raise click.Abort
    return answer
