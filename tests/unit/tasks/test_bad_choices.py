"""What a user asks for that cannot be, or that mlxq has never seen: numbers, and what would do."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from support import tiny_model

from catalog.load import entries
from catalog.machine import Machine
from catalog.quality import quality
from state.errors import DoesNotFit
from state.paths import Home
from tasks import model_file, recommend
from tasks.weights import description

GIB = 2**30
MACHINE = Machine("M4 Pro", "metal", "macOS 26.2", 24 * GIB, 16 * GIB, 273, "table", 17, gpu_cores=20)
ASKED = {"intent": "balanced", "budget_pct": "auto", "quant": None}


@pytest.mark.parametrize("backend", ["metal", "cpu", "cuda"])
def test_a_machine_that_was_never_seen_gets_a_stack(backend: str) -> None:
    unseen = replace(MACHINE, chip="M9 Hyper", backend=backend, gpu_cores=99, bandwidth_source="a guess")

    assert len(recommend.choose(unseen, entries(), ASKED, hub=True).picks) == 3


def test_a_model_file_without_query_heads_is_planned_cautiously_and_said() -> None:
    models = entries()
    known = models["qwen3.5-9b"]
    silent = replace(known, attention=replace(known.attention, query_heads=0))
    request = ASKED | {"choice": {"standard": "qwen3.5-9b int4"}}
    told = recommend.choose(MACHINE, models, request, hub=True)
    untold = recommend.choose(MACHINE, models | {"qwen3.5-9b": silent}, request, hub=True)

    assert "its file names no query heads" in untold.explain
    assert "its file names no query heads" not in told.explain
    (pick,), (cautious,) = told.picks, untold.picks
    assert (cautious.context, -cautious.memory.prefill) < (pick.context, -pick.memory.prefill)


def test_a_budget_that_is_a_little_too_small_is_told_in_the_unit_that_differs() -> None:
    with pytest.raises(DoesNotFit) as told:
        recommend.recommend(MACHINE, entries(), "balanced", GIB)
    need = re.search(r"needs (\S+ [GM]B); the budget is (\S+ [GM]B)", told.value.message)

    assert need
    assert need[1] != need[2]


def test_three_models_that_do_not_fit_together_say_what_would() -> None:
    choice = {"standard": "qwen3.5-9b int4", "fast": "qwen3.5-4b int4", "longctx": "qwen3.8-27b int8"}
    with pytest.raises(DoesNotFit) as told:
        recommend.choose(MACHINE, entries(), ASKED | {"choice": choice}, hub=True)

    assert told.value.message.endswith("standard (qwen3.5-9b) and fast (qwen3.5-4b) would fit.")
    assert "\n" not in told.value.message


def test_models_of_which_none_fits_say_that() -> None:
    choice = {"standard": "qwen3.5-397b-a17b int4", "fast": "qwen3.5-122b-a10b int8"}
    with pytest.raises(DoesNotFit, match="None of them would fit alone"):
        recommend.choose(MACHINE, entries(), ASKED | {"choice": choice}, hub=True)


def test_a_model_file_without_scores_is_unrated_and_chosen_only_by_hand(home: Home, tmp_path: Path) -> None:
    folder = tiny_model.make(tmp_path / "mine")
    model_file.keep(home, description.of_folder(folder, f"file:{folder}").row)
    models = recommend.all_models(home)

    assert str(quality(models["mine"])) == "unrated"
    assert "mine" not in {pick.model for pick in recommend.choose(MACHINE, models, ASKED, hub=True).picks}
    by_hand = recommend.choose(MACHINE, models, ASKED | {"choice": {"standard": "mine fp32"}}, hub=True)
    assert [pick.model for pick in by_hand.picks] == ["mine"]
    assert "quality unrated" in by_hand.explain
