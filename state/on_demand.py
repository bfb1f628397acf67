"""Models on this disk that are loaded when they are asked for, and what is known of the use of engines that may sleep.

A row of `models` is one set of weights, with the engine that would serve it. A row of `residency` belongs to an engine,
of such a model or of a tier: since when it is asked for, when it was used last, and how long it is to stay.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from state import service, stack
from state.classes import dataclass
from state.db import Database, Row, json_mapping, json_strings, known_columns
from state.stack import Engine

MODELS = """
CREATE TABLE models (
  name TEXT PRIMARY KEY,
  model TEXT NOT NULL UNIQUE,
  aliases TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(aliases)),
  engine TEXT NOT NULL CHECK (json_valid(engine)),
  route TEXT CHECK (route IS NULL OR json_valid(route))
) STRICT, WITHOUT ROWID
"""
RESIDENCY = """
CREATE TABLE residency (
  engine TEXT PRIMARY KEY,
  asked_at REAL,
  background INTEGER NOT NULL DEFAULT 0 CHECK (background IN (0, 1)),
  used_at REAL,
  keep_s REAL,
  asleep INTEGER NOT NULL DEFAULT 0 CHECK (asleep IN (0, 1))
) STRICT, WITHOUT ROWID
"""


@dataclass(frozen=True)
class DiskModel:
    """One set of weights as a model."""

    model: str
    """What it is asked for by: its catalog id, with its quant where several are here, else its repo."""
    aliases: tuple[str, ...]
    """Its other names."""
    engine: Engine
    """What serves it; its port is 0 before its first start."""
    route: Mapping[str, Any] | None = None
    """What gateway.yaml says of an engine, since the latest start; None before the first."""


@dataclass(frozen=True)
class Residency:
    """The use of one engine. Times are unix seconds."""

    engine: str
    asked_at: float | None = None
    """Since when a request waits for it; None while none does."""
    background: bool = False
    """Whether only requests of background keys and batches wait."""
    used_at: float | None = None
    """When a request began or ended last."""
    keep_s: float | None = None
    """How long the latest request that said so keeps it after its last use, in seconds; below 0 for ever."""
    asleep: bool = False
    """Whether mlxq stopped it, and the next request starts it."""
    proved: str = ""
    """The hash of the launch spec with which it made a token; empty where its latest load failed."""


def models(db: Database) -> list[DiskModel]:
    """Return every model on this disk by name."""
    return [_model(row) for row in db.rows("SELECT * FROM models ORDER BY model")]


def model(db: Database, name: str) -> DiskModel | None:
    """Return the model of any of its names, which are told apart without regard to case; None where there is none."""
    wanted = folded(name)
    return next((entry for entry in models(db) if wanted in map(folded, names(entry))), None)


def folded(name: str) -> str:
    """Return a model's name as names are compared: case, and how a disk writes an accent, make no other model."""
    return unicodedata.normalize("NFC", name).casefold()


def names(entry: DiskModel) -> tuple[str, ...]:
    """Return every name of a model, that of its engine last."""
    return entry.model, *entry.aliases, entry.engine.name


def put_models(db: Database, wanted: Sequence[DiskModel]) -> None:
    """Make these the models of this disk. What is stored of engines that run, or are to, stays until they are not."""
    with db.transaction():
        before = {entry.engine.name: entry for entry in models(db)}
        staying = {row.name for row in service.listing(db) if row.active} & before.keys()
        for name in before.keys() - staying:
            db.run("DELETE FROM models WHERE name = ?", (name,))
        taken = {before[name].model for name in staying}
        for entry in wanted:
            if entry.engine.name not in staying and entry.model not in taken:
                earlier = before.get(entry.engine.name)
                port = earlier.engine.port if earlier else entry.engine.port
                _insert(db, replace(entry, engine=replace(entry.engine, port=port)))
        db.announce()


def set_route(db: Database, engine: Engine, route: Mapping[str, Any]) -> None:
    """Store with what port an engine is started, and what the gateway must know of it."""
    with db.transaction():
        values = json.dumps(asdict(engine)), json.dumps(dict(route)), engine.name
        db.run("UPDATE models SET engine = ?, route = ? WHERE name = ?", values)
        db.announce()


def residency(db: Database, engine: str) -> Residency:
    """Return what is known of the use of an engine."""
    row = db.row("SELECT * FROM residency WHERE engine = ?", (engine,))
    return Residency(engine) if row is None else _residency(row)


def residencies(db: Database) -> dict[str, Residency]:
    """Return what is known of the use of every engine, by name."""
    return {row["engine"]: _residency(row) for row in db.rows("SELECT * FROM residency")}


def ask(db: Database, engine: str, *, background: bool = False) -> None:
    """Record that a request waits for an engine; the first one counts for its turn."""
    db.run(
        "INSERT INTO residency (engine, asked_at, background) VALUES (:engine, :now, :background)"
        " ON CONFLICT (engine) DO UPDATE SET"
        " background = CASE WHEN asked_at IS NULL THEN excluded.background"
        " ELSE min(background, excluded.background) END,"
        " asked_at = coalesce(asked_at, excluded.asked_at)",
        {"engine": engine, "now": db.now(), "background": int(background)},
    )


def answered(db: Database, engine: str) -> None:
    """Record that no request waits for an engine any more."""
    db.run("UPDATE residency SET asked_at = NULL, background = 0 WHERE engine = ?", (engine,))


def used(db: Database, engine: str, at: float, keep_s: float | None = None) -> None:
    """Record a use of an engine, and how long it is to be kept after it where the request says so."""
    db.run(
        "INSERT INTO residency (engine, used_at, keep_s) VALUES (?, ?, ?) ON CONFLICT (engine) DO UPDATE SET"
        " used_at = max(coalesce(used_at, 0), excluded.used_at), keep_s = coalesce(excluded.keep_s, keep_s)",
        (engine, at, keep_s),
    )


def set_asleep(db: Database, engine: str, *, asleep: bool) -> None:
    """Record whether an engine sleeps. What requests said of it before is forgotten when it falls asleep."""
    db.run(
        "INSERT INTO residency (engine, asleep) VALUES (:engine, :asleep) ON CONFLICT (engine) DO UPDATE SET"
        " asleep = excluded.asleep, keep_s = CASE WHEN excluded.asleep THEN NULL ELSE keep_s END",
        {"engine": engine, "asleep": int(asleep)},
    )


def set_proved(db: Database, engine: str, spec_hash: str) -> None:
    """Record with which launch spec an engine made a token; an empty one has the next load prove it again."""
    db.run(
        "INSERT INTO residency (engine, proved) VALUES (:engine, :proved)"
        " ON CONFLICT (engine) DO UPDATE SET proved = excluded.proved",
        {"engine": engine, "proved": spec_hash},
    )


def _insert(db: Database, entry: DiskModel) -> None:
    route = None if entry.route is None else json.dumps(dict(entry.route))
    values = {"name": entry.engine.name, "model": entry.model, "aliases": json.dumps(entry.aliases)}
    db.insert("models", values | {"engine": json.dumps(asdict(entry.engine)), "route": route})


def _model(row: Row) -> DiskModel:
    route = json_mapping(row["route"]) or None
    return DiskModel(row["model"], tuple(json_strings(row["aliases"])), stack.engine_of_json(row["engine"]), route)


def _residency(row: Row) -> Residency:
    values = known_columns(row, Residency)
    values |= {name: bool(values[name]) for name in ("background", "asleep")}
    return Residency(**values)
