"""A real page process over a real state.db, and the way into it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from support.ports import free_port

from mlxq.web.door import link
from state import secrets
from state.paths import Home

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--js-flags=--expose-gc"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@dataclass
class Running:
    """One page process."""

    home: Home
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return secrets.read(self.home.secrets)[secrets.PAGE]

    @property
    def link(self) -> str:
        """Make a new one-time link."""
        return f"{self.url}/enter?link={link(self.key, time.time())}"

    def client(self) -> httpx.Client:
        """Give a client that has come in by a link."""
        client = httpx.Client(base_url=self.url, trust_env=False)
        client.get(self.link).raise_for_status()
        return client

    def memory_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(home: Home) -> Generator[Running]:
    """Start the page's real program, and end it."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "mlxq.web", str(port)], env={**os.environ, "MLXQ_HOME": str(home.root)}
    )
    try:
        _until_it_answers(process, port)
        yield Running(home, port, process)
    finally:
        process.terminate()
        process.wait(10)


def _until_it_answers(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        assert process.poll() is None, "the page ended at once"
        try:
            httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).raise_for_status()
        except httpx.TransportError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("the page does not answer")
