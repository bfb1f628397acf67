import dataclasses

import pytest

from catalog.engines import ModelKind
from state.stack import Engine
from tasks.engines import serving, vllm_mlx
from tasks.engines.base import GIB, MIB, Installation, ModelFacts, Served

FAST = Engine(
    name="fast",
    model="qwen3-4b",
    quant="int4",
    source="hub:mlx-community/Qwen3-4B-4bit",
    port=8001,
    context=32_768,
    memory_bytes=8 * GIB,
    cache_bytes=512 * MIB,
    concurrency=8,
    weights="/home/me/.mlxq/models/mlx-community--Qwen3-4B-4bit@1234",
    tool_parser="qwen3",
    reasoning_parser="qwen3",
)
HERE = Installation("vllm-mlx", "0.6.0", "/venv/bin/python")
PLAIN = ModelFacts()
HYBRID = ModelFacts(kind=ModelKind.HYBRID, state_bytes=MIB, token_bytes=1024)


def argv(tier: Engine = FAST, facts: ModelFacts = PLAIN) -> list[str]:
    return vllm_mlx.argv(Served(tier, facts, "/home/me/.mlxq", "sk-1", "metal"), HERE)


def told(tier: Engine, backend: str = "metal", **base: str) -> dict[str, str]:
    return serving.environment(Served(tier, PLAIN, "/home/me/.mlxq", "sk-1", backend), HERE, base=base, generation=7)


def after(flag: str, argv: list[str]) -> str:
    return argv[argv.index(flag) + 1]


def test_argv_is_exactly_this():
    """A change of the engine's command line restarts every engine: it is made on purpose or not at all."""
    assert argv() == [
        *("/venv/bin/python", "-P", str(vllm_mlx.PROGRAM), "serve", FAST.weights),
        *("--host", "127.0.0.1", "--port", "8001", "--served-model-name", "fast"),
        *("--continuous-batching", "--offline", "--enable-metrics"),
        *("--max-num-seqs", "8", "--max-tokens", "4096", "--max-request-tokens", "16384"),
        *("--timeout", "300", "--prefill-step-size", "1024", "--cache-memory-mb", "512"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "qwen3", "--reasoning-parser", "qwen3"),
    ]


def test_a_model_that_can_see_is_told_its_step_by_the_flag_of_its_own_path():
    """vllm-mlx reads --prefill-step-size on the text path alone; a step of 512 would else stay 1024."""
    seeing = dataclasses.replace(FAST, vision=True, prefill_step=512)

    assert after("--mllm-prefill-step-size", argv(seeing)) == "512"
    assert "--mllm-prefill-step-size" not in argv()


def test_environment_is_exactly_this():
    expected = {
        "PATH": "/bin",
        "MLXQ_HOME": "/home/me/.mlxq",
        "MLXQ_SERVICE": "fast",
        "MLXQ_GENERATION": "7",
        "MLXQ_TIER_KEY": "sk-1",
        "MLXQ_PREFIX_CACHE": "/home/me/.mlxq/cache/fast",
        "MLXQ_MEMORY_BYTES": str(8 * GIB),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "MLX_BUFFER_CACHE_LIMIT": str(GIB),
    }

    assert told(FAST, PATH="/bin") == expected


@pytest.mark.parametrize("name", ["HF_TOKEN", "OPENAI_API_KEY", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE"])
def test_a_childs_environment_has_nothing_by_accident(name: str):
    assert name not in told(FAST, **{name: "1"})


def test_the_key_is_not_on_the_command_line():
    assert "sk-1" not in " ".join(argv())


def test_a_model_without_parsers_gets_none():
    """Never the engine's `auto`: it turns Llama's and Mistral's tool calls into wrong ones."""
    plain = argv(dataclasses.replace(FAST, tool_parser=None, reasoning_parser=None))

    assert not {"--tool-call-parser", "--enable-auto-tool-choice", "--reasoning-parser", "auto"} & set(plain)


def test_no_cache_budget_means_no_cache():
    """--cache-memory-mb 0 would be read as unset: a fifth of the machine's memory."""
    plain = argv(dataclasses.replace(FAST, cache_bytes=MIB - 1))

    assert "--disable-prefix-cache" in plain
    assert "--cache-memory-mb" not in plain


def test_a_hybrid_gets_a_cache_only_where_its_template_keeps_the_thoughts():
    """Its state cannot be cut: memory for prompts that never hit again would be wasted."""
    keeping = dataclasses.replace(HYBRID, keeps_thinking=True)

    assert "--disable-prefix-cache" in argv(facts=HYBRID)
    assert after("--cache-memory-mb", argv(facts=keeping)) == "512"
    assert after("--default-chat-template-kwargs", argv(facts=keeping)) == '{"preserve_thinking": true}'
    assert "--default-chat-template-kwargs" not in argv(facts=HYBRID)


def test_a_cache_that_does_not_hold_two_prompts_is_none():
    """161 MB for one entry and 61 MB of cache: the engine would refuse every entry."""
    large = dataclasses.replace(HYBRID, keeps_thinking=True, state_bytes=161_000_000)
    small = dataclasses.replace(FAST, cache_bytes=61_000_000)

    assert "--disable-prefix-cache" in argv(small, large)
    assert "--disable-prefix-cache" in argv(dataclasses.replace(FAST, cache_bytes=300_000_000), large)
    assert "--cache-memory-mb" in argv(dataclasses.replace(FAST, cache_bytes=400_000_000), large)


def test_a_short_context_bounds_the_answer_but_not_below_the_default():
    """The engine exits 1 when --max-tokens is above --max-request-tokens."""
    short = dataclasses.replace(FAST, context=2048)

    assert (after("--max-request-tokens", argv(short)), after("--max-tokens", argv(short))) == ("2048", "1024")


def test_on_the_cpu_mlx_compiles_nothing():
    assert told(FAST, "cpu")["MLX_DISABLE_COMPILE"] == "1"
    assert "MLX_BUFFER_CACHE_LIMIT" not in told(FAST, "cpu")
