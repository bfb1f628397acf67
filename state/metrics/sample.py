"""History: how each service fared, one row a minute for a day, then one row a quarter of an hour for a month.

A machine with three tiers, the gateway and itself writes five rows a minute: about 22,000 rows and 2 MB, for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from state.classes import dataclass
from state.db import Database, Row

MINUTE_S = 60
QUARTER_S = 900
FINE_S = 86_400
"""How long minutes are kept."""
KEPT_S = 31 * 86_400
"""How long quarters of an hour are kept."""
MACHINE = "machine"
"""The name under which the machine's own memory is kept."""

FOLD = """
INSERT OR REPLACE INTO samples
SELECT service, at / :quarter * :quarter, :quarter, avg(up), avg(running), avg(waiting),
       sum(requests), sum(errors), sum(fallbacks), sum(prompt_tokens), sum(completion_tokens),
       avg(decode_tps), avg(prompt_tps), avg(ttft_s),
       CAST(avg(memory_bytes) AS INTEGER), CAST(avg(wired_bytes) AS INTEGER), CAST(avg(swap_bytes) AS INTEGER),
       sum(cached_tokens)
FROM samples WHERE span_s = :minute AND at < :before GROUP BY service, at / :quarter
"""

FORGET = """
INSERT INTO samples
SELECT service, 0, 0, 0, 0, 0, sum(requests), sum(errors), sum(fallbacks), sum(prompt_tokens), sum(completion_tokens),
       NULL, NULL, NULL, NULL, NULL, NULL, sum(cached_tokens)
FROM samples WHERE span_s = :quarter AND at < :before GROUP BY service
ON CONFLICT DO UPDATE SET requests = requests + excluded.requests, errors = errors + excluded.errors,
  fallbacks = fallbacks + excluded.fallbacks, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
  completion_tokens = completion_tokens + excluded.completion_tokens,
  cached_tokens = cached_tokens + excluded.cached_tokens
"""
"""Adds what is forgotten to one row a service at time 0, so that totals never shrink."""


@dataclass(frozen=True)
class Sample:
    """One service over one span of time."""

    service: str
    at: int
    """When the span began, in unix seconds; a multiple of the span."""
    span_s: int
    up: float = 0.0
    """Share of the span in which it served, 0 to 1."""
    running: float = 0.0
    """Requests under way, on average."""
    waiting: float = 0.0
    """Requests that waited, on average."""
    requests: int = 0
    """Requests that ended within the span."""
    errors: int = 0
    """Those of them that failed."""
    fallbacks: int = 0
    """Those that another tier answered than the one they were sent to."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    decode_tps: float | None = None
    """Tokens/s of one request while it was answered; None when none ran."""
    prompt_tps: float | None = None
    """Prompt tokens/s until the first token; None when none ran."""
    ttft_s: float | None = None
    """Seconds to the first token; None when none ran."""
    memory_bytes: int | None = None
    wired_bytes: int | None = None
    swap_bytes: int | None = None
    cached_tokens: int = 0
    """Prompt tokens that were not read again."""

    @property
    def tokens_per_s(self) -> float:
        """Tokens made a second, all requests together."""
        return self.completion_tokens / self.span_s


def take(db: Database, samples: Sequence[Sample]) -> None:
    """Keep samples of one minute, and fold what is older than a day."""
    with db.transaction():
        for sample in samples:
            values = asdict(sample)
            marks = ", ".join(f":{name}" for name in values)
            db.run(f"INSERT OR REPLACE INTO samples VALUES ({marks})", values)  # noqa: S608 (our own names)
        thin(db)
        db.announce()


def thin(db: Database) -> None:
    """Fold whole quarters of an hour that are older than a day; forget what is older than a month."""
    before = int(db.now() - FINE_S) // QUARTER_S * QUARTER_S
    with db.transaction():
        db.run(FOLD, {"quarter": QUARTER_S, "minute": MINUTE_S, "before": before})
        db.run("DELETE FROM samples WHERE span_s = ? AND at < ?", (MINUTE_S, before))
        limits = {"quarter": QUARTER_S, "before": int(db.now()) - KEPT_S}
        db.run(FORGET, limits)
        db.run("DELETE FROM samples WHERE span_s = :quarter AND at < :before", limits)


def history(db: Database, service: str, since: float) -> list[Sample]:
    """Return a service's samples from `since` (unix seconds) on, oldest first; older spans are longer."""
    rows = db.rows("SELECT * FROM samples WHERE service = ? AND at >= ? ORDER BY at", (service, max(1, int(since))))
    return [_sample(row) for row in rows]


@dataclass(frozen=True)
class Slot:
    """One service over a slot of a chart; None where nothing was measured."""

    tokens_per_s: float
    """Tokens made a second, all requests together."""
    ttft_s: float | None
    memory_bytes: int | None


def slots(db: Database, service: str, since: int, slot_s: int) -> dict[int, Slot]:
    """Return what a service did from `since` (unix seconds) on, by the start of each slot of `slot_s` seconds."""
    rows = db.rows(
        "SELECT at / :slot * :slot AS at, sum(completion_tokens) * 1.0 / sum(span_s) AS tokens_per_s,"
        " avg(ttft_s) AS ttft_s, CAST(avg(memory_bytes) AS INTEGER) AS memory_bytes"
        " FROM samples WHERE service = :service AND at >= :since AND span_s > 0 GROUP BY at / :slot",
        {"slot": slot_s, "service": service, "since": max(1, since)},
    )
    return {row["at"]: Slot(row["tokens_per_s"], row["ttft_s"], row["memory_bytes"]) for row in rows}


@dataclass(frozen=True)
class InUse:
    """What the requests of a service saw; None where none ran. Speeds are tokens/s of one request."""

    decode_tps: float | None
    prompt_tps: float | None
    ttft_s: float | None


def in_use(db: Database, service: str, since: float) -> InUse:
    """Return the means of a service from `since` (unix seconds) on, each span by its length."""
    means = ", ".join(
        f"sum({name} * span_s) / sum(CASE WHEN {name} IS NOT NULL THEN span_s END)"
        for name in ("decode_tps", "prompt_tps", "ttft_s")
    )
    row = db.row(f"SELECT {means} FROM samples WHERE service = ? AND at >= ?", (service, max(1, int(since))))  # noqa: S608 (our own names)
    return InUse(*(row or (None, None, None)))


def latest(db: Database, service: str) -> Sample | None:
    """Return a service's newest sample, or None."""
    row = db.row("SELECT * FROM samples WHERE service = ? AND at > 0 ORDER BY at DESC LIMIT 1", (service,))
    return None if row is None else _sample(row)


@dataclass(frozen=True)
class Total:
    """What a service did since its first sample."""

    service: str
    requests: int
    errors: int
    fallbacks: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


def totals(db: Database) -> list[Total]:
    """Return the totals of every service; they only grow."""
    rows = db.rows(
        "SELECT service, sum(requests) AS requests, sum(errors) AS errors, sum(fallbacks) AS fallbacks,"
        " sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,"
        " sum(cached_tokens) AS cached_tokens"
        " FROM samples WHERE service <> ? GROUP BY service",
        (MACHINE,),
    )
    return [Total(**dict(row)) for row in rows]


def _sample(row: Row) -> Sample:
    return Sample(**dict(row))
