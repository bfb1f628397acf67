"""The adapter of rapid-mlx 0.16.10, which lives in an environment of its own: it ships a package named vllm_mlx too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from catalog.engines import ModelKind
from tasks.engines.base import (
    DRAIN_S,
    MIB,
    QUIET,
    Adapter,
    Installation,
    ModelFacts,
    Served,
    backend,
    cache_bytes,
)
from tasks.plan import health
from tasks.plan.exit_causes import (
    BAD_COMMAND_LINE,
    LOGS,
    REPAIR,
    CauseRule,
    damaged_weights,
    missing_weights,
    unknown_type,
)
from tasks.plan.health import Limits

NAME = "rapid-mlx"
PROGRAM = Path(__file__).with_name("rapid_mlx_program.py")
KEY = "RAPID_MLX_API_KEY"
REINSTALL = "mlxq engine install rapid-mlx --force"

TOOL_PARSERS = {"qwen3_xml": "qwen3_coder_xml", "qwen3.5": "qwen3_coder_xml"}
"""Where its name differs. Its qwen3_xml reads calls as JSON; those of Qwen 3.5 and later are XML."""
NO_TOOL_PARSERS = frozenset({"deepseek_v4", "dsml", "poolside_v1", "step", "step3p5"})
NO_REASONING_PARSERS = frozenset({"mistral", "poolside_v1", "step3p5"})
"""Names of the catalog for which it has none."""


def argv(served: Served, installation: Installation) -> list[str]:
    """Return the command line that serves a tier; its weights must be set."""
    engine = served.engine
    return [
        *(installation.python, "-P", str(PROGRAM), "serve", engine.weights),
        *("--host", "127.0.0.1", "--port", str(engine.port), "--served-model-name", engine.name),
        *("--no-preflight", "--force-disk-check", "--disable-model-downloads", "--yes", "--log-level", "WARNING"),
        *_limits(served),
        *_cache(served),
        *_parsers(served),
        *_tuning(served),
    ]


def _tuning(served: Served) -> Sequence[str]:
    """Return the flags of a tuning. Draft heads are looked for only where the flag names the folder that has them."""
    flags = tunings(served.facts).get(served.tuning, ())
    if flags and served.tuning == DRAFT_HEADS:
        return (flags[0], json.dumps({"method": "mtp", "model": served.engine.weights}))
    return flags


def tunings(facts: ModelFacts) -> dict[str, Sequence[str]]:
    """Return what may make answers faster with a model, and its flags.

    It refuses prompt lookup (suffix decoding) with recurrent layers, whose state cannot be taken back, and a quantized
    cache with sliding windows.
    """
    return {
        **({DRAFT_HEADS: ("--speculative-config", '{"method":"mtp"}')} if facts.draft_heads else {}),
        **({"prompt-lookup": ("--speculative-config", LOOKUP)} if facts.kind in LOOKED_UP else {}),
        **({f"kv-{size}": ("--kv-cache-dtype", size) for size in ("int8", "int4")} if facts.kind in GROWING else {}),
    }


DRAFT_HEADS = "draft-heads"
LOOKUP = '{"method":"suffix","num_speculative_tokens":8}'
LOOKED_UP = frozenset({ModelKind.ATTENTION, ModelKind.SLIDING})
GROWING = frozenset({ModelKind.ATTENTION, ModelKind.HYBRID})


def _limits(served: Served) -> list[str]:
    """Bound what one request and all requests together may take."""
    engine = served.engine
    return [
        *("--max-num-seqs", str(engine.concurrency), "--context-length", str(engine.context)),
        *("--max-tokens", str(engine.max_tokens)),
        *("--timeout", str(engine.answer_timeout_s), "--prefill-step-size", str(engine.prefill_step)),
        *(("--vision-prefill-token-budget", str(engine.context)) if engine.vision else ("--no-mllm",)),
    ]


def _cache(served: Served) -> list[str]:
    """Bound the cache of old prompts; left alone it takes a fifth of the host's memory."""
    size = cache_bytes(served, reuses=True)
    if not size:
        return ["--disable-prefix-cache", "--disable-disk-caches"]
    return ["--cache-memory-mb", str(size // MIB), *([] if served.keeps_prompts else ["--disable-disk-caches"])]


def _parsers(served: Served) -> list[str]:
    """Name the parsers of the model's family, and have none guessed where there is none."""
    tool, reasoning = tool_parser(served.engine.tool_parser), reasoning_parser(served.engine.reasoning_parser)
    return [
        *(("--enable-auto-tool-choice", "--tool-call-parser", tool) if tool else ("--no-tool-call-parser",)),
        *(("--reasoning-parser", reasoning) if reasoning else ("--no-reasoning-parser",)),
    ]


def tool_parser(name: str | None) -> str | None:
    """Return its name for one of the catalog's tool parsers; None where it has none."""
    return None if name is None or name in NO_TOOL_PARSERS else TOOL_PARSERS.get(name, name)


def reasoning_parser(name: str | None) -> str | None:
    """Return its name for one of the catalog's reasoning parsers; None where it has none."""
    return None if name in NO_REASONING_PARSERS else name


def environment(served: Served) -> dict[str, str]:
    """Return the engine's part of its environment.

    All it writes goes below HOME: prompts that it keeps, crash reports, marks of its first use. --cache-memory-mb is
    not heeded on the path of models with vision, RAPID_MLX_PREFIX_CACHE_MAX_BYTES on both.
    """
    engine = served.engine
    size = cache_bytes(served, reuses=True)
    return {
        KEY: served.key,
        "HOME": f"{served.home}/cache/{engine.name}",
        "MLXQ_DRAIN_S": str(DRAIN_S),
        "RAPID_MLX_TELEMETRY": "0",
        "RAPID_MLX_DISABLE_VERSION_CHECK": "1",
        "RAPID_MLX_DISABLE_MODEL_DOWNLOADS": "1",
        "RAPID_MLX_DISABLE_LOCAL_MEDIA_PATHS": "1",
        "RAPID_MLX_NO_BANNER": "1",
        "RAPID_MLX_SSE_KEEPALIVE_SECONDS": str(HEARTBEAT_S),
        "RAPID_MLX_REASONING_RESCUE": "off",  # else thoughts that were cut are shown as the answer
        "RAPID_MLX_MAX_GENERATION_TOKENS": str(engine.longest_answer),
        "RAPID_MLX_HYBRID_CHECKPOINT_STRIDE": str(engine.prefill_step),
        **({"RAPID_MLX_PREFIX_CACHE_MAX_BYTES": str(size)} if size else {}),
        "APC_EXACT_CACHE_ENTRIES": str(EXACT_ENTRIES) if size else "0",
        **QUIET,
        **_backend(served),
    }


HEARTBEAT_S = 5
"""A stream that waits or reads says so as often. Its own 20 s are the gateway's limit for a stream's silence."""
EXACT_ENTRIES = 64
"""Prompts that the path of models with vision keeps, two a request; the bytes bound them first."""


def _backend(served: Served) -> dict[str, str]:
    """Return MLX's settings, and where there is a GPU the limit of the memory that is wired."""
    limit = {"MLXQ_MEMORY_BYTES": str(served.engine.memory_bytes)}
    return backend(served) | ({} if served.backend == "cpu" else limit)


def limits(*, vision: bool) -> Limits:
    """Return its patience; with vision, some steps run where its server answers."""
    return health.VISION if vision else health.TEXT


RULES = (
    CauseRule(
        "port_taken",
        "Another program is using its port.",
        "mlxq doctor",
        permanent=True,
        marker=r"^\s*Error: Port \d+ (?:is )?already in use",
    ),
    damaged_weights(r"Cause: .*(?:truncated or unreadable|checkpoint is incomplete)"),
    missing_weights(r"Cause: .*(?:does not exist|missing model weights)"),
    CauseRule(
        "damaged",
        "config.json or the tokenizer of the model is missing.",
        REPAIR,
        permanent=True,
        marker=r"Cause: .*(?:missing config\.json|no tokenizer files)",
    ),
    unknown_type(r"Cause: config\.json requests unsupported model_type '([^']+)'"),
    CauseRule(
        "not_installed",
        "The Python package {0} is missing from the engine's environment.",
        REINSTALL,
        permanent=True,
        marker=r"^ModuleNotFoundError: No module named '([^']+)'",
    ),
    CauseRule("not_installed", "The engine's environment is gone.", REINSTALL, permanent=True, codes=(126, 127)),
    BAD_COMMAND_LINE,
    CauseRule(
        "bad_argument",
        "The engine refused its settings: {0}.",
        LOGS,
        permanent=True,
        marker=r"^\s*(?:Error|Cause): (.+?)\.?$",
        codes=(1, 3),
    ),
)
"""Collected by breaking rapid-mlx 0.16.10 on purpose, one way at a time."""

ENGINE = Adapter(
    name=NAME,
    argv=argv,
    environment=environment,
    rules=RULES,
    purge=("POST", "/v1/cache/clear"),
    limits=limits,
    list_parsers=(
        "import json; from rapid_mlx.reasoning import list_parsers; "
        "from rapid_mlx.tool_parsers import ToolParserManager; "
        "print(json.dumps([sorted(ToolParserManager.tool_parsers), list_parsers()]))"
    ),
    tool_parser=tool_parser,
    reasoning_parser=reasoning_parser,
    tunings=tunings,
    environment_secrets=frozenset({KEY}),
)
