import dataclasses
import json
from pathlib import Path

import mlx.core as mx

from catalog.engines import ModelKind
from catalog.score import BUILTIN_CACHE
from state.stack import Engine
from tasks.engines import model_facts, rapid_mlx, serving
from tasks.engines.base import GIB, MIB, Installation, ModelFacts, Served, cache_bytes
from tasks.plan.exit_causes import explain

TIER = Engine(
    name="standard",
    model="qwen3.8-27b",
    quant="int4",
    source="hub:mlx-community/Qwen3.8-27B-4bit",
    port=8000,
    context=65_536,
    memory_bytes=24 * GIB,
    cache_bytes=4 * GIB,
    concurrency=4,
    weights="/home/me/.mlxq/models/mlx-community--Qwen3.8-27B-4bit@1234",
    tool_parser="qwen3_xml",
    reasoning_parser="qwen3",
    vision=True,
)
THERE = Installation("rapid-mlx", "0.16.10", "/home/me/.mlxq/engines/rapid-mlx-0.16.10/venv/bin/python")
FACTS = ModelFacts(kind=ModelKind.HYBRID_VISION, keeps_thinking=True, state_bytes=151_000_000, token_bytes=65_536)


def served(tier: Engine = TIER, backend: str = "metal") -> Served:
    return Served(tier, FACTS, "/home/me/.mlxq", "sk-1", backend)


def test_argv_is_exactly_this():
    """A change of the engine's command line restarts every engine: it is made on purpose or not at all."""
    assert rapid_mlx.argv(served(), THERE) == [
        *(THERE.python, "-P", str(rapid_mlx.PROGRAM), "serve", TIER.weights),
        *("--host", "127.0.0.1", "--port", "8000", "--served-model-name", "standard"),
        *("--no-preflight", "--force-disk-check", "--disable-model-downloads", "--yes", "--log-level", "WARNING"),
        *("--max-num-seqs", "4", "--context-length", "65536", "--max-tokens", "4096"),
        *("--timeout", "300", "--prefill-step-size", "1024", "--vision-prefill-token-budget", "65536"),
        *("--cache-memory-mb", "4096"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "qwen3_coder_xml", "--reasoning-parser", "qwen3"),
    ]


def test_no_prompt_is_kept_on_disk_where_the_setting_says_so():
    assert "--disable-disk-caches" in rapid_mlx.argv(dataclasses.replace(served(), keeps_prompts=False), THERE)


def test_environment_is_exactly_this():
    assert serving.environment(
        served(), THERE, base={"PATH": "/bin", "HOME": "/home/me", "HF_TOKEN": "x"}, generation=7
    ) == {
        "PATH": "/bin",
        "HOME": "/home/me/.mlxq/cache/standard",
        "MLXQ_HOME": "/home/me/.mlxq",
        "MLXQ_SERVICE": "standard",
        "MLXQ_GENERATION": "7",
        "MLXQ_DRAIN_S": "4",
        "MLXQ_MEMORY_BYTES": str(24 * GIB),
        "RAPID_MLX_API_KEY": "sk-1",
        "RAPID_MLX_TELEMETRY": "0",
        "RAPID_MLX_DISABLE_VERSION_CHECK": "1",
        "RAPID_MLX_DISABLE_MODEL_DOWNLOADS": "1",
        "RAPID_MLX_DISABLE_LOCAL_MEDIA_PATHS": "1",
        "RAPID_MLX_NO_BANNER": "1",
        "RAPID_MLX_SSE_KEEPALIVE_SECONDS": "5",
        "RAPID_MLX_REASONING_RESCUE": "off",
        "RAPID_MLX_MAX_GENERATION_TOKENS": "16384",
        "RAPID_MLX_HYBRID_CHECKPOINT_STRIDE": "1024",
        "RAPID_MLX_PREFIX_CACHE_MAX_BYTES": str(4 * GIB),
        "APC_EXACT_CACHE_ENTRIES": "64",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "MLX_BUFFER_CACHE_LIMIT": str(2 * GIB),
    }


def test_the_memory_of_old_prompts_is_always_set():
    """Left alone, it takes a fifth of the host's memory; on the path with vision it does not heed the flag."""
    small = served(dataclasses.replace(TIER, cache_bytes=61 * MIB))

    assert {"--disable-prefix-cache", "--disable-disk-caches"} <= set(rapid_mlx.argv(small, THERE))
    assert rapid_mlx.environment(small)["APC_EXACT_CACHE_ENTRIES"] == "0"
    assert "RAPID_MLX_PREFIX_CACHE_MAX_BYTES" not in rapid_mlx.environment(small)


