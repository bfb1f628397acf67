"""Which names a caller may ask for, the tier behind each, and who may stand in for it; read from gateway.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from catalog.engines import FALLBACK, Abilities, ModelKind, abilities, every
from state.stack import longest_answer
from tasks.gateway.dialects.thinking import Template, TierThinking, of_tier
from tasks.plan.gateway import CLOUD, LOOPBACK, order, resolve

BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Route:
    """One tier as the gateway sees it."""

    name: str
    engine: str
    """Who serves it, and the name by which that engine knows its model; tiers may share one."""
    port: int
    context: int
    """Tokens of prompt and answer together."""
    vision: bool
    can: Abilities
    answer_timeout_s: float = 0.0
    """The engine's own limit for one answer, in seconds; 0 where none was written."""
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What is filled in where a request says nothing, by the names of state.stack.Defaults."""
    template: Template | None = None
    """What its model's chat template knows of thinking; None for a model that does not think."""
    stopped: bool = False
    """Whether the tier is stopped while its engine runs for others."""

    @property
    def longest_answer(self) -> int:
        """Tokens that a request may ask for at most."""
        return longest_answer(self.context)

    @cached_property
    def thinking(self) -> TierThinking | None:
        """How its model thinks by default; None for one that does not think."""
        return of_tier(self.template, self.defaults, self.longest_answer)

    @property
    def url(self) -> str:
        """Its engine's address, without a path."""
        return f"http://{LOOPBACK}:{self.port}"


@dataclass(frozen=True)
class RetrievalRoute:
    """An engine that makes vectors or ranks documents."""

    route: Route
    dimensions: int
    shortens: bool
    """Whether its vectors may be cut."""
    names: frozenset[str]
    """What it answers to besides its own name."""


@dataclass(frozen=True)
class Routes:
    """All tiers, and the names that lead to them."""

    tiers: Mapping[str, Route]
    names: Mapping[str, str]
    """Name or pattern -> tier."""
    cloud_model: str | None
    allowed_origins: frozenset[str]
    remote_images: bool = False
    """Whether images behind https links are fetched."""
    retrieval: Mapping[str, RetrievalRoute] = field(default_factory=dict[str, RetrievalRoute])
    """By purpose: embedding, rerank."""
    on_demand: dict[str, Route] = field(default_factory=dict[str, Route])
    """Models that are loaded when they are asked for; one joins when it has been loaded."""

    def route(self, name: str) -> Route:
        """Return the route of a tier, or of a model on demand that has been loaded."""
        return self.tiers.get(name) or self.on_demand[name]

    def everything(self) -> list[tuple[str, Route]]:
        """Return the routes of all tiers and of the models on demand."""
        return [*self.tiers.items(), *self.on_demand.items()]

    @cached_property
    def largest(self) -> int:
        """The largest context, in tokens."""
        return max(route.context for route in self.tiers.values())

    @cached_property
    def engines(self) -> frozenset[str]:
        """The engines of all tiers; those that share one have the same."""
        return frozenset(route.engine for route in self.tiers.values())

    @cached_property
    def exact_names(self) -> list[str]:
        """The names without the patterns, in order."""
        return sorted(name for name in self.names if "*" not in name)

    def tier(self, model: str) -> str | None:
        """Return the tier behind a name, or None."""
        return resolve(self.names, model)

    def purpose(self, model: str) -> str | None:
        """Return what a name stands for that makes embeddings or ranks documents; None for every other."""
        return next((name for name, route in self.retrieval.items() if model in {name, *route.names}), None)

    def chain(self, tier: str) -> list[str]:
        """Return who may answer for `tier`, in order: itself, larger contexts, smaller ones, the cloud.

        Of the tiers that share an engine only one is in it: where that engine fails, it fails for all of them.
        """
        return self._chains[tier]

    @cached_property
    def _chains(self) -> dict[str, list[str]]:
        return {name: self._chain(name) for name in self.tiers}

    def _chain(self, tier: str) -> list[str]:
        serving = {name: route for name, route in self.tiers.items() if not route.stopped}
        own = [tier] if tier in serving else []
        standins: dict[str, str] = {self.tiers[name].engine: name for name in own}
        for name, route in serving.items():
            standins.setdefault(route.engine, name)
        contexts = {name: self.tiers[name].context for name in (tier, *standins.values())}
        last = [CLOUD] if self.cloud_model else []
        return [*own, *order(tier, contexts), *last]

    def engine(self, tier: str) -> str:
        """Return the engine that serves a tier; the cloud is its own."""
        return tier if tier == CLOUD else self.route(tier).engine


def read(configuration: Mapping[str, Any], backend: str) -> Routes:
    """Return the routes of gateway.yaml's content. `backend`: metal, cpu or cuda. Raises KeyError, TypeError."""
    tiers: Mapping[str, Mapping[str, Any]] = configuration["tiers"]
    engines: Mapping[str, Mapping[str, Any]] = configuration["engines"]
    retrieval: Mapping[str, Mapping[str, Any]] = configuration.get("retrieval") or {}
    origins: Sequence[str] = configuration.get("allowed_origins") or ()
    return Routes(
        tiers={name: _route(name, tier, engines[tier["engine"]], backend) for name, tier in tiers.items()},
        names={**{name: name for name in tiers}, **configuration["names"]},
        cloud_model=configuration.get("cloud_model"),
        allowed_origins=frozenset(origins),
        remote_images=bool(configuration.get("remote_images")),
        retrieval={purpose: _retrieval(purpose, row, backend) for purpose, row in retrieval.items()},
    )


def on_demand_route(model: str, engine: str, section: Mapping[str, Any], backend: str) -> Route:
    """Return the route of a model on demand; `section`: what gateway.yaml says of an engine."""
    return _route(model, {"engine": engine}, section, backend)


def on_demand_retrieval(model: str, engine: str, row: Mapping[str, Any], backend: str) -> RetrievalRoute:
    """Return the route of a model on demand that makes vectors or ranks documents."""
    return _retrieval(model, row, backend, engine)


def _retrieval(name: str, row: Mapping[str, Any], backend: str, engine: str = "") -> RetrievalRoute:
    section = {"port": row["port"], "context": row["longest_input"], "answer_timeout_s": row["answer_timeout_s"]}
    return RetrievalRoute(
        route=_route(name, {"engine": engine or name}, section, backend),
        dimensions=int(row["dimensions"]),
        shortens=bool(row["shortens"]),
        names=frozenset({name, *row["names"]}),
    )


def _route(name: str, tier: Mapping[str, Any], engine: Mapping[str, Any], backend: str) -> Route:
    program = str(engine.get("program"))
    return Route(
        name=name,
        engine=str(tier["engine"]),
        port=int(engine["port"]),
        context=int(engine["context"]),
        vision=bool(engine.get("vision")),
        can=abilities(program if program in every() else FALLBACK, backend),
        answer_timeout_s=float(engine.get("answer_timeout_s", 0)),
        defaults=tier.get("defaults") or {},
        template=_template(engine["template"]) if "template" in engine else None,
        stopped=bool(tier.get("stopped")),
    )


def _template(section: Mapping[str, Any]) -> Template:
    fields: dict[str, Any] = {**section, "kind": ModelKind(section["kind"]), "efforts": tuple(section["efforts"])}
    return Template(**fields)
