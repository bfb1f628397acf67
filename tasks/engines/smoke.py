"""The engine process that serves the built-in model for a test: when a version is proven, and when two are compared."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from state import secrets
from state.db import Database
from state.paths import Home
from state.stack import Engine
from tasks.engines import model_facts, serving
from tasks.engines.base import MIB, Installation, Served
from tasks.system import ports, prompt_cache
from tasks.weights import builtin

NAME = "engine"
"""Of the process as a service and as a model; also the name of its log."""
START_S, TOKEN_S = 120.0, 120.0
"""A model of 98 MB is served within seconds and answers within seconds; an engine that takes longer hangs."""
HELLO = ({"role": "system", "content": ""}, {"role": "user", "content": "Hi"})
"""Its template writes 20 tokens before a question that has no system message: two seconds of MLX's CPU backend."""


def request(db: Database, home: Home, installation: Installation, weights: Path, *, name: str = NAME) -> dict[str, Any]:
    """Describe the process, as tasks/engines/benchmark.py starts it."""
    engine = Engine(
        name=name,
        model="smollm2-135m",
        quant="int4",
        source=builtin.SOURCE,
        port=ports.spare(),
        context=4096,
        memory_bytes=2**30,
        cache_bytes=256 * MIB,
        concurrency=2,
        weights=str(weights),
    )
    key = secrets.ensure(home.secrets)[secrets.TIER]
    served = Served(engine, model_facts.read(weights), str(home.root), key, serving.backend_of(db))
    launch = serving.launch_with(served, installation)
    return {
        "argv": launch.argv,
        "environment": launch.environment(0),
        "log": str(home.log(name)),
        "port": engine.port,
        "key": key,
        "name": name,
        "release": launch.release,
        "start_limit_s": START_S,
        "token_limit_s": TOKEN_S,
        "hello": HELLO,
        "tools": False,
        "pid": None,
    }


def clean(home: Home) -> None:
    """Delete what test processes kept of their prompts."""
    for folder in prompt_cache.folders(home):
        if folder.name == NAME or folder.name.startswith(f"{NAME}-"):
            shutil.rmtree(folder, ignore_errors=True)
