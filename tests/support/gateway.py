"""The gateway's process and stand-ins for engines behind it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from support import loopback
from support.ports import free_port
from support.suspend import suspend_pid

from state.stack import Engine, Tier, as_tiers
from tasks.plan import gateway as plan
from tasks.plan.retrieval import configuration

UPSTREAM = Path(__file__).with_name("upstream.py")
MASTER = "sk-mlxq-master-of-the-contract-tests"
CONTEXTS = {"standard": 4096, "fast": 1024, "longctx": 16_384}


def until(true: Callable[[], object], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return loopback.get(url, timeout=1).is_success
    return False


@dataclass
class Upstream:
    """A stand-in for one tier's engine, at a port that stays its own."""

    name: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    faulty: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Wait until it answers; one that has ended, or is about to, is started again."""
        until(self._serves)

    def _serves(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen([sys.executable, UPSTREAM, str(self.port), self.name])
        return answers(f"{self.url}/v1/models")

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    def send(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def suspend(self) -> None:
        assert self.process
        suspend_pid(self.process.pid)

    def fault(self, order: str) -> None:
        self.faulty = bool(order)
        loopback.post(f"{self.url}/fault", content=order)

    def release(self) -> None:
        """End the streams that are held."""
        loopback.post(f"{self.url}/release")

    def seen(self) -> list[dict[str, object]]:
        return loopback.get(f"{self.url}/seen").json()

    def open(self) -> int:
        """Return how many requests it has in flight."""
        return loopback.get(f"{self.url}/open").json()

    def tier(self) -> Engine:
        return Engine(
            name=self.name,
            model="stand-in",
            quant="int4",
            source="file:/nowhere",
            port=self.port,
            context=CONTEXTS.get(self.name, 4096),
            memory_bytes=2**30,
            cache_bytes=2**20,
            concurrency=8,
        )


@dataclass
class Gateway:
    """The gateway's process."""

    home: Path
    tiers: list[Engine | Tier]
    secrets: dict[str, str]
    programs: dict[str, str] = field(default_factory=dict)
    """What each engine runs; vllm-mlx where nothing is named."""
    templates: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What it must know of the chat template of each engine's model."""
    retrieval: list[Engine] = field(default_factory=list[Engine])
    """Engines for embeddings and ranking."""
    cloud_model: str | None = None
    allowed_origins: list[str] = field(default_factory=list)
    remote_images: bool = False
    cloud_url: str = plan.OPENROUTER
    cloud_cap_usd: float = 1.0
    backend: str = "cpu"
    port: int = field(default_factory=free_port)
    host: str = "127.0.0.1"
    tls: Path | None = None
    """The folder of its certificate."""
    prefix: list[str] = field(default_factory=list)
    """What runs the module instead of `python`; it gets the plan's argv after the interpreter."""
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.home / "gateway.log"

    def start(self) -> float:
        """Start it and give the seconds until it was ready."""
        config = self.home / "gateway.yaml"
        config.write_text(yaml.safe_dump(self._configuration()))
        argv = plan.argv(
            sys.executable, str(config), self.port, host=self.host, tls=str(self.tls) if self.tls else None
        )
        env = plan.environment(
            self.secrets,
            base=os.environ,
            home=str(self.home),
            backend=self.backend,
            generation=1,
            cloud_url=self.cloud_url,
            cloud_cap_usd=self.cloud_cap_usd,
        )
        began = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                (self.prefix or argv[:1]) + argv[1:], env=env, stdout=log, stderr=log, cwd=self.home
            )
        until(lambda: self.up() or self.died(), 120)
        assert not self.died(), self.log.read_text()
        return time.monotonic() - began

    def _configuration(self) -> dict[str, object]:
        return plan.configuration(
            as_tiers(self.tiers),
            cloud_model=self.cloud_model,
            allowed_origins=self.allowed_origins,
            remote_images=self.remote_images,
            programs=self.programs,
            templates=self.templates,
            retrieval=configuration(self.retrieval, {}),
        )

    def up(self) -> bool:
        return answers(f"{self.url}/health/readiness")

    def died(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(60)

    def ask(self, text: str, model: str = "standard", **more: object) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
        return self.post("/v1/chat/completions", body)

    def post(self, path: str, body: object, key: str = MASTER) -> httpx.Response:
        return loopback.post(f"{self.url}{path}", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60)
