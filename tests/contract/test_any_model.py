"""Any repo or folder: described from its small files and headers, or refused in words, before a byte of its weights."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hub.client import Hub, running
from hub.model import make
from support import hybrid_model, tiny_family
from support.engines import Engine
from support.published_configs import CONFIGS
from support.real_families import FAMILIES, UNSERVED, Expected

from catalog.description.describe import Description
from catalog.fit import cache_bytes, memory, score_bytes, token_bytes
from catalog.load import entries
from catalog.schema import faults
from state.errors import DoesNotFit, Gated, MlxqError, NotFound
from tasks.engines import installed
from tasks.plan.placement import place
from tasks.weights import client, description, source
from tasks.weights.hub import Hub as Client

SERVED = (
    *("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma3_text", "gpt_oss", "phi3", "glm4_moe", "deepseek_v3"),
    *("falcon_h1", "mamba2", "lfm2", "nemotron_h", "granitemoehybrid", "smollm3", "olmo2", "cohere2", "exaone4"),
)
"""Families of which a small repo is on the test Hub."""
PACKED = frozenset({"llama", "qwen3", "qwen3_moe", "gpt_oss", "glm4_moe", "deepseek_v3", "granitemoehybrid"})
"""Those in four bits, all with experts among them: MLX's CPU backend multiplies no experts in 16 bits."""
ANSWERING = ("gemma3_text", "gpt_oss", "qwen3_moe", "falcon_h1", "nemotron_h", "lfm2")
"""Families that the real engine is asked for an answer, one of each kind of layer; llama is what all others are."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Generator[Hub]:
    """Serve a repo of each family, some in four bits, and repos that cannot be served."""
    root = tmp_path_factory.mktemp("hub")
    for family in SERVED:
        tiny_family.make(root / f"{family}-tiny", family, bits=4 if family in PACKED else None)
    make(root / "large-4bit", shard_bytes=24 << 20)
    _make_others(root)
    with running(root) as served:
        served.set(tasks={"ranker-4bit": "text-ranking", "voice-4bit": "text-to-speech"})
        yield served


def _make_others(root: Path) -> None:
    """Make repos of which the small files or headers tell that no engine answers with them."""
    make(root / "unheard-4bit", model_type="unheard_of")
    change(make(root / "awq-8bit"), quantization=..., quantization_config={"quant_method": "quanto", "bits": 8})
    _rename_tensors(change(make(root / "ordered-gptq"), quantization=..., quantization_config={"quant_method": "gptq"}))
    (make(root / "vectors-4bit") / "modules.json").write_text("[]")
    change(make(root / "judge-4bit"), architectures=["Qwen2ForSequenceClassification"])
    make(root / "ranker-4bit")
    make(root / "voice-4bit")
    make(root / "consent-4bit")
    gguf = root / "only-gguf"
    gguf.mkdir()
    (gguf / "tiny.Q4_K_M.gguf").write_bytes(b"GGUF")
    pictures = root / "pictures"
    pictures.mkdir()
    (pictures / "model_index.json").write_text("{}")
    adapter = root / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapters.safetensors").write_bytes(b"\0" * 8)


def change(folder: Path, **values: Any) -> Path:
    """Change fields of a config.json; ... takes one away."""
    config = json.loads((folder / "config.json").read_text()) | values
    told = {name: value for name, value in config.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(told))
    return folder


def _rename_tensors(folder: Path) -> None:
    """Call the scales of each shard an order of groups, as GPTQ packs with `desc_act`."""
    for shard in folder.glob("*.safetensors"):
        content = shard.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = content[8 : 8 + length].replace(b".scales", b".g_idx ").replace(b'.g_idx "', b'.g_idx" ')
        shard.write_bytes(content[:8] + header + content[8 + length :])
    (folder / "model.safetensors.index.json").unlink()


@pytest.fixture(autouse=True)
def own_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ask the test Hub, without a token of this machine."""
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


@pytest.mark.parametrize("family", SERVED)
def test_a_repo_of_each_family_is_described_as_its_folder_is(family: str, hub: Hub):
    """By ranges and small files alone: the geometry, the parameters, the bytes and the quant are those of the files."""
    told = of_repo(hub, f"{family}-tiny")
    folder = description.of_folder(hub.root / f"{family}-tiny", f"hub:ok/{family}-tiny")

    assert told.row | {"licence": "unknown"} == folder.row
    assert list(faults(told.row)) == []
    conversion = told.model.quants[told.quant]
    assert conversion.bytes == (hub.root / f"{family}-tiny" / "model.safetensors").stat().st_size
    assert told.model.total_params_b * 1e9 > 1000
    assert told.unknown == ()


def test_no_more_than_headers_of_the_weights_is_fetched(hub: Hub, tmp_path: Path):
    hub.set(tasks={})
    client.describe("hub:ok/large-4bit", tmp_path)

    weights = [line for line in hub.heard("cdn", "resolve") if line["path"].endswith(".safetensors")]
    assert weights
    assert all(line["range"] for line in weights)
    fetched = sum(line["sent"] for line in hub.heard("cdn", "resolve"))
    assert fetched < 20_000 < 2 * (24 << 20)


def test_a_host_that_knows_no_ranges_is_read_no_further_than_the_header(hub: Hub, tmp_path: Path):
    told = client.describe("hub:norange/large-4bit", tmp_path)

    assert told.row["total_params_b"] > 0.05


