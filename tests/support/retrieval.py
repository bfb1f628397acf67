"""A real engine for embeddings or ranking, as mlxq starts it, and the reference values of its models."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from support.ports import free_port

from state.paths import Home
from state.stack import Engine, Purpose
from tasks.engines import embedding, installed, serving
from tasks.engines.base import ModelFacts, Served

KEY = "sk-retrieval"
REFERENCE: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "embedding_reference.json").read_text(encoding="utf-8")
)


def vector(text: str) -> np.ndarray[Any, Any]:
    """Return what 32-bit floats in base64 are."""
    return np.frombuffer(base64.b64decode(text), "<f4")


def entry(purpose: Purpose, weights: Path, model: str, *, context: int = 256, port: int = 0) -> Engine:
    """Return an engine of the stack."""
    return Engine(
        name=purpose,
        model=model,
        quant="fp32",
        source="",
        port=port or free_port(),
        context=context,
        memory_bytes=2**30,
        cache_bytes=0,
        concurrency=1,
        weights=str(weights),
        purpose=purpose,
    )


def launch(served: Engine, home: Path) -> serving.Launch:
    """Return how mlxq starts it."""
    order = Served(served, ModelFacts(), str(home), KEY, "cpu")
    return serving.launch_with(order, embedding.installation(installed.fallback(Home(home))))


class RetrievalEngine:
    """The process."""

    def __init__(self, served: Engine, home: Path) -> None:
        self.port = served.port
        self.url = f"http://127.0.0.1:{served.port}"
        started = launch(served, home)
        self.log = home / "logs" / f"{served.name}.log"
        self.log.parent.mkdir(exist_ok=True, parents=True)
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                started.argv,
                env=started.environment(1),
                stdout=log,
                stderr=log,
            )
        self.client = httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {KEY}"}, timeout=120)

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Ask it."""
        return self.client.post(path, json=body)


@contextmanager
def running(served: Engine, home: Path) -> Iterator[RetrievalEngine]:
    """Start an engine and wait until it answers."""
    engine = RetrievalEngine(served, home)
    try:
        transport = httpx.HTTPTransport(retries=0)
        with httpx.Client(transport=transport, timeout=10) as client:
            while True:
                assert engine.process.poll() is None, engine.log.read_text()
                try:
                    client.get(f"{engine.url}/health")
                    break
                except httpx.TransportError:
                    with suppress(subprocess.TimeoutExpired):
                        engine.process.wait(0.1)
        yield engine
    finally:
        engine.client.close()
        if engine.process.poll() is None:
            engine.process.terminate()
        engine.process.wait(20)
