"""What the catalog advises, with its refusals turned into errors for people. No huey: commands use it too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from typing import TYPE_CHECKING, Any

from catalog import load, units
from catalog.fit import smallest
from catalog.intent import INTENTS, TIERS
from catalog.load import Match
from catalog.machine import Machine, planned
from catalog.model import Model, Quant
from catalog.offer import BUILTIN, Reuses, full_attention
from catalog.problems import TooSmall, UnknownModel
from catalog.speed import Measured
from state.errors import DoesNotFit, NotFound, UsageProblem
from tasks.weights import source as sources

if TYPE_CHECKING:
    from catalog.pick import Recommendation
    from catalog.retrieval import RetrievalModel
    from state.db import Database
    from state.paths import Home
    from state.settings import Settings
    from state.stack import Tier

CATALOG = "catalog"
"""The folder of the last valid model files, as state.config.good names it."""
CONVERTED = ("int4", "int8", "bf16")
"""What mlx-lm makes of a repo that holds no MLX weights."""


def all_models(home: Home) -> dict[str, Model]:
    """Return every model, the user's own files laid over the shipped ones; `file_problems` says what is wrong there."""
    if not home.catalog.exists():
        return load.entries()
    from state.config import good

    return load.entries(home.catalog, good.folder(home, CATALOG))


def file_problems(home: Home) -> list[str]:
    """Return what is wrong with the user's own model files, with file, line, field and allowed values.

    Keeps a copy of those that are right, which counts while they are wrong.
    """
    if not home.catalog.exists():
        return []
    from state.config import good

    overlay = load.read_overlay(home.catalog)
    for name, text in overlay.texts.items():
        good.keep(home, f"{CATALOG}/{name}", text)
    return [str(problem) for problem in overlay.problems]


def find(name: str, models: Mapping[str, Model]) -> Match:
    """Find a model by any of its names. Raises NotFound with the nearest ones."""
    try:
        return load.resolve(name, models)
    except UnknownModel as problem:
        raise NotFound(str(problem), hint="mlxq models --catalog") from problem


def quant_of(model: Model, wanted: str | None, preferred: str) -> str:
    """Return the quant to use: the one wanted, else the preferred one, else the smallest that exists.

    Raises UsageProblem when the wanted one does not exist.
    """
    if wanted is not None and wanted not in model.quants:
        available = ", ".join(model.quants)
        convertible = wanted in CONVERTED and model.repo
        hint = (
            f"mlxq pull {model.repo} --quant {wanted}   (converts it here)" if convertible else f"mlxq pull {model.id}"
        )
        raise UsageProblem(f"{model.id} does not exist in {wanted}; there is {available}.", hint=hint)
    chosen = wanted or preferred
    return chosen if chosen in model.quants else smallest(model).name


def quant_named(name: str, models: Mapping[str, Model], preferred: str) -> Quant:
    """Return the weights that a name stands for: of the quant in it, else as `quant_of`. Raises UnknownModel.

    The model may be one for embeddings or ranking.
    """
    try:
        match = load.resolve(name, models)
    except UnknownModel:
        if named := retrieval_named(name):
            model, quant = named
            return model.quants[quant]
        raise
    return match.model.quants[match.quant or quant_of(match.model, None, preferred)]


def source_named(home: Home, name: str, quant: str | None = None) -> str:
    """Return the source that a name stands for: of the catalog, or a repo on the Hub; no folder and no other site.

    `quant`: where the name has none; else the setting default-quant. Raises UnknownModel.
    """
    from state import settings

    try:
        return quant_named(name, all_models(home), quant or settings.load(home)["default-quant"]).source
    except UnknownModel:
        if not sources.is_repo(name):
            raise
        return f"hub:{name}"


def sources_named(home: Home, name: str) -> set[str]:
    """Return the sources of all weights that a name may stand for: each quant of a model, and the repo of that name."""
    with suppress(UnknownModel):
        return {f"hub:{name}", *(quant.source for quant in load.find(name, all_models(home)).quants.values())}
    return {f"hub:{name}"}


