"""The gateway beside LiteLLM's defaults and a direct call, in one run: `uv run python benchmarks/gateway.py`.

Three stand-ins answer at once with ten words, so what is measured is the way and not the engine. LiteLLM's defaults:
its own command line, the same tiers and fallbacks, no bytecode (as uv and most containers install it). Two rows are
not measured for them: a hung tier would take the 6000 s of their time limit, and a killed one seconds a request.
The column `litellm, bytecode` is the fastest that LiteLLM itself can be here: beside it stands what the hook costs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.ports import free_port

from state.stack import Tier
from tasks.plan import gateway as plan

UPSTREAM = Path(__file__).parents[1] / "tests" / "support" / "upstream.py"
KEYS = {"LITELLM_MASTER_KEY": "sk-mlxq-benchmark", "MLXQ_TIER_KEY": "sk-tier"}
NAMES = ("standard", "longctx", "fast")
HEADERS = {"Authorization": f"Bearer {KEYS['LITELLM_MASTER_KEY']}"}


def ready(url: str, process: subprocess.Popen[bytes]) -> float:
    """Wait until `url` answers; give the seconds."""
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 180:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            answer.read()
            return time.monotonic() - began
        time.sleep(0.02)
    raise SystemExit(f"{url} never answered")


class Engines:
    """The stand-ins, each at a port of its own."""

    def __init__(self) -> None:
        self.ports = {name: free_port() for name in NAMES}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str) -> None:
        for name in names or NAMES:
            self.processes[name] = subprocess.Popen([sys.executable, UPSTREAM, str(self.ports[name]), name])
        for name in names or NAMES:
            ready(f"http://127.0.0.1:{self.ports[name]}/v1/models", self.processes[name])

    def send(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)
        if number == signal.SIGKILL:
            self.processes[name].wait()

    def tiers(self) -> list[Tier]:
        given: dict[str, Any] = {"model": "m", "quant": "int4", "source": "file:/nowhere"}
        sizes: dict[str, Any] = {"context": 32_768, "memory_bytes": 1, "cache_bytes": 1, "concurrency": 8}
        return [Tier(name=name, port=port, **given, **sizes) for name, port in self.ports.items()]


@contextlib.contextmanager
def mlxq(home: Path, engines: Engines) -> Iterator[tuple[str, float]]:
    """Run the gateway as mlxq does; give its address and the seconds to readiness."""
    config, port = home / "litellm.yaml", free_port()
    config.write_text(yaml.safe_dump(plan.configuration(engines.tiers())))
    environment = plan.environment(KEYS, base=os.environ, home=str(home), backend="cpu", generation=1)
    with run(plan.argv(sys.executable, str(config), port), environment, home, port) as took:
        yield f"http://127.0.0.1:{port}", took


@contextlib.contextmanager
def litellm(home: Path, engines: Engines, *, bytecode: bool = False) -> Iterator[tuple[str, float]]:
    """Run LiteLLM's own command line with its defaults."""
    config, port = home / "litellm.yaml", free_port()
    models = [
        {
            "model_name": name,
            "litellm_params": {
                "model": f"openai/{name}",
                "api_base": f"http://127.0.0.1:{tier}/v1",
                "api_key": KEYS["MLXQ_TIER_KEY"],
            },
        }
        for name, tier in engines.ports.items()
    ]
    chains = [{name: [other for other in NAMES if other != name]} for name in NAMES]
    config.write_text(yaml.safe_dump({"model_list": models, "router_settings": {"fallbacks": chains}}))
    bare = {"PYTHONDONTWRITEBYTECODE": "" if bytecode else "1"}
    if not bytecode:
        bare["PYTHONPYCACHEPREFIX"] = str(home / "none")
    argv = [str(Path(sys.executable).with_name("litellm")), "--config", str(config), "--port", str(port)]
    with run([*argv, "--host", "127.0.0.1"], {**os.environ, **KEYS, **bare}, home, port) as took:
        yield f"http://127.0.0.1:{port}", took


@contextlib.contextmanager
def run(argv: list[str], environment: dict[str, str], home: Path, port: int) -> Iterator[float]:
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(argv, env=environment, cwd=home, stdout=log, stderr=log)
        try:
            yield ready(f"http://127.0.0.1:{port}/health/liveliness", process)
        finally:
            process.terminate()
            process.wait(30)


async def ask(session: aiohttp.ClientSession, url: str, *, stream: bool = False) -> tuple[int, float, float, str]:
    """Ask once; give status, seconds to the first words, seconds in all, and who answered."""
    body = {"model": "standard", "messages": [{"role": "user", "content": "hello"}], "stream": stream}
    began = time.perf_counter()
    first = 0.0
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        async for line in answer.content:
            first = first or (time.perf_counter() - began if b'"content"' in line else 0.0)
        who = answer.headers.get("x-litellm-model-api-base", answer.headers.get("x-mlxq-tier", ""))
    return answer.status, first, time.perf_counter() - began, who


@contextlib.asynccontextmanager
async def clients(limit: int = 16) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(
        headers=HEADERS, connector=aiohttp.TCPConnector(limit=limit), timeout=timeout
    ) as session:
        yield session


async def times(url: str, number: int, *, stream: bool = False) -> list[float]:
    """Give the seconds of one request at a time: in all, or to the first words of a stream."""
    async with clients(1) as session:
        asked = [await ask(session, url, stream=stream) for _ in range(number)]
    return [one[1] if stream else one[2] for one in asked]


