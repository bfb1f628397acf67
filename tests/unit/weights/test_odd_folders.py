"""Whatever lies in the models folder ends in one line of words, and never ends the list."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hub.model import make
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.examples import share
from support.real_configs import CONFIGS

from tasks.engines import model_facts
from tasks.weights import loaders, manifest
from tasks.weights.formats import headers
from tasks.weights.manifest import File, Manifest

DEEP = "[" * 100_000 + "]" * 100_000
ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([2**63, -1, 10**400, 1e300, "4", "llama", "../../x", "base", "\x1b[31m", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
STATES = {"valid", "damaged", "unsupported"}


def is_object(value: Any) -> bool:
    return isinstance(value, dict)


@st.composite
def configs(draw: st.DrawFn) -> Any:
    """Return a real config.json with some of its fields removed, replaced or nested."""
    config: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(list(CONFIGS.values()))))
    for _ in range(draw(st.integers(0, 4))):
        inner: list[dict[str, Any]] = [config, *filter(is_object, config.values())]
        part = draw(st.sampled_from(inner))
        name = draw(st.sampled_from(sorted(part)) if part else st.text(max_size=5))
        match draw(st.sampled_from(["remove", "replace", "nest", "wrap"])):
            case "remove":
                part.pop(name, None)
            case "replace":
                part[name] = draw(ODD)
            case "nest":
                part[name] = copy.deepcopy(config)
            case _:
                part[name] = [part.get(name)]
    return draw(st.sampled_from([config, config, config, [config], {"text_config": config}]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("odd") / "models" / "tiny", shard_bytes=3_000)


def look(folder: Path) -> headers.ScannedFolder:
    """Return what the list says of the folder, which must not end it."""
    (found,) = headers.scan(folder.parent)
    assert found.state == "valid" or found.problem
    model_facts.read(folder)
    return found


@settings(max_examples=share(400), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(config=configs())
def test_a_config_of_any_shape_is_one_line(config: Any, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    assert look(folder).state in STATES


@settings(max_examples=share(200), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(index=ODD, weight_map=ODD)
def test_an_index_of_any_shape_is_one_line(index: Any, weight_map: Any, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIGS["llama-3.1-8b-4bit"]))
    for told in (index, {"weight_map": weight_map}):
        (folder / headers.INDEX).write_text(json.dumps(told))
        assert look(folder).state in STATES
    (folder / headers.INDEX).unlink()


@settings(max_examples=share(200), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(header=ODD | st.dictionaries(st.text(max_size=9), ODD), tail=st.binary(max_size=9))
def test_a_header_of_any_shape_is_one_line(header: Any, tail: bytes, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIGS["llama-3.1-8b-4bit"]))
    shard = folder / "model-00001-of-00002.safetensors"
    whole = shard.read_bytes()
    text = json.dumps(header).encode()
    shard.write_bytes(struct.pack("<Q", len(text)) + text + tail)
    try:
        assert look(folder).state in STATES
    finally:
        shard.write_bytes(whole)


@pytest.mark.parametrize("text", [b"", b"null", b"\xff\xfe{", b"{}", DEEP.encode(), b'{"a": ' + DEEP.encode() + b"}"])
@pytest.mark.parametrize("name", ["config.json", headers.INDEX, manifest.NAME, "model-00001-of-00002.safetensors"])
def test_no_file_of_a_folder_ends_the_list(name: str, text: bytes, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIGS["llama-3.1-8b-4bit"]))
    before = (folder / name).read_bytes() if (folder / name).exists() else None
    (folder / name).write_bytes(text)
    try:
        assert look(folder).state in STATES
    finally:
        (folder / name).unlink()
        if before is not None:
            (folder / name).write_bytes(before)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_the_installed_loader_loads_is_not_refused(name: str) -> None:
    """AWQ, mxfp4, fp8 and bits by layer: the list is the loader's own."""
    loaders.check(name, CONFIGS[name])


@pytest.mark.parametrize("name", ["base", "cache", "../../x", "switch_layers", "flux2", "__init__"])
def test_a_file_of_the_loader_that_is_no_model_is_no_architecture(name: str, tmp_path: Path) -> None:
    """mlx-lm's helpers lie beside its models, and mlx-vlm makes pictures too."""
    folder = make(tmp_path / "models" / "x", model_type=name, shard_bytes=3_000)
    assert look(folder).state == "unsupported"


@pytest.mark.parametrize(
    ("name", "growing"),
    [
        ("llama-3.1-8b-4bit", 2 * 32 * 8 * 128),
        ("qwen3.5-9b-4bit", 2 * 8 * 4 * 256),
        ("gpt-oss-20b-mxfp4", 2 * 12 * 8 * 64),
        ("deepseek-v3", 61 * (512 + 64)),
        ("nemotron-nano-9b-v2", 2 * 4 * 8 * 128),
        ("lfm2-1.2b-8bit", 2 * 4 * 8 * 64),
    ],
)
def test_a_token_costs_what_the_attending_layers_keep(name: str, growing: int) -> None:
    assert headers.config_json.read(CONFIGS[name]).kv_values == growing


def test_a_folder_that_lost_a_file_is_damaged_whatever_else_it_holds(tmp_path: Path) -> None:
    """As verify says, which compares with the manifest too: a file that no reader of headers looks at."""
    folder = make(tmp_path / "models" / "tiny", shard_bytes=3_000)
    told = folder / "tokenizer_config.json"
    manifest.write(folder, Manifest("hub:x/y", "1", (File(told.name, told.stat().st_size, "sha256", "0"),)))
    assert look(folder).state == "valid"

    told.write_text("")

    found = look(folder)
    assert (found.state, found.problem) == (
        "damaged",
        f"{folder} has files that are not as they were fetched: tokenizer_config.json.",
    )


@pytest.mark.parametrize(
    "odd",
    [
        {"name": "../../outside"},
        {"name": ".."},
        {"name": 7},
        {"size": "7"},
        {"digest": None},
        {"algorithm": "crc32"},
    ],
)
def test_a_manifest_that_mlxq_did_not_write_is_none(odd: dict[str, Any], tmp_path: Path) -> None:
    """What a manifest calls damaged is deleted by verify: a name in it must not lead out of the folder."""
    manifest.write(tmp_path, Manifest("hub:x/y", "1", (File("a", 1, "sha256", "0"),)))
    told = json.loads((tmp_path / manifest.NAME).read_text())
    assert manifest.read(tmp_path)

    told["files"][0] |= odd
    (tmp_path / manifest.NAME).write_text(json.dumps(told))

    assert manifest.read(tmp_path) is None


def test_files_that_macos_lays_beside_weights_are_none(tmp_path: Path) -> None:
    """On exFAT and network disks Finder lays `._NAME` beside every file that it copies, with another header inside."""
    folder = make(tmp_path / "models" / "tiny", shard_bytes=3_000)
    before = headers.inventory(folder)
    for path in list(folder.iterdir()):
        (folder / f"._{path.name}").write_bytes(b"\0\5\26\7" * 20)
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder.parent / "._tiny").write_bytes(b"\0\5\26\7")

    assert look(folder).weights == before
