"""How one model is served now: the program is chosen, and its command line and environment are made."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from catalog.engines import kind_of
from catalog.model import Model
from catalog.offer import Reuses
from state import facts, settings, stack
from state.classes import dataclass
from state.db import Database
from state.errors import DiskUnavailable
from state.metrics import bench, tuning
from state.paths import Home
from state.stack import Engine
from tasks import recommend
from tasks.engines import adapters, choice, embedding, faults, installed, model_facts
from tasks.engines.adapters import ENGINES
from tasks.engines.base import Installation, ModelFacts, Served
from tasks.engines.choice import NOT_INSTALLED, EngineChoice, Question
from tasks.engines.installed import RequestedEngine
from tasks.engines.mlx_lm_sharded import adapter as mlx_lm_sharded
from tasks.plan.environment import kept, marker
from tasks.weights import model_dir


@dataclass(frozen=True)
class Launch:
    """What starts one engine."""

    argv: list[str]
    environment: Callable[[int], dict[str, str]]
    """generation -> the child's whole environment, key included; never stored."""
    release: str
    """Which engine it is: "rapid-mlx 0.16.10"."""
    choice: EngineChoice | None = None
    """Why this engine; None where it was not chosen."""


def launch(db: Database, home: Home, engine: Engine, key: str, backend: str) -> Launch:
    """Return how `engine` is to be started now; its weights must be here. Raises DiskUnavailable."""
    weights = Path(engine.weights)
    if engine.purpose != stack.CHAT:
        return launch_with(
            Served(engine, ModelFacts(), str(home.root), key, backend), embedding.installation(installed.host(db, home))
        )
    facts_of_model = model_dir.read(weights.parent, lambda: model_facts.read(weights))
    chosen = choose(db, home, engine, facts_of_model, backend)
    keeps = settings.load(home)["cache-max-gb"] > 0
    used = tuning.find(db, chosen.installation.name, engine.source)
    tuned = used.name if used else ""
    served = Served(
        engine, facts_of_model, str(home.root), key, backend, tuned, keeps, ranks(db, home, engine.name) or 1
    )
    return replace(launch_with(served, chosen.installation), choice=chosen)


def launch_with(served: Served, installation: Installation) -> Launch:
    """Return how a model is served by one installation."""

    def made(generation: int) -> dict[str, str]:
        return environment(served, installation, base=os.environ, generation=generation)

    return Launch(argv(served, installation), made, installation.name)


def choose(db: Database, home: Home, engine: Engine, model: ModelFacts, backend: str) -> EngineChoice:
    """Return the program that `engine` runs, by the settings, what is installed and what was measured."""
    if parts := ranks(db, home, engine.name):
        reason = f"a setting splits its model over {parts} processes"
        return EngineChoice(mlx_lm_sharded.installation(), reason, rereads=False)
    used = installed.used(db, home)
    question = Question(
        wanted=wanted(db, home, engine.name),
        kind=model.kind,
        backend=backend,
        tool_parser=engine.tool_parser,
        reasoning_parser=engine.reasoning_parser,
        speeds=bench.speeds(db, engine.model, engine.quant, str(facts.get(db, "machine").get("chip", ""))),
        faults=faults.of(db, engine),
        absent=absent(db, home, used),
    )
    return choice.choose(question, used)


def absent(db: Database, home: Home, used: Sequence[Installation]) -> dict[str, str]:
    """Return the engines of which no version can be used, and why; `used`: those that can."""
    names = set(ENGINES) - {installation.engine for installation in used}
    lost = installed.missing(db, home)
    return {name: _absence(installed.wish(db, name), lost.get(name)) for name in names}


def _absence(wish: RequestedEngine, lost: str | None) -> str:
    """Return why an engine cannot be used. `lost`: the version that should be here and is not."""
    if lost:
        return f"the environment of version {lost} is gone, or its Python is"
    if wish.bad:
        version, reason = list(wish.bad.items())[-1]
        return f"version {version} was taken back ({reason})"
    return NOT_INSTALLED


def of_engine(db: Database, home: Home, engine: Engine) -> EngineChoice:
    """Return the program that an engine of chats runs; before its weights are here, by the catalog's words on it."""
    return choose(db, home, engine, facts_of(engine, home), backend_of(db))


def programs(db: Database, home: Home, engines: Sequence[Engine]) -> dict[str, str]:
    """Return the program that each engine runs."""
    return {engine.name: of_engine(db, home, engine).installation.engine for engine in engines}


