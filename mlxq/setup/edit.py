"""Changes that a person makes to the stack by hand: a tier more, a tier less, one model alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from catalog import units
from catalog.model import Model
from mlxq import model_ref, render
from mlxq.setup import recommendation
from state import facts, service, settings, stack
from state.db import Database
from state.errors import NotSetUp, UsageProblem
from state.job import NewJob
from state.paths import Home
from state.stack import Tier
from tasks import kinds, recommend, stack_jobs
from tasks.plan.placement import assign_ports

ONLY = "standard"
"""The tier of a model that serves alone; the other names lead to it."""


@dataclass(frozen=True)
class StackChange:
    """What a person asked for."""

    add: tuple[tuple[str, str], ...] = ()
    """(model, tier)."""
    remove: tuple[str, ...] = ()
    alone: str | None = None
    """The one model that shall serve, in place of the whole stack."""

    @property
    def wished(self) -> tuple[tuple[str, str], ...]:
        """The (model, tier) that shall come."""
        return self.add if self.alone is None else ((self.alone, ONLY),)

    def __bool__(self) -> bool:
        """Tell whether anything was asked for."""
        return bool(self.add or self.remove or self.alone)


@dataclass(frozen=True)
class EditPlan:
    """What a change comes to."""

    kept: list[Tier]
    gone: list[Tier]
    new: list[Tier]

    def document(self) -> dict[str, Any]:
        """Give it as it is printed for programs. Sizes are bytes."""
        return {name: [_row(tier) for tier in getattr(self, name)] for name in ("kept", "gone", "new")}


def parse(models: Sequence[str], tiers: Sequence[str], remove: Sequence[str], alone: str | None) -> StackChange:
    """Read --add, --as, --remove and --model. Raises UsageProblem where they do not go together."""
    if len(models) != len(tiers):
        raise UsageProblem("Each --add MODEL goes with one --as TIER.", hint="mlxq setup --add MODEL --as TIER")
    if alone is not None and (models or remove):
        raise UsageProblem("--model replaces the stack, so --add and --remove have no place beside it.")
    return StackChange(tuple(zip(models, tiers, strict=True)), tuple(dict.fromkeys(remove)), alone)


def plan(db: Database | None, home: Home, wanted: StackChange) -> EditPlan:
    """Work a change out: names, memory, ports. `db` is None in a fresh home.

    Raises NotSetUp, NotFound, UsageProblem, DoesNotFit.
    """
    now = stack.tiers(db) if db else []
    if not now and wanted.alone is None:
        raise NotSetUp("There is no stack to change.", hint="mlxq setup")
    gone = _gone(db, now, wanted)
    kept = [tier for tier in now if tier not in gone]
    if not kept and not wanted.wished:
        raise UsageProblem("That would leave no tier at all.", done="Nothing was changed.", hint="mlxq down")
    return EditPlan(kept, gone, _placed(db, home, kept, wanted.wished))


def _gone(db: Database | None, now: list[Tier], wanted: StackChange) -> list[Tier]:
    """Give the tiers that leave. Raises NotFound."""
    if db is None or wanted.alone is not None:
        return now
    return [stack.tier(db, name) for name in wanted.remove]


def _placed(db: Database | None, home: Home, kept: Sequence[Tier], wished: Sequence[tuple[str, str]]) -> list[Tier]:
    """Give each wished-for (model, tier) a place beside the others. Raises NotFound, UsageProblem, DoesNotFit."""
    limit, known, port = _budget(db, home), recommend.known(home), settings.load(home)["tier-port-base"]
    new: list[Tier] = []
    for name, tier in wished:
        one, quant = model(name, None, known, home)
        new.append(assign_ports(tier, one, quant, [*kept, *new], base_port=port, budget_bytes=limit))
    return new


def _budget(db: Database | None, home: Home) -> int:
    """Give the budget; a machine that nobody looked at yet is looked at now."""
    if db and facts.get(db, "machine"):
        return stack_jobs.budget(db, home)
    from tasks.system import hardware

    return recommend.budget(hardware.detect(), settings.load(home)["memory-budget-pct"])


def model(name: str, quant: str | None, known: Mapping[str, Model], home: Home) -> tuple[Model, str]:
    """Give the catalog's entry and the quant. Raises NotFound, UsageProblem for what the catalog does not know."""
    found = model_ref.find(name, quant, known, settings.load(home)["default-quant"])
    if found.model is None or found.quant is None or found.quant not in found.model.quants:
        raise UsageProblem(
            f"{name} is not in the catalog, so nobody can say how much memory a tier of it needs.",
            hint="mlxq models --catalog",
        )
    return found.model, found.quant


def jobs(made: EditPlan, wanted: StackChange, *, serving: bool) -> list[NewJob]:
    """Give the jobs of a change. A new tier's weights come first, one tier after the other.

    `serving`: whether the gateway is wanted now.
    """
    gone = [] if wanted.alone is not None else [tier.name for tier in made.gone]
    batch = [kinds.new("detect"), *(stack_jobs.remove_tiers(gone, serving=serving) if gone else [])]
    before = "detect"
    for tier in made.new:
        pull, label = f"pull {tier.source}", f"assign {tier.name}"
        if pull not in {each.label for each in batch}:
            batch.append(kinds.new("pull", {"source": tier.source}, label=pull))
        args = {"model": tier.model, "quant": tier.quant, "tier": tier.name, "alone": wanted.alone is not None}
        batch.append(kinds.new("assign", args, needs=[before, pull], label=label))
        before = label
    return batch


def begin(db: Database, made: EditPlan, wanted: StackChange) -> list[int]:
    """Write the wish down and put its jobs in, all in one step; give their ids.

    An engine whose tier leaves stays wanted until its job `retire`, so that it serves until the gateway knows.
    """
    from mlxq import jobs_client

    with db.transaction():
        if made.gone and wanted.alone is None:
            gone = {tier.name for tier in made.gone}
            stack.replace(db, [tier for tier in stack.tiers(db) if tier.name not in gone])
            stack_jobs.mark_customized(db)
        row = service.find(db, stack_jobs.GATEWAY)
        return jobs_client.enqueue(db, jobs(made, wanted, serving=row is not None and row.desired == "up"))


def show(made: EditPlan, *, err: bool = False) -> None:
    """Print what would be; `err`: where stdout is for programs, to stderr."""
    marks = {"+": made.new, " ": made.kept, "-": made.gone}
    render.table(
        ["", "TIER", "MODEL", "QUANT", "CTX", "MEMORY", "PORT"],
        [
            [mark, tier.name, tier.model, tier.quant, recommendation.tokens(tier.context),
             units.memory(tier.memory_bytes), tier.port]
            for mark, tiers in marks.items()
            for tier in tiers
        ],
        right=(4, 5, 6),
        err=err,
    )  # fmt: skip


def _row(tier: Tier) -> dict[str, Any]:
    return {
        "tier": tier.name,
        "model": tier.model,
        "quant": tier.quant,
        "source": tier.source,
        "context": tier.context,
        "memory_bytes": tier.memory_bytes,
        "port": tier.port,
    }