@pytest.mark.parametrize(
    ("repo", "words"),
    [
        ("ok/unheard-4bit", "has the architecture 'unheard_of'"),
        ("ok/awq-8bit", "is quantized with quanto"),
        ("ok/ordered-gptq", "in an order of its own (g_idx)"),
        ("ok/vectors-4bit", "makes vectors of texts (an embedding model)"),
        ("ok/judge-4bit", "ranks or sorts texts"),
        ("ok/ranker-4bit", "ranks or sorts texts"),
        ("ok/voice-4bit", "speaks (text to speech)"),
        ("ok/only-gguf", "GGUF (llama.cpp) files"),
        ("ok/pictures", "makes images"),
        ("ok/adapter", "an adapter (LoRA), not a whole model"),
        ("gated/consent-4bit", "is gated: you must accept its license"),
        ("ok/nothing-like-it", "does not exist"),
    ],
)
def test_what_cannot_be_served_is_refused_before_its_weights(repo: str, words: str, hub: Hub, tmp_path: Path):
    hub.set(tasks={"ranker-4bit": "text-ranking", "voice-4bit": "text-to-speech"})
    with pytest.raises(MlxqError) as told:
        client.describe(f"hub:{repo}", tmp_path)

    assert words in told.value.message
    assert isinstance(told.value, Gated if "gated" in repo else NotFound)
    assert told.value.hint
    assert sum(line["sent"] for line in hub.heard("cdn") if line["range"] is None) == 0


def test_an_awq_repo_is_counted_unpacked_and_planned(tmp_path: Path):
    """Four bits that AutoAWQ packed, as mlx-lm loads them."""
    folder = change(make(tmp_path / "awq"), quantization=..., quantization_config={"quant_method": "awq", "bits": 4})

    assert description.of_folder(folder, f"file:{folder}").quant == "int4"


def described(hub: Hub, name: str, config: dict[str, Any]) -> Description:
    """Put the config.json of a real model over small weights on the Hub, and describe it by what that answers."""
    folder = make(hub.root / name)
    (folder / "config.json").write_text(json.dumps(config | {"quantization": {"group_size": 64, "bits": 4}}))
    return of_repo(hub, name)


def of_repo(hub: Hub, name: str) -> Description:
    """Describe a repo in this process; `client.describe` starts one for each."""
    text, asker = f"hub:ok/{name}", Client()
    asker.endpoint = hub.endpoint
    return description.of_repo(asker, source.parse(text), text)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_memory_of_a_repo_is_planned_as_the_catalog_plans_it(name: str, hub: Hub):
    """All that is kept of a prompt is the same; the small weights leave the work space of a chunk alone different."""
    known = entries()[name]
    made = described(hub, f"config-of-{name}", CONFIGS[name]).model

    assert made.context == known.context
    for context in (8192, known.context):
        assert cache_bytes(made, context) == cache_bytes(known, context)
        assert score_bytes(made, context, 1024) == score_bytes(known, context, 1024)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_repo_of_a_family_that_is_in_no_catalog_becomes_a_tier(name: str, hub: Hub):
    """With the config.json of the real model: planned by its layers, named and placed beside nothing else."""
    config, expected = FAMILIES[name]
    told = described(hub, f"real-{name}", config)
    made = told.model
    layers = made.attention

    tier = place("mine", made, told.quant, [], base_port=8000, budget_bytes=1 << 40)

    assert list(faults(told.row)) == []
    assert Expected(
        token_bytes(layers), layers.query_heads, made.context, layers.recurrent, layers.sliding
    ) == expected  # fmt: skip
    assert 2048 <= tier.context <= made.context
    assert tier.engine.memory_bytes >= memory(made, told.quant, tier.context, 1, tier.engine.prefill_step).total
    with pytest.raises(DoesNotFit, match=r"needs .* with a window of 2,048 tokens"):
        place("mine", made, told.quant, [], base_port=8000, budget_bytes=1 << 20)


@pytest.mark.parametrize("name", sorted(UNSERVED))
def test_a_family_that_no_engine_loads_is_refused_by_its_name(name: str, hub: Hub):
    """Also where mlx-vlm knows it, which engines load models with that see, and no others."""
    config = {"model_type": UNSERVED[name], "hidden_size": 2048, "num_hidden_layers": 48}

    with pytest.raises(NotFound, match=f"has the architecture '{UNSERVED[name]}'"):
        described(hub, f"new-{name}", config)


@pytest.mark.parametrize("kind", hybrid_model.NAMES)
def test_a_folder_of_each_kind_that_is_chosen_becomes_a_tier(kind: str, builtin_model: Path, tmp_path: Path):
    """Full attention, recurrent layers, and these with a tower that sees."""
    folder = hybrid_model.make(kind, tmp_path / kind, builtin_model)
    told = description.of_folder(folder, f"file:{folder}")

    tier = place("mine", told.model, told.quant, [], base_port=8000, budget_bytes=8 << 30)

    full = 4 if kind == "plain" else 1
    assert (told.model.attention.full, told.model.attention.recurrent) == (full, 4 - full)
    assert (tier.engine.vision, tier.context) == (kind == "vision", hybrid_model.CONTEXT)
    assert tier.engine.tool_parser == told.model.tool_parser


@pytest.mark.parametrize("family", ANSWERING)
def test_a_described_model_answers_in_the_real_engine(family: str, hub: Hub, tmp_path: Path):
    folder = shutil.copytree(hub.root / f"{family}-tiny", tmp_path / family)
    told = description.of_folder(folder, f"file:{folder}")
    engine = Engine(tmp_path / "home", folder, installed.own(), cache_bytes=0, context=told.model.context)
    try:
        engine.start()
        answer = engine.ask("Hello", max_tokens=4)
    finally:
        engine.stop(5)

    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] >= 1
