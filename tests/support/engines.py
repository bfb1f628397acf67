"""Real engines in the hands of a test: installed as mlxq installs them, and started as it starts them."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from support import loopback
from support.ports import free_port

from catalog.engines import FALLBACK, entry
from state import stack
from tasks.engines import benchmark, install, installed, model_facts, serving
from tasks.engines.base import Installation, Served
from tasks.engines.mlx_lm_sharded import adapter as mlx_lm_sharded
from tasks.supervision import probe
from tasks.system import process
from tasks.weights import builtin

KEY = "sk-mlxq-contract"
MIB = 2**20
MADE = "made"


def installation(name: str, root: Path) -> Installation:
    """Give an engine: mlxq's own, or one that is installed below `root` by its lock, without its smoke test."""
    if name == FALLBACK:
        return installed.own()
    if name == mlx_lm_sharded.NAME:
        return mlx_lm_sharded.installation()
    version = entry(name).version
    place = root / f"{name}-{version}"
    place.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:  # two processes of a run may want it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / MADE).exists():
            install.make(place, install.lock(root, name, version), lambda _: None)
            (place / MADE).touch()
    return Installation(name, version, str(installed.python(place)))


@dataclass
class Engine:
    """One engine process."""

    home: Path
    weights: Path
    at: Installation
    cache_bytes: int = 256 * MIB
    context: int = 8192
    concurrency: int = 4
    name: str = "fast"
    tuning: str = ""
    more: dict[str, Any] = field(default_factory=dict)
    """Further fields of its tier."""
    ranks: int = 3
    """Of an engine that splits a model."""
    words: Sequence[str] = ()
    """What its command line has besides."""
    port: int = field(default_factory=free_port)
    started_s: float = 0.0
    spawned: process.Spawned | None = None

    @property
    def tier(self) -> stack.Engine:
        return stack.Engine(
            name=self.name,
            model="smollm2-135m",
            quant="int4",
            source=builtin.SOURCE,
            port=self.port,
            context=self.context,
            memory_bytes=2**30,
            cache_bytes=self.cache_bytes,
            concurrency=self.concurrency,
            weights=str(self.weights),
            **self.more,
        )

    @property
    def log(self) -> Path:
        return self.home / f"{self.name}.log"

    @property
    def identity(self) -> process.Identity:
        assert self.spawned
        return self.spawned.engine

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {KEY}"}

    def launch(self) -> serving.Launch:
        served = Served(
            self.tier, model_facts.read(self.weights), str(self.home), KEY, "cpu", self.tuning, ranks=self.ranks
        )
        return serving.launch_with(served, self.at)

    def spawn(self) -> None:
        """Start it and do not wait."""
        launch = self.launch()
        self.home.mkdir(exist_ok=True)
        self.spawned = process.spawn([*launch.argv, *self.words], launch.environment(1), self.log, self.home, self.name)

    def start(self) -> None:
        began = time.monotonic()
        self.spawn()
        while not probe.listening(self.port):
            assert process.alive(self.identity), self.log.read_text()
            assert time.monotonic() - began < 240, self.log.read_text()
            time.sleep(0.05)
        self.started_s = time.monotonic() - began

    def stop(self, limit_s: float = 30) -> process.Stopped:
        return process.stop(self.identity, limit_s)

    def drain(self) -> None:
        process.send(self.identity, signal.SIGUSR2)

    def exit_code(self) -> int | None:
        assert self.spawned
        assert process.wait(self.spawned.shim, 10)
        return process.exit_status(self.home, self.name, self.identity)

    def body(self, text: str = "Hello", **more: object) -> dict[str, object]:
        return {"model": self.name, "messages": [{"role": "user", "content": text}], **more}

    def ask(self, text: str = "Hello", **more: object) -> httpx.Response:
        return self.post("/v1/chat/completions", self.body(text, **more))

    def post(self, path: str, body: object) -> httpx.Response:
        return loopback.post(f"{self.url}{path}", json=body, headers=self.headers, timeout=240)

    @property
    def resident(self) -> int:
        return benchmark.resident(self.identity.pid)

    def status(self) -> Any:
        return probe.status(self.port, KEY, 30, release=self.at.name)


def offline_prefix() -> list[str] | None:
    """Give what runs a command in a network namespace without a way out; None where that is not allowed."""
    words = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user", "--user"])]
    return words if os.system(" ".join([*words, "true", ">/dev/null", "2>&1"])) == 0 else None
