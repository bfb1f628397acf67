"""How one tier is served now: the engine is chosen, and its command line and environment are made."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from catalog import load
from catalog.engines import kind_of
from state import bench, facts, settings
from state.db import Database
from state.errors import NotSetUp
from state.paths import Home
from state.stack import Tier
from tasks.engines import choice, installed, model_facts
from tasks.engines.adapters import ENGINES
from tasks.engines.base import Installation, ModelFacts, Served
from tasks.engines.choice import EngineChoice, Question
from tasks.plan.environment import kept, marker


@dataclass(frozen=True)
class Launch:
    """What starts one engine."""

    argv: list[str]
    environment: Callable[[int], dict[str, str]]
    """generation -> the child's whole environment, key included; never stored."""
    release: str
    """Which engine it is: "rapid-mlx 0.16.10"."""


def launch(db: Database, home: Home, tier: Tier, key: str, backend: str) -> Launch:
    """Return how `tier` is to be served now; its weights must be here. Raises NotSetUp for an engine that is not."""
    facts_of_model = model_facts.read(Path(tier.weights))
    chosen = choose(db, home, tier, facts_of_model, backend).installation
    return launch_with(Served(tier, facts_of_model, str(home.root), key, backend), chosen)


def launch_with(served: Served, installation: Installation) -> Launch:
    """Return how a model is served by one installation."""

    def made(generation: int) -> dict[str, str]:
        return environment(served, installation, base=os.environ, generation=generation)

    return Launch(argv(served, installation), made, installation.name)


def choose(db: Database, home: Home, tier: Tier, model: ModelFacts, backend: str) -> EngineChoice:
    """Return the engine that serves `tier`, by the settings, what is installed and what was measured.

    Raises NotSetUp for an engine that is named and not installed.
    """
    question = Question(
        wanted=wanted(home, tier.name),
        kind=model.kind,
        backend=backend,
        tool_parser=tier.tool_parser,
        reasoning_parser=tier.reasoning_parser,
        speeds=bench.speeds(db, tier.model, tier.quant, str(facts.get(db, "machine").get("chip", ""))),
    )
    return choice.choose(question, installed.used(db, home))


def engines(db: Database, home: Home, tiers: Sequence[Tier]) -> dict[str, str]:
    """Return the engine that serves each tier; before its weights are here, by what the catalog says of its model.

    A tier whose engine is named and not installed is left out: it cannot start either.
    """
    names: dict[str, str] = {}
    for tier in tiers:
        with suppress(NotSetUp):
            names[tier.name] = choose(db, home, tier, facts_of(tier, home), backend_of(db)).installation.engine
    return names


def facts_of(tier: Tier, home: Home) -> ModelFacts:
    """Return what an engine must know of a tier's model."""
    if tier.weights and Path(tier.weights).is_dir():
        return model_facts.read(Path(tier.weights))
    model = load.entries(home.catalog).get(tier.model)
    return ModelFacts(kind=kind_of(model)) if model else ModelFacts()


def backend_of(db: Database) -> str:
    """Return what MLX computes on here: metal, cpu or cuda."""
    machine: dict[str, str] = facts.get(db, "machine")
    return machine.get("backend") or ("metal" if sys.platform == "darwin" else "cpu")


def wanted(home: Home, tier: str) -> str:
    """Return the engine that the settings name for a tier, or auto."""
    values = settings.load(home)
    own: Mapping[str, str] = values["tier-engines"]
    return own.get(tier, values["engine"])


def argv(served: Served, installation: Installation) -> list[str]:
    """Return the command line that serves a model; it holds no secret."""
    return ENGINES[installation.engine].argv(served, installation)


def environment(
    served: Served, installation: Installation, *, base: Mapping[str, str], generation: int
) -> dict[str, str]:
    """Return the whole environment of an engine; `base` is the worker's own.

    Home, service and generation also mark the process, so that one which was started but never recorded is found.
    """
    marks = marker(served.home, served.tier.name, generation)
    return kept(base) | marks | ENGINES[installation.engine].environment(served)
