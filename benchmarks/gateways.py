"""The ways to an engine that benchmarks/gateway.py compares: how each is installed, started and asked.

Peers come from their registries into a folder that is kept between runs (`--peers`); one that cannot be installed
is left out of the table with a word. Nothing listens or connects beyond loopback once the installs are done.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.ports import free_port
from support.scripted import ScriptedEngine

from state.stack import Engine, Tier, as_tiers
from tasks.plan import gateway as plan

KEYS = {"LITELLM_MASTER_KEY": "sk-mlxq-benchmark", "MLXQ_TIER_KEY": "sk-tier"}
NAMES = ("standard", "longctx", "fast")
LOCAL = ("MODEL_COST_MAP", "BLOG_POSTS", "ANTHROPIC_BETA_HEADERS", "POLICY_TEMPLATES", "AUTOROUTER_PRESETS")
"""What LiteLLM would else ask raw.githubusercontent.com for."""
SMG = "smg==1.13.0"
LITELLM = "litellm[proxy]==1.106.12"
PORTKEY = "@portkey-ai/gateway@1.15.2"
START_LIMIT_S = 120.0


class NotHereError(Exception):
    """A peer cannot be installed or does not start."""


@dataclass
class Way:
    """One running way to the engines."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    process: psutil.Process | None = None
    opened_s: float = 0.0
    """Seconds from the start of the process until its port took a connection."""
    models: tuple[str, ...] = ("standard",)
    """The names that it can be asked for."""
    cascades: bool = False
    """Whether it is configured to answer from another tier when one is dead."""

    def tree(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)] if self.process else []

    def cpu_s(self) -> float:
        """Return the CPU seconds, user and system, that its processes have taken."""
        return sum(sum(one.cpu_times()[:2]) for one in self.tree())

    def memory_mb(self) -> float:
        """Return the resident megabytes of its processes."""
        return sum(one.memory_info().rss for one in self.tree()) / 1e6


@dataclass(frozen=True)
class Setup:
    """What a way is started with."""

    engines: Mapping[str, ScriptedEngine]
    home: Path
    """An empty folder."""
    peers: Path
    """Where peers are installed."""


def engines() -> dict[str, ScriptedEngine]:
    """Start the three scripted engines."""
    made = {name: ScriptedEngine("standard") for name in NAMES}  # one name, so that smg sees three workers of it
    for engine in made.values():
        engine.start()
    return made


def _opens(port: int, process: subprocess.Popen[bytes]) -> float:
    """Wait for a port; return the seconds. Raises NotHereError when the process ends first, or at the limit."""
    began = time.monotonic()
    while (took := time.monotonic() - began) < START_LIMIT_S and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return took
        time.sleep(0.005)
    raise NotHereError(f"its port did not open in {took:.0f} s")


@contextlib.contextmanager
def _run(
    argv: list[str], port: int, home: Path, *, env: Mapping[str, str] | None = None, **about: Any
) -> Iterator[Way]:
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(argv, env=dict(env or os.environ), cwd=home, stdout=log, stderr=log)
        try:
            opened = _opens(port, process)
            yield Way(f"http://127.0.0.1:{port}", process=psutil.Process(process.pid), opened_s=opened, **about)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()


def _bearer() -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS['LITELLM_MASTER_KEY']}"}


def tiers(given: Mapping[str, ScriptedEngine]) -> list[Tier]:
    """Return the stack of mlxq's gateway."""
    about: dict[str, Any] = {"model": "m", "quant": "int4", "source": "file:/nowhere"}
    sizes: dict[str, Any] = {"context": 32_768, "memory_bytes": 1, "cache_bytes": 1, "concurrency": 64}
    return as_tiers(Engine(name=name, port=engine.port, **about, **sizes) for name, engine in given.items())


@contextlib.contextmanager
def direct(setup: Setup) -> Iterator[Way]:
    """Ask the engine itself."""
    yield Way(setup.engines["standard"].url)


