"""What the catalog refuses becomes an error that says what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from catalog.machine import Machine
from state import settings
from state.db import Database
from state.errors import DoesNotFit, NotFound, UsageProblem
from state.metrics import bench
from state.metrics.bench import Bench
from state.paths import Home
from tasks import recommend

GIB = 2**30
MACHINE = Machine("M4 Pro", "metal", "macOS 26.2", 48 * GIB, 36 * GIB, 273, "table", 17, gpu_cores=20)


def test_a_wrong_model_file_is_told_with_file_line_field_and_allowed_values(home: Home) -> None:
    home.catalog.mkdir()
    home.catalog.joinpath("mine.yaml").write_text("id: mine\ntotal_params_b: 4\nlayers: many\n")

    (problem,) = recommend.file_problems(home)

    assert "mine.yaml:3: layers: 'many' is not allowed; allowed: a whole number" in problem
    assert "qwen3-8b" in recommend.all_models(home)


def test_an_unknown_model_is_answered_with_the_nearest(home: Home) -> None:
    with pytest.raises(NotFound, match="nearest are: qwen3-8b"):
        recommend.find("qwen3-8bb", recommend.all_models(home))


def test_a_model_that_never_existed_gives_the_nearest_real_one_with_a_note(home: Home) -> None:
    match = recommend.find("qwen3.5-72b", recommend.all_models(home))

    assert match.note
    assert match.model.id in match.note


@pytest.mark.parametrize(
    ("wanted", "preferred", "quant"), [(None, "int4", "int4"), ("bf16", "int4", "bf16"), (None, "int3", "int4")]
)
def test_the_quant_is_the_one_wanted_else_the_preferred_else_the_smallest(
    home: Home, wanted: str | None, preferred: str, quant: str
) -> None:
    model = recommend.all_models(home)["deepseek-r1-qwen3-8b"]

    assert quant == recommend.quant_of(model, wanted, preferred)


def test_a_quant_that_does_not_exist_is_refused_with_those_that_do(home: Home) -> None:
    model = recommend.all_models(home)["smollm2-135m"]

    with pytest.raises(UsageProblem, match="does not exist in int3; there is"):
        recommend.quant_of(model, "int3", "int4")


def test_a_budget_too_small_for_anything_says_what_the_smallest_stack_needs(home: Home) -> None:
    with pytest.raises(DoesNotFit, match=r"smallest stack needs \d") as told:
        recommend.recommend(MACHINE, recommend.all_models(home), "balanced", GIB // 2)

    assert told.value.hint
    assert told.value.hint.startswith("mlxq setup --budget-pct")


def test_a_quant_that_no_model_has_is_refused(home: Home) -> None:
    with pytest.raises(UsageProblem, match="int2"):
        recommend.recommend(MACHINE, recommend.all_models(home), "balanced", 30 * GIB, quant="int2")


def test_a_saved_benchmark_becomes_the_figure_of_that_model(home: Home, db: Database) -> None:
    row = Bench(
        model="qwen3.5-9b", quant="int4", source="hub:a/b", revision="c", chip="M4 Pro", engine="vllm-mlx 0.6.0",
        mlx="0.32.4", runs=3, concurrency=1, prompt_tokens=8192, gen_tokens=100, ttft_s=1.0, prompt_tps=400.0,
        decode_tps=33.0, decode_low=30.0, decode_high=35.0, total_tps=33.0, peak_bytes=1,
    )  # fmt: skip
    bench.save(db, row)
    models = recommend.all_models(home)

    from catalog.speed import predict

    speed = predict(MACHINE, models["qwen3.5-9b"], "int4", 8192, recommend.measured(db, MACHINE))
    assert speed.basis == "measured here"
    assert speed.decode == pytest.approx(33.0)


def test_only_a_quant_that_a_person_set_binds_the_choice(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recommend.quant_wanted(settings.load(home)) is None

    monkeypatch.setenv("MLXQ_DEFAULT_QUANT", "int8")

    assert recommend.quant_wanted(settings.load(home)) == "int8"


def test_the_built_in_stack_too_keeps_to_the_share_of_memory_that_a_person_named(home: Home) -> None:
    asked = {"intent": "balanced", "budget_pct": 20, "quant": None}

    assert recommend.choose(MACHINE, recommend.all_models(home), asked, hub=False).budget == 48 * GIB * 20 // 100
    small = replace(MACHINE, memory_bytes=8 * GIB, usable_bytes=6 * GIB)
    with pytest.raises(DoesNotFit, match="too little"):
        recommend.choose(small, recommend.all_models(home), asked | {"budget_pct": 10}, hub=False)