def test_parsers_that_it_has_not_are_not_guessed():
    other = dataclasses.replace(TIER, tool_parser="step3p5", reasoning_parser="mistral", vision=False)
    words = rapid_mlx.argv(served(other), THERE)

    assert {"--no-tool-call-parser", "--no-reasoning-parser", "--no-mllm"} <= set(words)
    assert "--tool-call-parser" not in words


def test_what_it_says_at_its_end():
    def cause(code: int, log: str) -> tuple[str, bool]:
        found = explain(code, log, "fast", rapid_mlx.RULES)
        return found.code, found.permanent

    assert cause(1, "  Cause: Local model path /x/missing does not exist.\n") == ("weights_missing", True)
    assert cause(1, "  Cause: /x/y is missing model weights.\n") == ("weights_missing", True)
    assert cause(1, "  Cause: /x/y is missing config.json.\n") == ("damaged", True)
    assert cause(3, "  Cause: The local model directory has no tokenizer files.\n") == ("damaged", True)
    told = "  Cause: The model checkpoint is incomplete: model.safetensors is truncated or unreadable.\n"
    assert cause(3, told) == ("damaged", True)
    assert cause(3, "  Cause: config.json requests unsupported model_type 'mamba9'.\n") == ("unsupported", True)
    assert cause(1, "  Error: Port 8001 is already in use on 127.0.0.1.\n") == ("port_taken", True)
    assert cause(2, "rapid-mlx: error: unrecognized arguments: --new\n") == ("bad_argument", True)
    assert cause(1, "ModuleNotFoundError: No module named 'rapid_mlx'\n") == ("not_installed", True)
    assert cause(127, "/bin/sh: 1: /x/venv/bin/python: not found\n") == ("not_installed", True)
    assert cause(134, "kIOGPUCommandBufferCallbackErrorOutOfMemory\n") == ("out_of_memory", False)
    assert cause(137, "") == ("killed", False)


def test_a_tuning_is_its_flags_and_is_offered_by_the_kind_of_model():
    plain = dataclasses.replace(FACTS, kind=ModelKind.ATTENTION)
    heads = dataclasses.replace(FACTS, kind=ModelKind.HYBRID, draft_heads=True)
    tuned = dataclasses.replace(served(), facts=heads, tuning="draft-heads")

    assert list(rapid_mlx.tunings(plain)) == ["prompt-lookup", "kv-int8", "kv-int4"]
    assert list(rapid_mlx.tunings(heads)) == ["draft-heads", "kv-int8", "kv-int4"]
    assert not rapid_mlx.tunings(FACTS)
    assert rapid_mlx.argv(tuned, THERE)[-2:] == [
        "--speculative-config",
        json.dumps({"method": "mtp", "model": tuned.engine.weights}),
    ]
    assert rapid_mlx.argv(dataclasses.replace(served(), tuning="draft-heads"), THERE) == rapid_mlx.argv(served(), THERE)


def test_draft_heads_are_seen_in_the_weights_and_not_in_config_alone(tmp_path: Path):
    """Many quants name them in config.json and leave them out."""
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_5", "text_config": {"mtp_num_hidden_layers": 1}}')
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"model.norm.weight": mx.zeros(2)})
    assert not model_facts.read(tmp_path).draft_heads
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"mtp.norm.weight": mx.zeros(2)})
    assert model_facts.read(tmp_path).draft_heads


def test_the_built_in_models_cache_holds_two_prompts_and_no_more():
    """A smaller one would be none, and with a larger one its engine took 406 MB of the 400 that it may."""
    token_bytes = 2 * 2 * 30 * 3 * 64  # a key and a value of two bytes: layers, heads, their width
    least = 2 * 1024 * token_bytes
    tiny = dataclasses.replace(TIER, cache_bytes=BUILTIN_CACHE, context=4096)
    facts = ModelFacts(kind=ModelKind.ATTENTION, token_bytes=token_bytes)

    assert cache_bytes(Served(tiny, facts, "/home/me/.mlxq", "sk-1", "cpu"), reuses=True) == BUILTIN_CACHE
    assert least <= BUILTIN_CACHE < 1.05 * least