async def typical(url: str, number: int, *, stream: bool = False) -> float:
    """Give the median of `times`."""
    return statistics.median(await times(url, number, stream=stream))


async def throughput(url: str, seconds: float) -> tuple[float, float]:
    """Give the requests per second of sixteen clients, and the gateway's CPU seconds a request.

    The second figure holds on a busy machine too.
    """
    done, end = 0, time.perf_counter() + seconds
    gateway = next(
        one for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr.port == urlsplit(url).port
    )
    process = psutil.Process(gateway.pid)
    before = sum(process.cpu_times()[:2])

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal done
        while time.perf_counter() < end:
            await ask(session, url)
            done += 1

    async with clients() as session:
        await asyncio.gather(*(client(session) for _ in range(16)))
    return done / seconds, (sum(process.cpu_times()[:2]) - before) / done


async def killed_in_turn(url: str, engines: Engines, number: int) -> tuple[int, int]:
    """Kill and restart each tier while `number` requests pass; give those that failed, and how many tiers died."""
    failed = asked = deaths = 0
    due = [number * (2 * at + 1) // (2 * len(NAMES)) for at in range(len(NAMES))]

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal failed, asked, deaths
        while asked < number:
            asked += 1
            if deaths < len(NAMES) and asked >= due[deaths]:
                name, deaths = NAMES[deaths], deaths + 1
                engines.send(name, signal.SIGKILL)
                await asyncio.to_thread(engines.start, name)
            status, *_ = await ask(session, url)
            failed += status != 200

    async with clients(8) as session:
        await asyncio.gather(*(client(session) for _ in range(8)))
    return failed, deaths


async def back_again(url: str, engines: Engines, mark: str) -> float:
    """Give the seconds from a killed tier's readiness to its first answer."""
    async with clients(1) as session:
        engines.send("standard", signal.SIGKILL)
        for _ in range(4):
            await ask(session, url)
        engines.start("standard")
        began = time.monotonic()
        while mark not in (await ask(session, url))[3] and time.monotonic() - began < 60:
            pass
        return time.monotonic() - began


async def hung(url: str, engines: Engines) -> float:
    """Give the seconds to an answer of a stream whose tier hangs."""
    engines.send("standard", signal.SIGSTOP)
    try:
        async with clients(1) as session:
            return (await ask(session, url, stream=True))[2]
    finally:
        engines.send("standard", signal.SIGCONT)


async def measure(url: str, engines: Engines, *, quick: bool, ours: bool) -> dict[str, str]:
    direct = f"http://127.0.0.1:{engines.ports['standard']}"
    number = 50 if quick else 300
    await typical(url, 10)
    plain, straight = await typical(url, number), await typical(direct, number)
    told, heard = await typical(url, number, stream=True), await typical(direct, number, stream=True)
    rate, cpu = await throughput(url, 3 if quick else 10)
    mark = "standard" if ours else str(engines.ports["standard"])
    engines.send("standard", signal.SIGKILL)
    dead = [(one - plain) * 1000 for one in await times(url, 20 if ours else 3)]
    engines.start("standard")
    again = await back_again(url, engines, mark)
    made = {
        "added latency p50, ms": f"{(plain - straight) * 1000:.1f}",
        "added time to first words p50, ms": f"{(told - heard) * 1000:.1f}",
        "requests/s, 16 clients": f"{rate:.0f}",
        "CPU a request, ms": f"{cpu * 1000:.1f}",
        "dead tier: added, ms (median, worst)": f"{statistics.median(dead):.0f}, {max(dead):.0f}",
        "tier used again after its restart, s": f"{again:.1f}",
    }
    if not ours:
        return {**made, "hung tier, stream, s": "not measured", "failed while each tier is killed": "not measured"}
    stream = await hung(url, engines)
    failed, deaths = await killed_in_turn(url, engines, 100 if quick else 1000)
    return {
        **made,
        "hung tier, stream, s": f"{stream:.1f}",
        "failed while each tier is killed": f"{failed} of {100 if quick else 1000}, {deaths} kills",
    }


WAYS = {"litellm": litellm, "litellm, bytecode": partial(litellm, bytecode=True), "mlxq": mlxq}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    parser.add_argument("--only", choices=tuple(WAYS))
    wanted = parser.parse_args()
    load = os.getloadavg()[0]
    engines = Engines()
    engines.start()
    columns: dict[str, dict[str, str]] = {}
    try:
        for name, start in WAYS.items():
            if wanted.only in (None, name):
                with tempfile.TemporaryDirectory() as home, start(Path(home), engines) as (url, took):
                    figures = asyncio.run(measure(url, engines, quick=wanted.quick, ours=name == "mlxq"))
                    columns[name] = {"ready after start, s": f"{took:.1f}", **figures}
    finally:
        for process in engines.processes.values():
            process.kill()
    print(f"{'quick, ' if wanted.quick else ''}load {load:.1f} on {os.cpu_count()} processors before it began")
    print(f"{'':42}" + "".join(f"{name:>22}" for name in columns))
    for row in next(iter(columns.values())):
        print(f"{row:42}" + "".join(f"{column[row]:>22}" for column in columns.values()))


if __name__ == "__main__":
    main()