def retrieval_named(name: str) -> tuple[RetrievalModel, str] | None:
    """Return the model for embeddings or ranking of a name, and its quant; None where it has no such name."""
    from catalog import retrieval

    for purpose in ("embedding", "rerank"):
        with suppress(UnknownModel):
            return retrieval.find(name, purpose)
    return None


def quant_wanted(wanted: Settings) -> str | None:
    """Return the quant that a user chose by setting; None leaves the choice to the recommender."""
    value = wanted.values["default-quant"]
    return None if value.source == "default" else value.value


def question(intent: str | None, budget_pct: int | None, stored: Mapping[str, Any], wanted: Settings) -> dict[str, Any]:
    """Fill in what was not asked: as it was asked for the stack that is here, else by the settings.

    `stored`: what is remembered of that stack. Gives {"intent", "budget_pct", "quant"}.
    """
    before: Mapping[str, Any] = stored.get("asked", {})
    named = before.get("budget_pct") if stored.get("budget_named") else None
    return {
        "intent": intent or before.get("intent", next(iter(INTENTS))),
        "budget_pct": budget_pct or named or wanted["memory-budget-pct"],
        "quant": quant_wanted(wanted),
    }


def served(tiers: Sequence[Tier]) -> dict[str, str]:
    """Return "model quant" by tier, as a choice names them."""
    return {tier.name: f"{tier.model} {tier.quant}" for tier in tiers}


def stays(
    now: Sequence[Tier], stored: Mapping[str, Any], args: Mapping[str, Any], request: Mapping[str, Any], *, hub: bool
) -> bool:
    """Say whether the task score keeps the stack that is there.

    It does when it is told to, when that answers the question, and when a user made it by hand and asks for nothing.
    `args`: those of the task; `request`: the question that `question` makes of them.
    """
    if not now:
        return False
    by_hand = "asked" not in stored and not any(args.get(name) for name in ("intent", "budget_pct", "choice"))
    return bool(args.get("keep")) or by_hand or answers(now, stored, request, args.get("choice"), hub=hub)


def answers(
    now: Sequence[Tier],
    stored: Mapping[str, Any],
    request: Mapping[str, Any],
    choice: Mapping[str, str] | None,
    *,
    hub: bool,
) -> bool:
    """Say whether the stack that is there answers the question already."""
    same = stored.get("asked") == request
    if choice:
        return same and served(now) == choice
    return not hub or (same and not stored.get("builtin"))


def sizes(tiers: Sequence[Tier], models: Mapping[str, Model]) -> dict[str, int]:
    """Return the bytes of each source as the catalog has them, so that a total is known before the first pull."""
    from state.stack import engines_of

    quants = [quant for model in models.values() for quant in model.quants.values()]
    wanted = {engine.source for engine in engines_of(tiers)}
    return {quant.source: quant.bytes for quant in quants if quant.source in wanted}


def measured(db: Database, machine: Machine) -> list[Measured]:
    """Return the benchmarks kept on this machine, as the catalog reads them."""
    from state.metrics import bench

    rows = bench.latest(db, machine.chip)
    return [Measured(row.model, row.quant, row.prompt_tokens, row.decode_tps, row.prompt_tps) for row in rows]


def budget(machine: Machine, share: int | str) -> int:
    """Return the bytes the models may use: the share the user named, never more than the machine can give."""
    from state import settings

    percent = None if share == settings.AUTO else int(share)
    return planned(machine.usable_bytes, machine.memory_bytes, percent)


def _tier_budget(machine: Machine, request: Mapping[str, Any]) -> int:
    """Return the bytes for the tiers: the budget without what is reserved for embeddings and ranking."""
    return budget(machine, request["budget_pct"]) - request.get("reserved_bytes", 0)


def recommend(
    machine: Machine,
    models: Mapping[str, Model],
    intent: str,
    budget_bytes: int,
    *,
    benches: Sequence[Measured] = (),
    quant: str | None = None,
    reuses: Reuses = full_attention,
) -> Recommendation:
    """Choose the three models; `quant` binds them all to one. `reuses`: of which models prompts are read once here.

    Raises DoesNotFit with what the smallest stack needs, UsageProblem for a quant in which no model exists.
    """
    from catalog import score

    try:
        return score.recommend(
            machine, models, intent, budget_bytes=budget_bytes, measured=benches, quant=quant, reuses=reuses
        )
    except TooSmall as problem:
        raise too_small(machine, problem) from problem
    except ValueError as problem:
        raise UsageProblem(str(problem), hint="mlxq models --catalog") from problem


