"""Have the stack make embeddings or rank documents, or stop doing so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from catalog import units
from catalog.retrieval import RetrievalModel
from mlxq import jobs_client, render
from state import settings, stack
from state.db import Database
from state.errors import NotFound
from state.job import NewJob
from state.paths import Home
from state.stack import Engine, Purpose
from tasks import kinds, stack_jobs
from tasks.plan import retrieval
from tasks.plan.retrieval import NONE


@dataclass(frozen=True)
class RetrievalChange:
    """What changes for one purpose."""

    purpose: Purpose
    engine: Engine | None
    """None where the model is taken away."""
    model: RetrievalModel | None = None

    def jobs(self, after: str) -> list[NewJob]:
        """Return the jobs of the change, the last one last; `after`: the label of one before."""
        label = f"serve {self.purpose}"
        if self.engine is None:
            return [kinds.new("serve_retrieval", {"purpose": self.purpose, "model": NONE}, needs=[after], label=label)]
        source = self.engine.source
        model = f"{self.engine.model}:{self.engine.quant}"
        return [
            kinds.new("pull", {"source": source}, label=f"pull {source}"),
            kinds.new(
                "serve_retrieval",
                {"purpose": self.purpose, "model": model},
                needs=[after, f"pull {source}"],
                label=label,
            ),
        ]


def plan(db: Database, home: Home, wanted: Mapping[Purpose, str]) -> list[RetrievalChange]:
    """Return the changes that make `wanted`, model by purpose, true. Raises NotSetUp, NotFound, DoesNotFit."""
    stack.require(db)
    engines, base_port = stack.engines(db), settings.load(home)["tier-port-base"]
    changes: list[RetrievalChange] = []
    for purpose, name in wanted.items():
        remaining = [engine for engine in engines if engine.name != purpose]
        if name.lower() == NONE:
            if len(remaining) == len(engines):
                raise NotFound(f"The stack has no {purpose} model.", done="Nothing was changed.", hint="mlxq status")
            engines = remaining
            changes.append(RetrievalChange(purpose, None))
            continue
        model, quant = retrieval.find(name, purpose)
        budget = stack_jobs.budget(db, home)
        engine = retrieval.place(purpose, model, quant, engines, base_port=base_port, budget_bytes=budget)
        engines = [*remaining, engine]
        changes.append(RetrievalChange(purpose, engine, model))
    return changes


def document(changes: list[RetrievalChange]) -> dict[str, Any]:
    """Return the changes as printed with --json. Sizes are bytes."""
    return {change.purpose: _row(change.engine) for change in changes}


def _row(engine: Engine | None) -> dict[str, Any] | None:
    if engine is None:
        return None
    names = ("model", "quant", "source", "context", "memory_bytes", "port")
    return {name: getattr(engine, name) for name in names}


def show(changes: list[RetrievalChange], *, err: bool = False) -> None:
    """Print the changes; `err`: to stderr, if stdout is for JSON."""
    rows = [[change.purpose, *_cells(change)] for change in changes]
    render.table(["PURPOSE", "MODEL", "QUANT", "INPUT", "MEMORY", "LICENSE"], rows, right=(3, 4), err=err)


def _cells(change: RetrievalChange) -> list[Any]:
    if change.engine is None or change.model is None:
        return ["removed", None, None, None, None]
    engine = change.engine
    return [engine.model, engine.quant, engine.context, units.memory(engine.memory_bytes), change.model.license]


def begin(db: Database, changes: list[RetrievalChange]) -> list[int]:
    """Enqueue the jobs of the changes, one after another; return their ids."""
    batch, last = [kinds.new("detect")], "detect"
    for change in changes:
        batch += change.jobs(last)
        last = batch[-1].label
    return jobs_client.enqueue(db, batch)
