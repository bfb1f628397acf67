"""Predicted speeds are near measured ones, and a benchmark of this machine draws all others along."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog import chips
from catalog.load import entries
from catalog.machine import Machine, from_row
from catalog.speed import Measured, predict

KNOWN = entries()
BINS = [one for some in chips.bins().values() for one in some]


def mac(one: chips.Bin, gib: int = 64) -> Machine:
    """Build a Mac of one bin."""
    size = gib << 30
    return Machine(
        one.chip, "metal", "macOS 26", size, int(0.75 * size), one.bandwidth, "table", one.fp16, one.gpu, one.cpu
    )


M4_PRO = mac(chips.identify("Apple M4 Pro", 20, 14))
NOBODYS = dataclasses.replace(M4_PRO, gpu_cores=17)
"""A bin that nobody has measured."""


@pytest.mark.parametrize(
    ("chip", "model", "quant", "low", "high"),
    [
        ("M4 Pro", "qwen3.5-9b", "int4", 33, 45),
        ("M4 Max", "qwen3.5-9b", "int4", 60, 95),
        ("M3 Ultra", "qwen3.6-35b-a3b", "int4", 85, 120),
        ("M2 Pro", "qwen3.8-27b", "int4", 9, 12),
    ],
)
def test_well_known_pairs_come_out_as_people_measure_them(chip: str, model: str, quant: str, low: float, high: float):
    """Ranges by Rapid-MLX, weklund-agent/mlx_transformers_benchmark and oMLX rows in benchmarks/data/speeds.csv."""
    speed = predict(mac(chips.bins()[chip][-1]), KNOWN[model], quant, 4096)

    assert low <= speed.decode <= high
    assert speed.basis in {"predicted", "published"}


def test_what_others_published_of_this_very_bin_is_the_figure():
    """An M4 Pro with 20 GPU cores and Qwen3.5 9B was measured; the one with 17 cores does not exist."""
    found, guessed = (predict(one, KNOWN["qwen3.5-9b"], "int4", 4096) for one in (M4_PRO, NOBODYS))

    assert (found.basis, guessed.basis) == ("published", "predicted")
    assert found.source
    assert not guessed.source
    assert found.high / found.low < guessed.high / guessed.low


@given(
    one=st.sampled_from(BINS),
    model=st.sampled_from(sorted(KNOWN)),
    context=st.integers(1, 262_144),
)
def test_a_longer_context_is_never_faster_and_the_range_holds_the_figure(one: chips.Bin, model: str, context: int):
    quant = next(iter(KNOWN[model].quants))
    near, far = (predict(mac(one), KNOWN[model], quant, tokens) for tokens in (context, 2 * context))

    assert 0 < far.decode <= near.decode
    assert near.low < near.decode < near.high
    assert near.prompt > 0


def test_a_benchmark_here_is_the_figure_itself():
    measured = [Measured("qwen3.5-9b", "int4", 4096, 44.0, 500.0)]

    speed = predict(M4_PRO, KNOWN["qwen3.5-9b"], "int4", 4096, measured)

    assert pytest.approx(44.0) == speed.decode
    assert pytest.approx(500.0) == speed.prompt
    assert speed.basis == "measured here"


def test_a_benchmark_is_carried_over_to_another_context_by_the_prediction():
    measured = [Measured("qwen3.5-9b", "int4", 4096, 44.0)]
    plain = [predict(NOBODYS, KNOWN["qwen3.5-9b"], "int4", context).decode for context in (4096, 65_536)]

    speed = predict(NOBODYS, KNOWN["qwen3.5-9b"], "int4", 65_536, measured)

    assert pytest.approx(44.0 * plain[1] / plain[0]) == speed.decode


def test_benchmarks_calibrate_every_other_model_and_narrow_the_range():
    """One benchmark at twice the prediction moves others by the root of two, three by two to the three quarters."""
    plain = predict(NOBODYS, KNOWN["qwen3.6-27b"], "int4", 4096)
    twice = [
        Measured(name, "int4", 4096, 2 * predict(NOBODYS, KNOWN[name], "int4", 4096).decode)
        for name in ("qwen3.5-4b", "qwen3.5-9b", "qwen3-8b")
    ]

    after_one, after_three = (predict(NOBODYS, KNOWN["qwen3.6-27b"], "int4", 4096, some) for some in (twice[:1], twice))

    assert pytest.approx(2**0.5) == after_one.decode / plain.decode
    assert pytest.approx(2**0.75) == after_three.decode / plain.decode
    assert after_three.high / after_three.low < after_one.high / after_one.low < plain.high / plain.low
    assert after_one.basis == "calibrated here"


def test_a_benchmark_of_a_model_nobody_knows_is_passed_over():
    measured = [Measured("gone", "int4", 4096, 1.0)]

    assert predict(NOBODYS, KNOWN["qwen3-8b"], "int4", 4096) == predict(
        NOBODYS, KNOWN["qwen3-8b"], "int4", 4096, measured
    )


def test_a_processor_alone_is_a_rough_guess_near_what_was_measured():
    """SmolLM2 at 4 bits ran at 8 tokens/s on the machine the figure is from."""
    linux = dataclasses.replace(NOBODYS, backend="cpu", chip="AMD EPYC", bandwidth_gbps=14)

    speed = predict(linux, KNOWN["smollm2-135m"], "int4", 512)

    assert 7 < speed.decode < 9
    assert speed.basis == "rough guess"


def test_a_machine_survives_its_row():
    assert from_row(json.loads(json.dumps(M4_PRO.as_row())) | {"of_a_later_version": 1}) == M4_PRO