def too_small(machine: Machine, problem: TooSmall) -> DoesNotFit:
    """Say what the smallest stack needs, and the share of memory that would do."""
    share = -(-100 * problem.needs_bytes // machine.memory_bytes)
    return DoesNotFit(str(problem), hint=f"mlxq setup --budget-pct {min(90, max(10, share))}")


def choose(
    machine: Machine,
    models: Mapping[str, Model],
    request: Mapping[str, Any],
    measured: Sequence[Measured] = (),
    *,
    hub: bool,
    reuses: Reuses = full_attention,
) -> Recommendation:
    """Choose a stack for what was `request` (intent, budget_pct, quant); without a Hub, of the built-in model.

    `choice` in `request`, "model quant" by tier, holds whatever else is asked; its `reserved_bytes` are for engines
    that no tier has. Raises DoesNotFit with what the smallest stack needs, NotFound for a model the catalog does not
    have, UsageProblem.
    """
    choice: Mapping[str, str] = request.get("choice") or {}
    all_builtin = len(choice) > 1 and {words.partition(" ")[0] for words in choice.values()} == {BUILTIN}
    if choice and not all_builtin:
        return compose(machine, models, choice, request, measured, reuses=reuses)
    share = _tier_budget(machine, request)
    if hub and not all_builtin:
        return recommend(
            machine, models, request["intent"], share, benches=measured, quant=request["quant"], reuses=reuses
        )
    from catalog import score

    tiers = [tier for tier in TIERS if not choice or tier in choice]
    try:
        return score.builtin(machine, models, budget_bytes=share, tiers=tiers)
    except TooSmall as problem:
        raise too_small(machine, problem) from problem


def compose(
    machine: Machine,
    models: Mapping[str, Model],
    choice: Mapping[str, str],
    request: Mapping[str, Any],
    measured: Sequence[Measured] = (),
    *,
    reuses: Reuses = full_attention,
) -> Recommendation:
    """Return the stack of the models that a user chose, "model quant" by tier.

    Raises DoesNotFit with what they need together, NotFound, UsageProblem.
    """
    from catalog import score

    wanted = {tier: named(words, models) for tier, words in choice.items()}
    share = _tier_budget(machine, request)

    def composed(choice: Mapping[str, tuple[str, str]]) -> Recommendation:
        return score.compose(
            machine, models, choice, request["intent"], budget_bytes=share, measured=measured, reuses=reuses
        )

    try:
        return composed(wanted)
    except TooSmall as problem:
        raise DoesNotFit(
            f"These models need {units.memory(problem.needs_bytes)} together; "
            f"the budget is {units.memory(problem.budget_bytes)}: {units.memory(problem.short_bytes)} too little. "
            f"{_what_fits(wanted, composed)}",
            hint="mlxq setup",
        ) from problem
    except (KeyError, ValueError) as problem:
        raise UsageProblem(f"That is no stack: {problem}.", hint="mlxq setup") from problem


def _what_fits(
    wanted: Mapping[str, tuple[str, str]], composed: Callable[[Mapping[str, tuple[str, str]]], Recommendation]
) -> str:
    """Return in a sentence the most of these tiers that fit together."""
    for count in range(len(wanted) - 1, 0, -1):
        for tiers in combinations(wanted, count):
            try:
                composed({tier: wanted[tier] for tier in tiers})
            except TooSmall:
                continue
            return f"{units.listed([f'{tier} ({wanted[tier][0]})' for tier in tiers])} would fit."
    return "None of them would fit alone."


def named(words: str, models: Mapping[str, Model]) -> tuple[str, str]:
    """Read "model quant". Raises NotFound, UsageProblem for a quant that does not exist."""
    name, _, quant = words.partition(" ")
    model = find(name, models).model
    return model.id, quant_of(model, quant, quant)
