"""What weights are, from their headers alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hub.model import make

from state.errors import Damaged, MlxqError, NotFound
from tasks.weights import loaders
from tasks.weights.formats import headers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "models" / "tiny-4bit", shard_bytes=288_000)


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def test_packed_weights_count_as_the_values_they_hold(folder: Path):
    """Two shards of 1000 rows: 64 words of eight 4-bit values each, and a norm of 512."""
    found = headers.inventory(folder)
    assert found.parameters == 2 * (1000 * 64 * 8 + 512)
    assert round(8 * found.size / found.parameters, 2) == found.bits
    assert (found.model_type, found.quantization, found.context, found.vision) == ("llama", "4-bit g64", 4096, False)


def test_a_module_with_bits_of_its_own_is_counted_by_them(folder: Path):
    own = {"group_size": 64, "bits": 4, "model.layers.0.mlp.up_proj": {"group_size": 64, "bits": 8}}
    change(folder, quantization=own)
    assert headers.inventory(folder).parameters == 1000 * 64 * 4 + 1000 * 64 * 8 + 2 * 512


@pytest.mark.parametrize(
    ("config", "values"),
    [
        ({}, 2 * 2 * 2 * 64),
        ({"head_dim": 128}, 2 * 2 * 2 * 128),
        ({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 32}, 2 * 1 * 2 * 64),
        ({"model_type": "qwen3_next", "num_hidden_layers": 8, "full_attention_interval": 4}, 2 * 2 * 2 * 64),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, 2 * (512 + 64)),
        (
            {"text_config": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 32}},
            2 * 3 * 4 * 32,
        ),
    ],
)
def test_a_token_costs_what_the_growing_layers_keep_of_it(config: dict[str, Any], values: int, folder: Path):
    """In float32, because the norms of this model are."""
    change(folder, **config)
    assert 4 * values == headers.inventory(folder).kv_bytes_per_token


@pytest.mark.parametrize("spoil", ["cut", "header", "shard", "config", "tokenizer"])
def test_a_folder_that_is_not_whole_is_damaged(spoil: str, folder: Path):
    shard = folder / "model-00001-of-00002.safetensors"
    match spoil:
        case "cut":
            shard.write_bytes(shard.read_bytes()[:-1])
        case "header":
            shard.write_bytes(b"\xff" * 100)
        case "shard":
            shard.unlink()
        case "config":
            (folder / "config.json").write_text("{")
        case _:
            (folder / "tokenizer.json").unlink()
    with pytest.raises(Damaged):
        headers.inventory(folder)
    assert [found.state for found in headers.scan(folder.parent)] == ["damaged"]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "no_such_thing"}, "no_such_thing"),
        ({"model_type": None}, "without a model_type"),
    ],
)
def test_a_model_the_loaders_do_not_know_is_told(config: dict[str, Any], said: str, folder: Path):
    change(folder, **config)
    with pytest.raises(NotFound, match=said):
        headers.inventory(folder)


def test_names_that_a_loader_renames_are_known():
    """mlx-lm loads a `mistral` model with its llama code; there is no mistral.py."""
    loaders.check("it", {"model_type": "mistral"})


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["x.gguf"], "GGUF"),
        (["config.json", "pytorch_model.bin"], "PyTorch"),
        (["adapter_config.json", "adapters.safetensors"], "LoRA"),
        ([], "no config.json"),
    ],
)
def test_what_is_no_mlx_model_is_told_by_its_name(names: list[str], said: str, tmp_path: Path):
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(MlxqError, match=said):
        headers.inventory(tmp_path)


def test_scan_sees_what_a_person_put_there_and_what_is_half_there(folder: Path):
    (folder.parent / "org--other@1234.partial").mkdir()
    (folder.parent / ".locks").mkdir()
    assert [(found.folder.name, found.state) for found in headers.scan(folder.parent)] == [
        ("org--other@1234.partial", "partial"),
        ("tiny-4bit", "valid"),
    ]


def test_scan_leaves_out_what_is_deleted_meanwhile(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """`mlxq rm` beside `mlxq models`, or a download whose folder gets its final name."""
    (folder.parent / "org--other@1234.partial").mkdir()
    monkeypatch.setattr(headers, "used", lambda path: shutil.rmtree(path) or 0)

    assert headers.scan(folder.parent) == []


def test_only_the_headers_of_a_model_are_read(tmp_path: Path):
    """Of 8 GB that lie on the disk as a hole, the bytes that the kernel counted as read."""
    folder = make(tmp_path / "models" / "tiny-4bit", shard_bytes=288_000)
    before = headers.inventory(folder).size
    for shard in folder.glob("*.safetensors"):
        _grow_tensors(shard, 4 << 30)
    began = _bytes_read()
    grown = headers.inventory(folder)
    assert grown.size - before > 8 << 30
    assert _bytes_read() - began < 1 << 20


def _grow_tensors(shard: Path, size: int) -> None:
    """Add a tensor of `size` bytes, all zero, to a safetensors file."""
    data = shard.read_bytes()
    length = int.from_bytes(data[:8], "little")
    tensors = json.loads(data[8 : 8 + length])
    end = len(data) - 8 - length
    tensors[f"{shard.stem}.weight"] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [end, end + size]}
    header = json.dumps(tensors).encode()
    with shard.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header + data[8 + length :])
        file.truncate(file.tell() + size)


def _bytes_read() -> int:
    """Return how many bytes this process has asked the kernel for (proc(5), rchar)."""
    return int(Path("/proc/self/io").read_text().split()[1])
