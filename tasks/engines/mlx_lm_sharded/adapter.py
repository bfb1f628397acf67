"""The adapter of mlx_lm.server 0.31.3 in ranks: one model that is split over processes, in mlxq's own environment.

`mlx.launch` starts ranks through shells and leaves them behind when it is killed; so mlxq starts them itself, with the
two variables by which `mlx.launch` makes a ring, MLX_RANK and MLX_HOSTFILE.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from tasks.engines.base import QUIET, Adapter, Installation, Served, backend, cache_bytes
from tasks.plan.exit_causes import BAD_COMMAND_LINE, UNKNOWN_TYPE, CauseRule, damaged_weights, missing_weights
from tasks.plan.health import Limits

NAME = "mlx-lm-sharded"
KEY = "MLXQ_TIER_KEY"
PROGRAM = Path(__file__).with_name("leader_program.py")


def installation() -> Installation:
    """Return the version in mlxq's own environment."""
    return Installation(NAME, version("mlx-lm"), sys.executable)


def argv(served: Served, installation: Installation) -> list[str]:
    """Return the command line that serves a model; its weights must be set."""
    engine = served.engine
    return [
        *(installation.python, "-P", str(PROGRAM), engine.weights, "--ranks", str(served.ranks)),
        *("--port", str(engine.port), "--name", engine.name),
        *("--longest", str(engine.longest_answer), "--max-tokens", str(engine.max_tokens)),
        *("--prefill-step", str(engine.prefill_step), "--cache-bytes", str(cache_bytes(served, reuses=True))),
        *("--memory-bytes", str(engine.memory_bytes)),
    ]


def environment(served: Served) -> dict[str, str]:
    """Return the engine's part of its environment."""
    own = {} if served.backend == "cpu" else {"MLX_METAL_FAST_SYNCH": "1"}
    return {KEY: served.key, **QUIET, **backend(served), **own}


def limits(*, vision: bool) -> Limits:  # noqa: ARG001 - as base.PatienceWith asks
    """Return its patience: it answers while it computes, and a step takes as long as its slowest rank."""
    return Limits(stalled_s=60.0)


RULES = (
    damaged_weights(r"\[load_safetensors\]|incomplete download or corrupt file|SafetensorError|Missing \d+ parameters"),
    missing_weights(r"No safetensors found|No such file or directory: .*config\.json"),
    UNKNOWN_TYPE,
    CauseRule(
        "unsupported",
        "The engine cannot split this model over {0} ranks: its heads do not divide by it.",
        "mlxq models",
        permanent=True,
        marker=r"\[split\].*?(\d+)|Cannot (?:divide|split).*?(\d+)",
    ),
    CauseRule(
        "unsupported",
        "The engine cannot split a model of this type.",
        "mlxq models",
        permanent=True,
        marker=r"does not support (?:any sharding|tensor parallelism|pipelining)",
    ),
    BAD_COMMAND_LINE,
)

ENGINE = Adapter(
    name=NAME,
    argv=argv,
    environment=environment,
    rules=RULES,
    purge=("DELETE", "/v1/cache"),
    limits=limits,
    list_parsers="print('[[], []]')",
    environment_secrets=frozenset({KEY}),
)
