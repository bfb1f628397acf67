"""Charts: round scales, slots of a range, gaps; and what the page serves of them."""

from __future__ import annotations

import re

import pytest
from support import scene

from mlxq.web import chart, charts
from mlxq.web.html import axis
from state.db import Database
from state.metrics import sample
from state.metrics.sample import Sample

HOUR, DAY, WEEK = (chart.RANGES[name] for name in ("hour", "day", "week"))


@pytest.mark.parametrize(
    ("peak", "top"), [(0, 1), (0.3, 0.4), (1, 1), (1.01, 2), (35, 40), (61, 80), (118, 200), (1000, 1000), (2.1e9, 4e9)]
)
def test_a_scale_is_the_next_round_number_and_its_half_is_written_in_full(peak: float, top: float) -> None:
    assert chart.scale(peak) == pytest.approx(top)
    assert float(axis(chart.scale(peak) / 2)) == pytest.approx(top / 2)


def test_a_range_ends_with_the_slot_of_now_and_its_times_are_a_third_apart() -> None:
    now = 1_700_000_123.0
    assert HOUR.since(now) == 1_700_000_100 - 59 * 60
    assert [WEEK.times(now)[-1] - WEEK.times(now)[0], WEEK.slots * WEEK.slot_s] == [7 * 86_400] * 2
    assert DAY.times(now)[1] - DAY.times(now)[0] == 8 * 3600


def test_a_missing_slot_leaves_a_gap_and_a_lonely_value_a_dot() -> None:
    drawn = chart.draw([1.0, None, 2.0, 4.0])
    assert drawn.line == "M0.0 44.5h.1M160.0 30.0L240.0 1.0"
    assert (drawn.peak, drawn.top, drawn.csv) == (4.0, 4.0, "1,,2,4")


def test_a_slot_is_the_mean_over_the_samples_that_it_has(rows: Database) -> None:
    start = DAY.since(rows.now())
    samples = [
        Sample("fast", start + minute * 60, 60, completion_tokens=600 * minute, ttft_s=float(minute), memory_bytes=10)
        for minute in (1, 3)
    ]
    sample.take(rows, samples)
    slot = sample.slots(rows, "fast", start, DAY.slot_s)[start]
    assert (slot.tokens_per_s, slot.ttft_s, slot.memory_bytes) == (20.0, 2.0, 10)
    assert sample.slots(rows, "standard", start, DAY.slot_s) == {}


def test_a_shared_scale_reaches_the_highest_of_all(rows: Database) -> None:
    scene.all_ready(rows)
    scene.an_hour(rows)
    own = {plot.key: plot.chart.top for plot in charts.of_engines(rows, HOUR, shared=False)}
    shared = {plot.key: plot.chart.top for plot in charts.of_engines(rows, HOUR, shared=True)}
    assert len(set(own.values())) > 1
    assert set(shared.values()) == {max(own.values())}
    history = charts.of_service(rows, "fast", WEEK)
    assert [bool(re.search("M", plot.chart.line)) for plot in history] == [True, True, True]
