"""Saved benchmarks: what is newest, and on which machine."""

from __future__ import annotations

from dataclasses import replace

from support import scene
from support.clock import Clock

from state.db import Database
from state.metrics import bench

ONE = scene.BENCH


def test_the_newest_of_each_model_and_quant_counts(db: Database, clock: Clock) -> None:
    for speed in (50.0, 60.0):
        bench.save(db, replace(ONE, decode_tps=speed))
        clock.now += 1
    bench.save(db, replace(ONE, quant="int8", decode_tps=30.0))

    assert [(each.quant, each.decode_tps) for each in bench.latest(db, "M4 Pro")] == [("int4", 60.0), ("int8", 30.0)]


def test_another_machine_and_crowded_runs_do_not_count(db: Database) -> None:
    bench.save(db, replace(ONE, chip="M1"))
    bench.save(db, replace(ONE, concurrency=4))

    assert bench.latest(db, "M4 Pro") == []
    assert [each.concurrency for each in bench.history(db, "qwen3-8b", "M4 Pro")] == [4]


def test_what_is_saved_is_read_back_with_its_time(db: Database, clock: Clock) -> None:
    bench.save(db, ONE)

    assert bench.history(db, "qwen3-8b", "M4 Pro") == [replace(ONE, at=clock.now)]
