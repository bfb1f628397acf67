"""Jobs that make a model a tier, or the engine for embeddings or ranking, and take such an engine away for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from state import desired, settings, stack, weights
from state import service as rows
from state.stack import Purpose, Tier
from tasks import model_file, recommend, stack_jobs
from tasks.engines import serving
from tasks.plan import retrieval, serving_options
from tasks.plan.gateway import SERVICE as GATEWAY
from tasks.plan.placement import place
from tasks.queue import Context, job
from tasks.supervision import lifecycle


@job("assign")
def assign(
    context: Context,
    model: str,
    quant: str,
    tier: str,
    *,
    alone: bool = False,
    described: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Put a tier for a model into the stack, or with `alone` in place of it, and bring it up.

    `described`: the model file of a model that the catalog does not have; it is kept in this home. `options`: what the
    user said of how it is served, a row of ServingOptions.
    The engine comes up before the gateway is told of it, so no request meets a tier that is not there. Nothing is done
    when a newer request decided about the tier or the whole stack, and tiers that a newer one added stay. Returns
    {"tier", "model", "context", "port"}, the last two None for a tier that is not there. Raises NotSetUp, NotFound,
    UsageProblem, DoesNotFit.
    """
    db, home = context.db, context.home
    now = stack.tiers(db)
    if desired.tier_superseded(db, tier, context.claim.seq):
        return {"tier": tier, "model": model, "context": None, "port": None}
    if described:
        model_file.keep(home, described)
    newer = desired.newer_tiers(db, context.claim.seq)
    if not any((existing.name, existing.model, existing.quant) == (tier, model, quant) for existing in now) or (
        alone and (options or {existing.name for existing in now} - newer != {tier})
    ):
        staying = [existing for existing in now if not alone or existing.name in newer]
        before = [existing for existing in staying if existing.name != tier]  # an older request may have added it since
        stack.replace(db, [*before, _placed(context, (model, quant), tier, before, options or {})])
        stack_jobs.mark_customized(db)
    assigned = stack.tier(db, tier)
    for following in stack_jobs.add_tier(assigned.engine.name, stack_jobs.leaving(db)):
        context.then(following)
    return {"tier": tier, "model": assigned.model, "context": assigned.context, "port": assigned.engine.port}


def _placed(
    context: Context, wanted: tuple[str, str], tier: str, before: Sequence[Tier], options: Mapping[str, Any]
) -> Tier:
    """Return the new tier for the (model, quant) `wanted`, beside the tiers that stay. Raises as `assign` does."""
    db, home, (name, quant) = context.db, context.home, wanted
    model = recommend.find(name, recommend.all_models(home)).model
    downloaded = weights.newest(db, model.quants[quant].source)
    return place(
        tier,
        model,
        quant,
        before,
        base_port=settings.load(home)["tier-port-base"],
        budget_bytes=stack_jobs.tier_budget(db, home),
        weights=downloaded.folder if downloaded else "",
        options=serving_options.from_row(options),
        reuses=serving.reads_once(db, home),
    )


@job("serve_retrieval")
def serve_retrieval(context: Context, purpose: Purpose, model: str) -> dict[str, Any]:
    """Have `model` serve `purpose` (embedding or rerank), in place of one that does; "none" takes that one away.

    The engine comes up before the gateway is told of it, and the gateway is told before one ends. Returns {"purpose",
    "model", "port"}, the last two None where none serves any more. Raises NotSetUp, NotFound, DoesNotFit.
    """
    db, home = context.db, context.home
    if model == retrieval.NONE:
        stack.remove_retrieval(db, purpose)
        for following in stack_jobs.remove_tiers([purpose], serving=stack_jobs.gateway_wanted(db)):
            context.then(following)
        return {"purpose": purpose, "model": None, "port": None}
    entry, quant = retrieval.find(model, purpose)
    now = stack.engines(db)
    base_port: int = settings.load(home)["tier-port-base"]
    budget_bytes = stack_jobs.budget(db, home)
    placed = retrieval.place(purpose, entry, quant, now, base_port=base_port, budget_bytes=budget_bytes)
    downloaded = weights.newest(db, placed.source)
    stack.put_retrieval(db, replace(placed, weights=downloaded.folder if downloaded else ""))
    for following in stack_jobs.add_tier(purpose, []):
        context.then(following)
    return {"purpose": purpose, "model": entry.id, "port": placed.port}


@job("retire")
def retire(context: Context, service: str) -> dict[str, Any]:
    """Stop a service that left the stack and delete its row; one that was added again stays.

    It serves until no gateway that still knows it is left.

    Returns {"service", "gone"}.
    """
    if not _await_last_answers(context, service):
        return {"service": service, "gone": False}
    with lifecycle.hold(service, context.check):
        if service not in stack_jobs.leaving(context.db):
            return {"service": service, "gone": False}
        rows.set_desired(context.db, service, "down")
        lifecycle.stop(context.db, context.home, rows.get(context.db, service))
        return {"service": service, "gone": rows.remove(context.db, service)}


def _await_last_answers(context: Context, service: str) -> bool:
    """Wait until a gateway that was replaced has ended: some of its requests may be with this tier.

    Return False as soon as the service belongs to the stack again.
    """
    while service in stack_jobs.leaving(context.db):
        row = rows.find(context.db, GATEWAY)
        if row is None or not lifecycle.leaving(row) or rows.get(context.db, service).desired == "down":
            return True
        context.report("waiting for the last answers")
        context.wait(0.5)
    return False
