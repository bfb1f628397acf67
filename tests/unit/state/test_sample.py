"""History: minutes for a day, quarters of an hour for a month."""

from __future__ import annotations

from typing import Any

import pytest

from state.db import Database
from state.metrics import sample
from state.metrics.sample import FINE_S, KEPT_S, MINUTE_S, QUARTER_S, Sample


def minute(at: float, **figures: float) -> Sample:
    return Sample("fast", int(at) // MINUTE_S * MINUTE_S, MINUTE_S, **figures)  # pyright: ignore[reportArgumentType]


def test_a_sample_comes_back_as_it_was(db: Database):
    taken = minute(db.now(), up=1.0, running=1.5, completion_tokens=120, decode_tps=41.5, memory_bytes=2**30)
    sample.take(db, [taken])
    assert sample.history(db, "fast", db.now() - 3600) == [taken]
    assert sample.latest(db, "fast") == taken
    assert taken.tokens_per_s == 2.0


def test_the_same_minute_taken_twice_is_one_row(db: Database):
    """A worker that restarts within a minute takes it again."""
    sample.take(db, [minute(db.now(), requests=1)])
    sample.take(db, [minute(db.now(), requests=2)])
    assert [each.requests for each in sample.history(db, "fast", 0)] == [2]


def test_what_is_older_than_a_day_is_folded_and_nothing_is_lost(db: Database, clock: Any):
    began = int(clock.now) // QUARTER_S * QUARTER_S
    for step in range(30):
        clock.now = began + step * MINUTE_S
        sample.take(
            db, [minute(clock.now, up=1.0, requests=2, completion_tokens=60, ttft_s=step if step < 15 else None)]
        )
    clock.now = began + FINE_S + 2 * QUARTER_S
    sample.take(db, [])
    folded = sample.history(db, "fast", 0)
    assert [(each.at, each.span_s, each.requests, each.tokens_per_s, each.ttft_s) for each in folded] == [
        (began, QUARTER_S, 30, 1.0, 7.0),
        (began + QUARTER_S, QUARTER_S, 30, 1.0, None),
    ]


def test_a_quarter_is_not_folded_before_it_is_whole(db: Database, clock: Any):
    began = int(clock.now) // QUARTER_S * QUARTER_S
    clock.now = began
    sample.take(db, [minute(began)])
    clock.now = began + FINE_S + QUARTER_S - 1
    sample.take(db, [])
    assert [each.span_s for each in sample.history(db, "fast", 0)] == [MINUTE_S]


def test_a_month_is_kept(db: Database, clock: Any):
    sample.take(db, [minute(clock.now)])
    clock.now += KEPT_S - FINE_S
    sample.take(db, [])
    assert len(sample.history(db, "fast", 0)) == 1
    clock.now += FINE_S + QUARTER_S
    sample.take(db, [])
    assert sample.history(db, "fast", 0) == []


def test_totals_never_shrink(db: Database, clock: Any):
    """Prometheus takes a counter that shrinks for one that began anew, and counts everything twice."""
    for _ in range(3):
        sample.take(db, [minute(clock.now, requests=2, completion_tokens=50)])
        clock.now += KEPT_S + FINE_S
    sample.take(db, [])
    assert sample.history(db, "fast", 0) == []
    assert [(each.requests, each.completion_tokens) for each in sample.totals(db)] == [(6, 150)]


@pytest.mark.slow
def test_a_month_of_five_services_is_a_few_megabytes(db: Database, clock: Any):
    """The bound that the thinning is for."""
    began = int(clock.now) // QUARTER_S * QUARTER_S
    names = ["standard", "fast", "longctx", "gateway", "machine"]
    with db.transaction():
        for span, start, count in ((QUARTER_S, began - KEPT_S, 30 * 96), (MINUTE_S, began - FINE_S, 1440)):
            for step in range(count):
                for name in names:
                    each = Sample(
                        name, start + step * span, span, 1.0, 1.5, 0.5, 10, 1, 0, 5000, 900, 41.2, 900.1, 0.41, 2**33
                    )
                    db.insert("samples", vars(each))
    used = db.value("SELECT sum(pgsize) FROM dbstat WHERE name LIKE 'samples%'")
    assert used < 4 * 2**20
