"""A scripted engine as a test holds it: start, kill, script, and what it saw."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from support import loopback
from support.ports import free_port

from state.stack import Engine

PROGRAM = Path(__file__).with_name("scripted_engine.py")
CONTEXTS = {"standard": 131_072, "fast": 65_536, "longctx": 262_144}
"""An agent's first prompt takes 10,000 to 25,000 tokens."""


def script(**given: Any) -> str:
    """Return the words of a prompt that orders this (`scripted_engine.Script` lists the fields)."""
    return f"script {json.dumps(given)}"


@dataclass
class ScriptedEngine:
    """One engine's process at a port that stays its own."""

    name: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    http: httpx.Client = field(default_factory=lambda: loopback.client(timeout=30))
    """Kept: to make one costs 30 ms, most of it for certificates that loopback does not need."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def tier(self) -> Engine:
        """Return the tier that it serves."""
        return Engine(
            name=self.name,
            model="scripted",
            quant="int4",
            source="file:/nowhere",
            port=self.port,
            context=CONTEXTS[self.name],
            memory_bytes=2**30,
            cache_bytes=2**20,
            concurrency=64,
            tool_parser="hermes",
        )

    def start(self) -> None:
        """Start the process unless it lives, and wait until its port answers; one that is about to end may live yet."""
        deadline = time.monotonic() + 30
        while not self._serves():
            assert time.monotonic() < deadline, "the scripted engine died"
            time.sleep(0.02)

    def _serves(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen([sys.executable, PROGRAM, str(self.port), self.name])
        return self.answers()

    def answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.http.get(f"{self.url}/health", timeout=1).is_success
        return False

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    def send(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def order(self, **given: Any) -> None:
        """Set the script of all requests; without a field take it back."""
        self.http.post(f"{self.url}/script", content=json.dumps(given) if given else "").raise_for_status()

    def seen(self) -> list[dict[str, Any]]:
        """Return what came in since the last `forget`: path, headers, body."""
        return self.http.get(f"{self.url}/seen").json()

    def forget(self) -> None:
        self.http.delete(f"{self.url}/seen")

    def active(self) -> dict[str, int]:
        """Return how many requests wait, are in prefill, and generate."""
        return self.http.get(f"{self.url}/active").json()

    def busy(self) -> int:
        return sum(self.active().values())
