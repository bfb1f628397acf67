"""What was asked of the tiers, as sums by day, key and tier. No word of a prompt is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Literal

from state.classes import dataclass
from state.db import Database

By = Literal["key", "tier", "day"]


@dataclass
class Usage:
    """The sums of one day (UTC), key and tier; `tier` is empty where no tier was reached."""

    day: str
    key: str
    tier: str
    requests: int = 0
    failed: int = 0
    fallbacks: int = 0
    """Requests that another tier than the first one answered."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    """From the request's arrival to the end of its answer."""
    first_byte_seconds: float = 0.0
    waited_seconds: float = 0.0
    """What background requests stood back."""
    cached_tokens: int = 0
    """Prompt tokens that the engine told it did not read again."""


SUMS = tuple(Usage.__annotations__)[3:]
"""The columns that add up."""


def cached_share(sums: Mapping[str, Any]) -> float | None:
    """Return the share, 0 to 1, of the prompt tokens that were not read again; None where no token was asked."""
    return sums["cached_tokens"] / sums["prompt_tokens"] if sums["prompt_tokens"] else None


def add(db: Database, rows: Iterable[Usage]) -> None:
    """Add to the sums, in one transaction."""
    names = ["day", "key", "tier", *SUMS]
    sums = ", ".join(f"{name} = {name} + excluded.{name}" for name in SUMS)
    marks = ", ".join(f":{name}" for name in names)
    sql = f"INSERT INTO usage ({', '.join(names)}) VALUES ({marks}) ON CONFLICT (day, key, tier) DO UPDATE SET {sums}"  # noqa: S608 (our own names)
    with db.transaction():
        for row in rows:
            db.run(sql, asdict(row))


def totals(db: Database, by: By = "tier", since: str = "") -> list[dict[str, Any]]:
    """Return the sums by key, tier or day, from the day `since` (YYYY-MM-DD) on; the busiest first, days in order."""
    sums = ", ".join(f"sum({name}) AS {name}" for name in SUMS)
    order = "day" if by == "day" else "requests DESC"
    rows = db.rows(f"SELECT {by}, {sums} FROM usage WHERE day >= ? GROUP BY {by} ORDER BY {order}", [since])  # noqa: S608 (our own names)
    return [dict(row) for row in rows]
