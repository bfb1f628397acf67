"""One tier becomes the command line and the environment of its vllm-mlx process."""

from __future__ import annotations

from collections.abc import Mapping

from state.stack import ANSWER_TIMEOUT_S, Tier

MIB = 2**20
GIB = 2**30

LONGEST_ANSWER_S = 1800
"""The most. Who waits longer has gone."""
SLOWER = 1.5
"""How much slower a prompt may be read than predicted: nine of ten are within half as long again."""
LONGEST_ANSWER = 16_384
"""Tokens a caller may ask for. The engine's own default, 32 768, lets one caller hold a slot for minutes."""
LARGEST_BUFFER_CACHE = 2 * GIB

KEPT = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "TZ",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
)
"""What a child gets of the worker's environment: no tokens, no PYTHON* settings, nothing by accident."""


def argv(tier: Tier, python: str) -> list[str]:
    """Give the command line that serves `tier` with the interpreter `python` (absolute path).

    It holds no secret: the launcher takes the key from the environment. `tier.weights` must be set.
    """
    return [
        *(python, "-P", "-m", "tasks.engines.launcher", "serve", tier.weights),
        *("--host", "127.0.0.1", "--port", str(tier.port), "--served-model-name", tier.name),
        *("--continuous-batching", "--offline", "--enable-metrics"),
        *_limits(tier),
        *_cache(tier),
        *_parsers(tier),
    ]


def _limits(tier: Tier) -> list[str]:
    """Bound what one request and all requests together may take."""
    longest = max(tier.max_tokens, min(LONGEST_ANSWER, tier.context))
    return [
        *("--max-num-seqs", str(tier.concurrency)),
        *("--max-tokens", str(tier.max_tokens), "--max-request-tokens", str(longest)),
        *("--timeout", str(tier.answer_timeout_s), "--prefill-step-size", str(tier.prefill_step)),
        *(("--mllm-prefill-step-size", str(tier.prefill_step)) if tier.vision else ()),
    ]


def _cache(tier: Tier) -> list[str]:
    """Bound the cache of old prompts; left alone, every engine takes a fifth of the free memory."""
    if tier.cache_bytes < MIB:
        return ["--disable-prefix-cache"]
    return ["--cache-memory-mb", str(tier.cache_bytes // MIB)]


def _parsers(tier: Tier) -> list[str]:
    """Name the parsers of the model's family; the engine's `auto` turns some calls into wrong ones."""
    tool = ["--enable-auto-tool-choice", "--tool-call-parser", tier.tool_parser] if tier.tool_parser else []
    return tool + (["--reasoning-parser", tier.reasoning_parser] if tier.reasoning_parser else [])


def answer_timeout_s(reading_s: float, decode: float, tokens: int) -> int:
    """Return the seconds one answer may take on an engine that reads a full window in `reading_s`.

    It must have time to read that window and then to write `tokens` at `decode` tokens/s.
    """
    needed = SLOWER * (reading_s + tokens / max(decode, 1.0))
    return int(min(LONGEST_ANSWER_S, max(ANSWER_TIMEOUT_S, needed)))


def environment(
    tier: Tier, *, base: Mapping[str, str], home: str, tier_key: str, backend: str, generation: int
) -> dict[str, str]:
    """Give the whole environment of the tier's engine.

    `base` is the worker's environment, `home` the mlxq home, `backend` one of metal, cpu, cuda.
    Home, service and generation also mark the process, so that one which was started but never recorded
    is found again.
    """
    return {
        **{name: base[name] for name in KEPT if name in base},
        **marker(home, tier.name, generation),
        "MLXQ_TIER_KEY": tier_key,
        "MLXQ_PREFIX_CACHE": f"{home}/cache/{tier.name}",
        "MLXQ_MEMORY_BYTES": str(tier.memory_bytes),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        **_backend(tier, backend),
    }


def marker(home: str, service: str, generation: int) -> dict[str, str]:
    """Give the variables by which a process is known as ours, and for which start it was made."""
    return {"MLXQ_HOME": home, "MLXQ_SERVICE": service, "MLXQ_GENERATION": str(generation)}


def _backend(tier: Tier, backend: str) -> dict[str, str]:
    """Give MLX's settings: on the CPU fused kernels cost a compiler run each at their first use."""
    if backend == "cpu":
        return {"MLX_DISABLE_COMPILE": "1", "MALLOC_ARENA_MAX": "2"}
    return {"MLX_BUFFER_CACHE_LIMIT": str(min(LARGEST_BUFFER_CACHE, tier.memory_bytes // 8))}
