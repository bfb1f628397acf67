"""What setup finds before it asks or changes anything: machine, Hub, disk, and the weights and stack of this home."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, cast

from catalog.load import model
from catalog.machine import Machine
from catalog.model import Model
from catalog.offer import Reuses, full_attention
from catalog.pick import Recommendation
from catalog.retrieval import RetrievalModel
from catalog.speed import Measured
from mlxq import jobs_client, local_models
from state import facts, settings, stack
from state.classes import dataclass
from state.db import Database
from state.errors import NotSetUp
from state.paths import Home
from state.settings import Settings
from state.stack import Engine, Purpose, Tier, engines_of
from tasks import recommend as advice
from tasks.plan import retrieval
from tasks.system import free_space
from tasks.weights import source as sources

INDEX_WAIT_S = 3.0
NOTHING: Mapping[str, Any] = {"measured": (), "tiers": (), "retrieval": (), "stack_facts": {}}
"""The stored facts of a home without a database."""


@dataclass(frozen=True)
class Inspection:
    """Everything that a choice of models depends on, at one moment."""

    home: Home
    machine: Machine
    models: dict[str, Model]
    measured: Sequence[Measured]
    hub: bool
    """Whether the Hub is reachable."""
    installed: frozenset[str]
    """Sources whose weights are installed."""
    partial: Mapping[str, int]
    """Bytes of interrupted downloads, by the name of the final folder."""
    free_bytes: int
    """Disk space for weights, in bytes, without the part that is always kept free."""
    tiers: Sequence[Tier]
    retrieval: Sequence[Engine]
    """The engines for embeddings and ranking that are there."""
    stack_facts: Mapping[str, Any]
    """The options and totals of the stored choice; empty if the user edited the stack."""
    settings: Settings
    reuses: Reuses = full_attention
    """Of which models the engine that would serve them reads only the new part of a prompt."""
    lacks: Callable[[Iterable[Model]], str | None] = lambda _: None
    """Returns the engine that models need and that is not installed; None where there is none, or none is to be."""
    index: bool = False
    """Whether the package index is reachable and has the engines that are not installed."""
    described: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """The model files of models that the user named and the catalog does not have, by id."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a model into the choice; `row` is its model file."""
        self.described[row["id"]] = row
        self.models[row["id"]] = model(row)

    def described_of(self, choice: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the model files of the models of a choice, "model quant" by tier, that the catalog does not have."""
        names = {text.partition(" ")[0] for text in choice.values()}
        return [dict(row) for name, row in self.described.items() if name in names]

    @property
    def outdated(self) -> str:
        """Why the current stack no longer fits the settings or the network; empty if it does."""
        question = self._question({})
        previous: Mapping[str, Any] = self.stack_facts.get("asked", {})
        if self.stack_facts.get("builtin"):
            return "The built-in model is installed, because the Hub was unreachable during setup."
        if previous and any(previous.get(name) != value for name, value in question.items()):
            return "The budget or quant in the settings has changed since these models were chosen."
        return ""

    def budget(self, arguments: Mapping[str, Any]) -> int:
        """Return the memory budget of the models, in bytes. `arguments`: those of the task score."""
        return advice.budget(self.machine, self._question(arguments)["budget_pct"])

    @property
    def missing(self) -> int:
        """The bytes of the current stack that are not downloaded yet."""
        sizes = advice.sizes(self.tiers, self.models)
        return sum(self._remaining(source, size) for source, size in sizes.items())

    @property
    def unsized(self) -> list[str]:
        """The sources of the current stack that are not installed and whose size the catalog does not know."""
        sources = {engine.source for engine in engines_of(self.tiers)}
        return sorted(sources - self.installed - advice.sizes(self.tiers, self.models).keys())

    @property
    def quant(self) -> str | None:
        """The quant that the settings require of all models; None if they do not."""
        return advice.quant_wanted(self.settings)

    def recommend(self, arguments: Mapping[str, Any], choice: Mapping[str, str] | None = None) -> Recommendation:
        """Return what the task score would choose for these arguments. Raises DoesNotFit, NotFound, UsageProblem."""
        question = self._question(arguments) | {"choice": choice, "reserved_bytes": self.reserved_bytes(arguments)}
        return advice.choose(self.machine, self.models, question, self.measured, hub=self.hub, reuses=self.reuses)

    def reserved_bytes(self, arguments: Mapping[str, Any]) -> int:
        """Return the bytes of the engines for embeddings and ranking that will be there. Raises NotFound."""
        wanted: Mapping[str, str] = arguments.get("retrieval") or {}
        staying = (engine.memory_bytes for engine in self.retrieval if engine.name not in wanted)
        return sum(model.memory_bytes(quant) for model, quant in self.added(arguments)) + sum(staying)

    def added(self, arguments: Mapping[str, Any]) -> list[tuple[RetrievalModel, str]]:
        """Return the models for embeddings and ranking that are asked for, each with its quant. Raises NotFound."""
        wanted: Mapping[str, str] = arguments.get("retrieval") or {}
        return [retrieval.find(name, cast("Purpose", purpose)) for purpose, name in wanted.items() if name != "none"]

    def stays(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether the task score would keep the current stack for these arguments."""
        return advice.stays(self.tiers, self.stack_facts, arguments, self._question(arguments), hub=self.hub)

    def engine_of(self, models: Iterable[str]) -> str | None:
        """Return the engine that is not installed, and that these models need for their prompts to be read once."""
        return self.lacks(self.models[name] for name in models if name in self.models)

    def fetch_of(self, model: str, quant: str) -> int:
        """Return the bytes of one model that are not downloaded yet."""
        variant = self.models[model].quants[quant]
        return self._remaining(variant.source, variant.bytes)

    def to_fetch(self, chosen: Recommendation, arguments: Mapping[str, Any]) -> int:
        """Return the bytes of a stack that are not downloaded yet, with the models for embeddings and ranking it adds.

        Weights that two tiers share are counted once.
        """
        picks = {(pick.model, pick.quant) for pick in chosen.picks}
        return sum(self.fetch_of(model, quant) for model, quant in picks) + self.to_fetch_beside(arguments)

    def to_fetch_beside(self, arguments: Mapping[str, Any]) -> int:
        """Return the bytes of the models for embeddings and ranking that are asked for and not downloaded yet."""
        variants = [model.quants[quant] for model, quant in self.added(arguments)]
        return sum(self._remaining(variant.source, variant.bytes) for variant in variants)

    def _question(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of the task score, completed from the settings."""
        return advice.question(arguments.get("intent"), arguments.get("budget_pct"), self.stack_facts, self.settings)

    def _remaining(self, source: str, size: int) -> int:
        """Return the bytes that a pull would still download; an interrupted pull resumes.

        At least 1 until the weights are installed: the catalog does not count the small files next to them.
        """
        if source in self.installed:
            return 0
        parsed = sources.parse(source)
        downloaded = (count for name, count in self.partial.items() if sources.is_of(name, parsed))
        return max(1, size - max(downloaded, default=0))


def inspect(home: Home, arguments: Mapping[str, Any]) -> Inspection:
    """Inspect this machine and this home without changing anything. Raises UsageProblem for an invalid file.

    `arguments`: those of the task score.
    """
    from tasks.engines import serving
    from tasks.system import hardware
    from tasks.weights import hub, staging
    from tasks.weights.disk import existing
    from tasks.weights.source import FLOOR_BYTES

    models, values = advice.all_models(home), settings.load(home)
    machine = hardware.detect()
    free = free_space.available(existing(values.models(home)))
    try:
        with jobs_client.reading(home) as db:
            stored, programs = _stored(db, machine), serving.by_catalog(db, home)
            weights = local_models.listing(home, db, models)
    except NotSetUp:
        stored, programs = NOTHING, serving.by_catalog(None, home)
        weights = local_models.listing(home, None, models)
    adds = arguments.get("engine", True) and arguments["start"]
    index = adds and _index(programs.lacks(models.values()))
    programs = replace(programs, adds=index)
    return Inspection(
        home=home,
        machine=machine,
        models=models,
        hub=hub.hub_reachable(),
        installed=frozenset(row.source for row in weights if row.state in {"loadable", "valid"}),
        partial={row.folder.name.removesuffix(staging.SUFFIX): row.size for row in weights if row.state == "partial"},
        free_bytes=max(0, free - FLOOR_BYTES),
        settings=values,
        reuses=programs.reuses,
        lacks=programs.lacks if adds else lambda _: None,
        index=index,
        **stored,
    )


def _index(engine: str | None) -> bool:
    """Return whether the package index is reachable and has an engine; False where none is needed."""
    from tasks.engines import install

    return engine is not None and install.index_has(engine, INDEX_WAIT_S)


def _stored(db: Database, machine: Machine) -> Mapping[str, Any]:
    """Return the stored benchmarks, tiers and facts about the stack."""
    measured = advice.measured(db, machine)
    stored = facts.get(db, "stack")
    return {"measured": measured, "tiers": stack.tiers(db), "retrieval": stack.retrieval(db), "stack_facts": stored}
