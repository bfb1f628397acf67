"""The adapter of mlx-embeddings, which makes vectors and ranks documents in a program of mlxq's own.

It runs in the environment that vllm-mlx is in, which brings the library.

Neither engine of chats serves it better. vllm-mlx 0.6.0 needs a chat model beside it, computes vectors on the event
loop of its server (nothing is answered meanwhile), pools bge-m3 by the mean, and takes no folder for --rerank-model.
rapid-mlx 0.16.10 needs packages that it does not bring ([embeddings]) and refuses to start without them.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from catalog import retrieval
from catalog.problems import UnknownModel
from state.stack import Engine
from tasks.engines.base import QUIET, Adapter, Installation, Served, backend
from tasks.plan.exit_causes import BAD_COMMAND_LINE, UNKNOWN_TYPE, damaged_weights, missing_weights
from tasks.plan.health import Limits

NAME = "mlx-embeddings"
KEY = "MLXQ_TIER_KEY"
PROGRAM = Path(__file__).with_name("embedding_program.py")
GPU_PASS_TOKENS = 4_096
PASS_TOKENS = {"cpu": 256}
"""Tokens of one forward pass, which is what a short request waits for at most: MLX's CPU backend on Linux computes
all-MiniLM-L6-v2 at some 100 tokens/s (2 cores of an EPYC, mlx 0.32.4), a GPU at a thousand times that."""


def installation(host: Installation) -> Installation:
    """Return the version that is in the environment of `host`, which is vllm-mlx; "?" where that is not there."""
    if host.python == sys.executable:
        return Installation(NAME, version(NAME), host.python)
    packages = Path(host.python).parents[1].glob("lib/python*/site-packages/mlx_embeddings-*.dist-info")
    return Installation(NAME, next((path.stem.partition("-")[2] for path in packages), "?"), host.python)


def argv(served: Served, installation: Installation) -> list[str]:
    """Return the command line that serves a model; its weights must be set."""
    engine = served.engine
    return [
        *(installation.python, "-P", str(PROGRAM), engine.purpose, engine.weights),
        *("--port", str(engine.port), "--name", engine.name, "--max-length", str(engine.context)),
        *("--pooling", _pooling(engine), "--pass-tokens", str(PASS_TOKENS.get(served.backend, GPU_PASS_TOKENS))),
    ]


def _pooling(engine: Engine) -> str:
    try:
        return retrieval.find(engine.model, engine.purpose)[0].pooling
    except UnknownModel:
        return "mean"


def environment(served: Served) -> dict[str, str]:
    """Return the engine's part of its environment."""
    return {KEY: served.key, "MLXQ_MEMORY_BYTES": str(served.engine.memory_bytes), **QUIET, **backend(served)}


def limits(*, vision: bool) -> Limits:  # noqa: ARG001 - as base.PatienceWith asks
    """Return its patience: it answers while it computes, and one forward pass takes seconds on a slow machine."""
    return Limits(stalled_s=60.0)


def shortest_request(engine: str) -> tuple[str, dict[str, Any]]:
    """Return path and body of the shortest request: the program knows what it is for, as no name on demand tells it."""
    return "/v1/self-test", {"model": engine}


RULES = (
    damaged_weights(
        r"\[load_safetensors\]|incomplete download or corrupt file|SafetensorError|parameters not in model"
    ),
    missing_weights(r"No safetensors found|No such file or directory: .*config\.json"),
    UNKNOWN_TYPE,
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
    shortest_request=shortest_request,
    environment_secrets=frozenset({KEY}),
)
