"""The adapter of vllm-mlx 0.6.0: in mlxq's own environment where a checkout runs, else in one of its own."""

from __future__ import annotations

import json
from pathlib import Path

from catalog.engines import ModelKind, reuses
from tasks.engines.base import (
    MIB,
    QUIET,
    Adapter,
    Installation,
    Served,
    backend,
    cache_bytes,
)
from tasks.plan import health
from tasks.plan.exit_causes import (
    BAD_COMMAND_LINE,
    LOGS,
    REPAIR,
    UNKNOWN_TYPE,
    CauseRule,
    damaged_weights,
    missing_weights,
)
from tasks.plan.health import Limits

NAME = "vllm-mlx"
KEY = "MLXQ_TIER_KEY"
PROGRAM = Path(__file__).with_name("vllm_mlx_program.py")


def argv(served: Served, installation: Installation) -> list[str]:
    """Return the command line that serves a tier; its weights must be set."""
    engine = served.engine
    return [
        *(installation.python, "-P", str(PROGRAM), "serve", engine.weights),
        *("--host", "127.0.0.1", "--port", str(engine.port), "--served-model-name", engine.name),
        *("--continuous-batching", "--offline", "--enable-metrics"),
        *_limits(served),
        *_cache(served),
        *_parsers(served),
        *_template(served),
    ]


def _limits(served: Served) -> list[str]:
    """Bound what one request and all requests together may take."""
    engine = served.engine
    return [
        *("--max-num-seqs", str(engine.concurrency)),
        *("--max-tokens", str(engine.max_tokens), "--max-request-tokens", str(engine.longest_answer)),
        *("--timeout", str(engine.answer_timeout_s), "--prefill-step-size", str(engine.prefill_step)),
        *(("--mllm-prefill-step-size", str(engine.prefill_step)) if engine.vision else ()),
    ]


def _cache(served: Served) -> list[str]:
    """Bound the cache of old prompts; left alone, every engine takes a fifth of the free memory."""
    size = cache_bytes(served, reuses=_reuses(served))
    return ["--cache-memory-mb", str(size // MIB)] if size else ["--disable-prefix-cache"]


def _reuses(served: Served) -> bool:
    """Return whether a growing prompt can hit: a hybrid's state cannot be cut, so that its history must stay as it was.

    Templates of Qwen 3.6 and later drop the thoughts of earlier turns unless `preserve_thinking` is set.
    """
    kind = served.facts.kind
    unknown = kind in {ModelKind.SLIDING, ModelKind.SLIDING_VISION}
    return unknown or reuses(NAME, kind) or served.facts.keeps_thinking


def _parsers(served: Served) -> list[str]:
    """Name the parsers of the model's family; the engine's `auto` turns some calls into wrong ones."""
    engine = served.engine
    tool = ["--enable-auto-tool-choice", "--tool-call-parser", engine.tool_parser] if engine.tool_parser else []
    return tool + (["--reasoning-parser", engine.reasoning_parser] if engine.reasoning_parser else [])


def _template(served: Served) -> list[str]:
    """Keep the thoughts of earlier turns in the prompt, so that the next one begins with what was read before."""
    if not served.facts.keeps_thinking:
        return []
    return ["--default-chat-template-kwargs", json.dumps({"preserve_thinking": True})]


def environment(served: Served) -> dict[str, str]:
    """Return the engine's part of its environment."""
    engine = served.engine
    return {
        KEY: served.key,
        "MLXQ_PREFIX_CACHE": f"{served.home}/cache/{engine.name}",
        "MLXQ_MEMORY_BYTES": str(engine.memory_bytes),
        **({} if served.keeps_prompts else {"MLXQ_KEEPS_PROMPTS": "0"}),
        **QUIET,
        **backend(served),
    }


def limits(*, vision: bool) -> Limits:
    """Return its patience: models with vision step on the server's event loop, and nothing is answered meanwhile."""
    return health.VISION if vision else health.TEXT


RULES = (
    damaged_weights(r"\[load_safetensors\]|incomplete download or corrupt file|SafetensorError"),
    missing_weights(
        r"No safetensors found|not found in local cache|Repo id must be in the form"
        r"|appropriate snapshot folder"
    ),
    CauseRule(
        "damaged",
        "config.json of the model is missing or unreadable.",
        REPAIR,
        permanent=True,
        marker=r"Cannot determine whether .* is a multimodal model",
    ),
    UNKNOWN_TYPE,
    BAD_COMMAND_LINE,
    CauseRule(
        "bad_argument",
        "The engine refused its settings: {0}.",
        LOGS,
        permanent=True,
        marker=r"^Error: (.+?)\.?$",
        codes=(1,),
    ),
)
"""Collected by breaking vllm-mlx 0.6.0 on purpose, one way at a time."""

ENGINE = Adapter(
    name=NAME,
    argv=argv,
    environment=environment,
    rules=RULES,
    purge=("DELETE", "/v1/cache"),
    limits=limits,
    list_parsers=(
        "import json; from vllm_mlx.reasoning import list_parsers; "
        "from vllm_mlx.tool_parsers import ToolParserManager; "
        "print(json.dumps([ToolParserManager.list_registered(), list_parsers()]))"
    ),
    environment_secrets=frozenset({KEY}),
)