@contextlib.contextmanager
def bare(setup: Setup) -> Iterator[Way]:
    port = free_port()
    argv = [sys.executable, str(Path(__file__).with_name("bare_relay.py")), str(port), setup.engines["standard"].url]
    with _run(argv, port, setup.home) as way:
        yield way


@contextlib.contextmanager
def mlxq(setup: Setup) -> Iterator[Way]:
    """Run the gateway as the worker does."""
    config, port = setup.home / "gateway.yaml", free_port()
    config.write_text(yaml.safe_dump(plan.configuration(tiers(setup.engines))))
    env = plan.environment(KEYS, base=os.environ, home=str(setup.home), backend="cpu", generation=1)
    with _run(plan.argv(sys.executable, str(config), port), port, setup.home, env=env) as way:
        way.headers, way.models, way.cascades = _bearer(), NAMES, True
        yield way


@contextlib.contextmanager
def litellm(setup: Setup) -> Iterator[Way]:
    """Run LiteLLM's own command with its defaults, the same tiers and fallbacks, and bytecode (its fastest here)."""
    config, port = setup.home / "gateway.yaml", free_port()
    models = [
        {
            "model_name": name,
            "litellm_params": {
                "model": f"openai/{name}",
                "api_base": f"{engine.url}/v1",
                "api_key": "os.environ/MLXQ_TIER_KEY",
            },
        }
        for name, engine in setup.engines.items()
    ]
    chains = [{name: [other for other in NAMES if other != name]} for name in NAMES]
    config.write_text(yaml.safe_dump({"model_list": models, "router_settings": {"fallbacks": chains}}))
    local = {f"LITELLM_LOCAL_{name}": "True" for name in LOCAL} | {"PYTHONDONTWRITEBYTECODE": ""}
    folder = setup.peers / "litellm"
    python = _install(
        ["uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], folder / "bin" / "python"
    )
    packages = ["uv", "pip", "install", "--quiet", "--python", str(python), LITELLM]
    argv = [
        str(_install(packages, folder / "bin" / "litellm")),
        "--config",
        str(config),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with _run(argv, port, setup.home, env={**os.environ, **KEYS, **local}) as way:
        way.headers, way.models, way.cascades = _bearer(), NAMES, True
        yield way


def _install(argv: list[str], made: Path) -> Path:
    """Run an installer unless its product is there. Raises NotHereError."""
    if made.exists():
        return made
    if not shutil.which(argv[0]):
        raise NotHereError(f"there is no {argv[0]}")
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    except subprocess.TimeoutExpired:
        raise NotHereError(f"{argv[0]} took more than 300 s") from None
    if done.returncode or not made.exists():
        raise NotHereError((done.stderr.strip().splitlines() or ["not installed"])[-1])
    return made


@contextlib.contextmanager
def smg(setup: Setup) -> Iterator[Way]:
    """Run SGLang's model gateway over the three engines as three workers of one model."""
    folder = setup.peers / "smg"
    python = _install(
        ["uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], folder / "bin" / "python"
    )
    program = _install(["uv", "pip", "install", "--quiet", "--python", str(python), SMG], folder / "bin" / "smg")
    port, metrics = free_port(), free_port()
    argv = [str(program), "launch", "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    argv += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics)]
    with _run([*argv, "--worker-urls", *(engine.url for engine in setup.engines.values())], port, setup.home) as way:
        way.cascades = True
        yield way


@contextlib.contextmanager
def portkey(setup: Setup) -> Iterator[Way]:
    """Run Portkey's gateway; the engine is named in each request, as it wants."""
    folder, port = setup.peers / "portkey", free_port()
    server = folder / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), PORTKEY]
    argv = ["node", str(_install(npm, server)), f"--port={port}", "--headless"]
    with _run(argv, port, setup.home) as way:
        host = f"{setup.engines['standard'].url}/v1"
        way.headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": host, "authorization": "Bearer x"}
        yield way


WAYS = {"direct": direct, "bare aiohttp relay": bare, "LiteLLM": litellm, "mlxq": mlxq, "smg": smg, "Portkey": portkey}
