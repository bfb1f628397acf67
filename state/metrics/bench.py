"""Benchmarks that the user saved, a row for each number of requests side by side."""

from __future__ import annotations

from dataclasses import asdict, fields

from state.classes import dataclass
from state.db import Database


@dataclass(frozen=True)
class Round:
    """All runs with the same number of requests side by side; medians, speeds in tokens/s of one request."""

    concurrency: int
    """Requests side by side."""
    prompt_tokens: int
    gen_tokens: int
    ttft_s: float
    """Seconds to the first token."""
    prompt_tps: float
    decode_tps: float
    decode_low: float
    """The slowest answer."""
    decode_high: float
    """The fastest answer."""
    total_tps: float
    """Tokens/s of answers, all requests together."""


@dataclass(frozen=True, kw_only=True)
class Bench(Round):
    """A round that is kept: what one model did on this machine."""

    model: str
    """Catalog id, or the source of weights that are in no catalog."""
    quant: str
    source: str
    revision: str
    chip: str
    """The machine it ran on: a home may move to another."""
    engine: str
    """Name and version of the engine, such as "vllm-mlx 0.6.0"."""
    mlx: str
    """Release of MLX."""
    runs: int
    peak_bytes: int
    reused: float | None = None
    """Share of a conversation's earlier part that its second turn did not read again; None when it was not asked."""
    at: float = 0.0


def save(db: Database, bench: Bench) -> None:
    """Keep one; the time is set here."""
    with db.transaction():
        db.insert("benches", asdict(bench) | {"at": db.now()})
        db.announce()


def history(db: Database, model: str, chip: str) -> list[Bench]:
    """Return all of a model on this chip, the oldest first."""
    return _benches(db, "WHERE model = ? AND chip = ? ORDER BY at, id", model, chip)


def latest(db: Database, chip: str) -> list[Bench]:
    """Return the newest of each model and quant on this chip, of one request alone."""
    newest = "SELECT max(id) FROM benches WHERE chip = ? AND concurrency = 1 GROUP BY model, quant"
    return _benches(db, f"WHERE id IN ({newest}) ORDER BY id", chip)


def speeds(db: Database, model: str, quant: str, chip: str) -> dict[str, float]:
    """Return the tokens/s of one answer of a model on this chip by engine, from the newest benchmark of each."""
    rows = db.rows(
        "SELECT engine, decode_tps FROM benches WHERE model = ? AND quant = ? AND chip = ? AND concurrency = 1"
        " ORDER BY id",
        (model, quant, chip),
    )
    return {str(row["engine"]).partition(" ")[0]: float(row["decode_tps"]) for row in rows}


def _benches(db: Database, condition: str, *values: str) -> list[Bench]:
    names = [field.name for field in fields(Bench)]
    rows = db.rows(f"SELECT {', '.join(names)} FROM benches {condition}", values)  # noqa: S608 (our own names)
    return [Bench(**{name: row[name] for name in names}) for row in rows]