def templates(home: Home, engines: Sequence[Engine]) -> dict[str, dict[str, Any]]:
    """Return what the gateway must know of the chat templates of models that think: engine -> what `template` says.

    An engine whose model does not think, or whose weights are not here yet, is left out.
    """
    sections = {engine.name: template(engine, facts_of(engine, home)) for engine in engines if engine.weights}
    return {name: section for name, section in sections.items() if section}


def template(engine: Engine, model: ModelFacts) -> dict[str, Any]:
    """Return the fields of tasks.gateway.routes.Template for one model; empty where it does not think."""
    if not model.thinks and not engine.reasoning_parser:
        return {}
    return {
        "kind": str(model.kind),
        "switch": model.thinks,
        "keeps": model.keeps_thinking,
        "reads": model.reads_thoughts,
        "efforts": list(model.efforts),
        "max_tokens": engine.max_tokens,
    }


@dataclass(frozen=True)
class ByCatalog:
    """Which program serves a model of the catalog, by what is installed and set for all tiers."""

    wanted: str
    backend: str
    used: Sequence[Installation]
    absent: Mapping[str, str]
    adds: bool
    """Whether an engine that is not installed can be, before the model is served."""

    def reuses(self, model: Model) -> bool:
        """Return whether the engine reads only the new part of a prompt."""
        return not self._choice(model).rereads or (self.adds and self.lacks([model]) is not None)

    def lacks(self, models: Iterable[Model]) -> str | None:
        """Return the engine that is not installed and would read the prompts of one of the models once.

        One that the user took out of use, or that failed, is not it.
        """
        names = (self._choice(model).better for model in models)
        return next((name for name in names if self.absent.get(name) == NOT_INSTALLED), None)

    def _choice(self, model: Model) -> EngineChoice:
        parsers = (model.tool_parser, model.reasoning_parser)
        question = Question(self.wanted, kind_of(model), self.backend, *parsers, speeds={}, absent=self.absent)
        return choice.choose(question, self.used)


def reads_once(db: Database | None, home: Home) -> Reuses:
    """Return which models their engine reads only the new part of a prompt of, by what is installed and set."""
    return by_catalog(db, home).reuses


def by_catalog(db: Database | None, home: Home, *, adds: bool = False) -> ByCatalog:
    """Return what chooses programs now. `db` is None in a new home."""
    used = installed.used(db, home) if db else [installed.fallback(home)]
    missing = absent(db, home, used) if db else dict.fromkeys(set(ENGINES) - {used[0].engine}, NOT_INSTALLED)
    return ByCatalog(settings.load(home)["engine"], backend_of(db) if db else "cpu", used, missing, adds)


def facts_of(engine: Engine, home: Home) -> ModelFacts:
    """Return what a program must know of an engine's model."""
    if engine.weights:
        weights = Path(engine.weights)
        with suppress(DiskUnavailable):
            if model := model_dir.read(weights.parent, lambda: model_facts.read(weights) if weights.is_dir() else None):
                return model
    model = recommend.all_models(home).get(engine.model)
    return ModelFacts(kind=kind_of(model)) if model else ModelFacts()


def backend_of(db: Database) -> str:
    """Return what MLX computes on here: metal, cpu or cuda."""
    machine: dict[str, str] = facts.get(db, "machine")
    return machine.get("backend") or ("metal" if sys.platform == "darwin" else "cpu")


def wanted(db: Database, home: Home, engine: str) -> str:
    """Return the program that the settings name for the first of an engine's tiers that they name, or auto."""
    chosen = settings.load(home)
    own: Mapping[str, str] = chosen["tier-engines"]
    tiers = stack.served_by(stack.tiers(db), engine)
    return next((own[tier.name] for tier in tiers if tier.name in own), own.get(engine, chosen["engine"]))


def ranks(db: Database, home: Home, engine: str) -> int:
    """Return the processes that the settings split an engine's model over, by the first of its tiers; 0 for none."""
    split: Mapping[str, int] = settings.load(home)["tier-ranks"]
    names = [tier.name for tier in stack.served_by(stack.tiers(db), engine)]
    return next((split[name] for name in (*names, engine) if name in split), 0)


def argv(served: Served, installation: Installation) -> list[str]:
    """Return the command line that serves a model; it holds no secret."""
    return adapters.named(installation.engine).argv(served, installation)


def environment(
    served: Served, installation: Installation, *, base: Mapping[str, str], generation: int
) -> dict[str, str]:
    """Return the whole environment of an engine; `base` is the worker's own.

    Home, service and generation also mark the process, so that one which was started but never recorded is found.
    """
    marks = marker(served.home, served.engine.name, generation)
    return kept(base) | marks | adapters.named(installation.engine).environment(served)
