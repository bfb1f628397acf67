"""Changes to the stack that a user asks for: add or remove a tier, or serve a single model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from typing import Any

from catalog import units
from catalog.model import Model
from mlxq import described as unlisted
from mlxq import render
from mlxq.setup import recommendation
from state import desired, facts, service, settings, stack
from state.classes import dataclass
from state.db import Database
from state.errors import NotFound, UsageProblem, not_set_up
from state.job import LIVE, NewJob, listing
from state.paths import Home
from state.stack import Tier, engines_of, shares
from tasks import kinds, recommend, stack_jobs
from tasks.plan.placement import place
from tasks.plan.serving_options import AS_TOLD, ServingOptions

ONLY = "standard"
"""The tier of a single model; the other names are aliases of it."""


@dataclass(frozen=True)
class StackChange:
    """The change that the user asked for."""

    add: tuple[tuple[str, str], ...] = ()
    """(model, tier)."""
    remove: tuple[str, ...] = ()
    alone: str | None = None
    """The single model that replaces the whole stack."""
    options: ServingOptions = AS_TOLD
    """How the added model is to be served."""

    @property
    def additions(self) -> tuple[tuple[str, str], ...]:
        """The (model, tier) to add."""
        return self.add if self.alone is None else ((self.alone, ONLY),)

    def __bool__(self) -> bool:
        """Return whether any change was asked for."""
        return bool(self.add or self.remove or self.alone)


@dataclass(frozen=True)
class EditPlan:
    """The stack after a change: the tiers that are kept, removed and added."""

    remaining: list[Tier]
    removed: list[Tier]
    new: list[Tier]
    described: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """The model files of new models that the catalog does not have, by id."""

    def shares(self, tier: Tier) -> str:
        """Return the tier with whose engine `tier` is served; empty where it is the first, or has its own."""
        return shares(tier, self.removed if tier in self.removed else [*self.remaining, *self.new])

    def document(self) -> dict[str, Any]:
        """Return the plan as printed with --json. Sizes are bytes."""
        parts = {"kept": self.remaining, "gone": self.removed, "new": self.new}
        return {name: [_row(tier) for tier in tiers] for name, tiers in parts.items()}


def parse(
    models: Sequence[str],
    tiers: Sequence[str],
    remove: Sequence[str],
    alone: str | None,
    options: ServingOptions = AS_TOLD,
) -> StackChange:
    """Parse --add, --as, --remove, --model and the options of the added model.

    Raises UsageProblem if they cannot be combined.
    """
    if len(models) != len(tiers):
        raise UsageProblem("Each --add MODEL needs one --as TIER.", hint="mlxq setup --add MODEL --as TIER")
    if alone is not None and (models or remove):
        raise UsageProblem("--model replaces the stack; it cannot be combined with --add or --remove.")
    if options and len(models) + (alone is not None) != 1:
        raise UsageProblem(
            "--tool-parser, --reasoning-parser and --context belong to one --add or --model.",
            hint="mlxq setup --add MODEL --as TIER --context N",
        )
    return StackChange(tuple(zip(models, tiers, strict=True)), tuple(dict.fromkeys(remove)), alone, options)


def plan(db: Database | None, home: Home, change: StackChange) -> EditPlan:
    """Plan a change: names, memory, ports. `db` is None in a new home.

    Raises NotSetUp, NotFound, UsageProblem, DoesNotFit.
    """
    now = stack.tiers(db) if db else []
    if not now and change.alone is None:
        raise not_set_up(home.root)
    removed = _gone(db, now, change)
    remaining = [tier for tier in now if tier not in removed]
    if not remaining and not change.additions:
        raise UsageProblem("The stack would have no tiers.", done="Nothing was changed.", hint="mlxq down")
    new, described = _placed(db, home, remaining, change)
    return EditPlan(remaining, removed, new, described)


def _gone(db: Database | None, now: list[Tier], change: StackChange) -> list[Tier]:
    """Return the tiers to remove. Raises NotFound."""
    if db is None or change.alone is not None:
        return now
    pending = _being_added(db)
    names = {tier.name for tier in now}
    return [stack.tier(db, name) for name in change.remove if name in names or name not in pending]


def _being_added(db: Database) -> set[str]:
    """Return the tiers that a change that has not ended is about to add."""
    live = [job for state in LIVE for job in listing(db, state=state, kind="assign", limit=100)]
    return {str(job.args["tier"]) for job in live}


def _placed(
    db: Database | None, home: Home, remaining: Sequence[Tier], change: StackChange
) -> tuple[list[Tier], dict[str, Mapping[str, Any]]]:
    """Place each added model next to the other tiers; return the tiers, and the files of models without one.

    Raises NotFound, UsageProblem, DoesNotFit, and what describing a repo raises.
    """
    limit, models, port = _budget(db, home), recommend.all_models(home), settings.load(home)["tier-port-base"]
    from tasks.engines import serving

    reuses = serving.reads_once(db, home)
    new: list[Tier] = []
    described: dict[str, Mapping[str, Any]] = {}
    for name, tier in change.additions:
        entry = unlisted.find(name, None, models, home, change.options.context)
        if entry.row:
            described[entry.model.id] = entry.row
            models = {**models, entry.model.id: entry.model}
        before = [*remaining, *new]
        served = None if entry.row else _served_quant(name, entry.model, models, before)
        new.append(
            place(
                tier,
                entry.model,
                served or entry.quant,
                before,
                base_port=port,
                budget_bytes=limit,
                options=change.options,
                reuses=reuses,
            )
        )
    return new, described


def _served_quant(name: str, entry: Model, models: Mapping[str, Model], tiers: Sequence[Tier]) -> str | None:
    """Return the quant in which an engine serves a model already; None if it does not, or `name` is of one quant."""
    with suppress(NotFound):  # a repo or folder is of one quant
        if not recommend.find(name, models).quant:
            return next((engine.quant for engine in engines_of(tiers) if engine.model == entry.id), None)
    return None


def _budget(db: Database | None, home: Home) -> int:
    """Return the memory budget of all tiers in bytes; a machine that was never inspected is inspected now."""
    if db and facts.get(db, "machine"):
        return stack_jobs.tier_budget(db, home)
    from tasks.system import hardware

    return recommend.budget(hardware.detect(), settings.load(home)["memory-budget-pct"])


def jobs(edit_plan: EditPlan, change: StackChange, *, serving: bool) -> list[NewJob]:
    """Return the jobs of a change. A new tier's weights are pulled first; tiers are added one after the other.

    `serving`: whether the gateway should be running.
    """
    remaining = {engine.name for engine in engines_of(edit_plan.remaining)}
    retired = [engine.name for engine in engines_of(edit_plan.removed) if engine.name not in remaining]
    removes = edit_plan.removed and change.alone is None
    batch = [kinds.new("detect"), *(stack_jobs.remove_tiers(retired, serving=serving) if removes else [])]
    before = "detect"
    for tier in edit_plan.new:
        source = tier.engine.source
        pull = kinds.new("pull", {"source": source}, label=f"pull {source}")
        batch += [] if pull.label in {entry.label for entry in batch} else [pull]
        args = _assignment(edit_plan, change, tier)
        needs, after = ["detect", pull.label], [before] if before != "detect" else []
        batch.append(kinds.new("assign", args, needs=needs, after=after, label=f"assign {tier.name}"))
        before = batch[-1].label
    return batch


def _assignment(edit_plan: EditPlan, change: StackChange, tier: Tier) -> dict[str, Any]:
    """Return the arguments of the job that adds a tier."""
    args = {"model": tier.model, "quant": tier.quant, "tier": tier.name, "alone": change.alone is not None}
    described = edit_plan.described.get(tier.model)
    args |= {"described": dict(described)} if described else {}
    return args | ({"options": change.options.row()} if change.options else {})


def begin(db: Database, edit_plan: EditPlan, change: StackChange) -> list[int]:
    """Store the change and enqueue its jobs in one transaction. Return their ids.

    The engine of a removed tier stays desired until its job `retire`, so that it serves until the gateway is updated.
    """
    from mlxq import jobs_client

    with db.transaction():
        seq = desired.next_seq(db)
        if change.alone is not None:
            desired.request_stack(db, seq)
        desired.request_tiers(db, seq, absent=change.remove, present=[tier.name for tier in edit_plan.new])
        if edit_plan.removed and change.alone is None:
            removed = {tier.name for tier in edit_plan.removed}
            stack.replace(db, [tier for tier in stack.tiers(db) if tier.name not in removed])
            stack_jobs.mark_customized(db)
        row = service.find(db, stack_jobs.GATEWAY)
        batch = jobs(edit_plan, change, serving=row is not None and row.desired == "up")
        return jobs_client.enqueue(db, [*batch, *(_stop(name) for name in _unwanted(db, edit_plan))])


def _stop(engine: str) -> NewJob:
    return kinds.new("stop", {"service": engine}, label=f"stop {engine}")


def _unwanted(db: Database, edit_plan: EditPlan) -> list[str]:
    """Return the engines of removed tiers that serve only tiers which the user stopped."""
    tiers = stack.tiers(db)
    wanted = {tier.engine.name for tier in [*tiers, *edit_plan.new] if tier.desired == "up"}
    shared = {tier.engine.name for tier in edit_plan.removed} & {tier.engine.name for tier in tiers}
    return sorted(shared - wanted)


def show(edit_plan: EditPlan, *, err: bool = False) -> None:
    """Print the plan; `err`: to stderr, if stdout is for JSON."""
    marks = {"+": edit_plan.new, " ": edit_plan.remaining, "-": edit_plan.removed}
    render.table(
        ["", "TIER", "MODEL", "QUANT", "CTX", "MEMORY", "PORT"],
        [
            [mark, tier.name, tier.model, tier.quant, recommendation.tokens(tier.context), *_cost(edit_plan, tier)]
            for mark, tiers in marks.items()
            for tier in tiers
        ],
        right=(4, 5, 6),
        err=err,
    )  # fmt: skip


def _cost(edit_plan: EditPlan, tier: Tier) -> list[Any]:
    """Return the memory and port of a tier's engine, or the tier with which it shares one."""
    first = edit_plan.shares(tier)
    return [f"with {first}", None] if first else [units.memory(tier.engine.memory_bytes), tier.engine.port]


def _row(tier: Tier) -> dict[str, Any]:
    return {
        "tier": tier.name,
        "model": tier.model,
        "quant": tier.quant,
        "source": tier.engine.source,
        "context": tier.context,
        "memory_bytes": tier.engine.memory_bytes,
        "port": tier.engine.port,
        "engine": tier.engine.name,
    }
