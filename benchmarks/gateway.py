"""The gateway beside LiteLLM's own command, a bare relay, its peers and a direct call, in one run.

`uv run python benchmarks/gateway.py`. Scripted engines answer at once, or at a given pace, so what is measured is the
way and not the engine; gateways.py says how each way is started. Everything is on loopback, every wait has a limit,
and an alarm ends the run after `--limit` seconds. Read ratios of one run; seconds of a busy machine mean little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from gateways import NAMES, WAYS, NotHereError, Setup, Way, engines
from harness import table
from support.scripted import ScriptedEngine, script

Engines = Mapping[str, ScriptedEngine]
FIRST_WORD = re.compile(rb'"content": ?"[^"]')
OFFERED = 5_000
"""Chunks a second: 48 streams, sixteen a tier."""
STREAMS = 48
FREE_LIMIT_S = 10.0
NONE = "-"
PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
MOMENTS: Mapping[str, Mapping[str, object]] = {
    "waiting": {"wait_s": 120},
    "prefill": {"prefill_s": 120, "beat_s": 1},
    "generating": {"pause_s": 1, "tokens": 120},
}


@dataclass(frozen=True)
class Size:
    """How much is asked."""

    requests: int
    seconds: float


def body(text: str, *, stream: bool = False, model: str = "standard") -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream, "max_tokens": 4096}


def session(limit: int = 0, seconds: float = 30) -> aiohttp.ClientSession:
    """Return a client whose connections stay open, at most `limit` of them (0: no limit)."""
    timeout = aiohttp.ClientTimeout(total=seconds)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=limit), timeout=timeout)


async def ask(client: aiohttp.ClientSession, way: Way, text: str = "hello", *, stream: bool = False) -> list[float]:
    """Ask once; return status, seconds to the first word, seconds in all."""
    began, first = time.perf_counter(), 0.0
    try:
        given = body(text, stream=stream)
        async with client.post(f"{way.url}/v1/chat/completions", json=given, headers=way.headers) as answer:
            async for piece in answer.content.iter_any():
                if not first and FIRST_WORD.search(piece):
                    first = time.perf_counter() - began
            return [answer.status, first, time.perf_counter() - began]
    except (aiohttp.ClientError, TimeoutError):
        return [0, first, time.perf_counter() - began]


async def ready(way: Way) -> float:
    """Return the seconds from the open port to the first right answer. Raises NotHereError."""
    began = time.monotonic()
    async with session() as client:
        while time.monotonic() - began < 60:
            if (await ask(client, way))[0] == 200:
                return time.monotonic() - began
            await asyncio.sleep(0.02)
    raise NotHereError("it did not answer in 60 s")


async def latency(way: Way, straight: Way, size: Size) -> dict[str, str]:
    """Ask the way and the engine in turns; tell what the way adds at the median."""
    rows: dict[str, str] = {}
    async with session(1) as ours, session(1) as theirs:
        for name, stream, at in (("answer", False, 2), ("first token", True, 1)):
            taken: list[float] = []
            bare: list[float] = []
            for _ in range(size.requests):
                bare.append((await ask(theirs, straight, stream=stream))[at])
                status, *seconds = await ask(ours, way, stream=stream)
                taken += [seconds[at - 1]] if status == 200 else []
            added = statistics.median(taken) - statistics.median(bare) if taken else None
            row = f"added latency to the {name} p50, ms"
            rows[row] = "not served" if added is None else f"{added * 1000:.2f}"
    return rows


async def throughput(way: Way, seconds: float) -> tuple[float, float]:
    """Return the requests a second of sixteen clients, and the CPU seconds that each costs the way."""
    done, end, before = 0, time.perf_counter() + seconds, way.cpu_s()

    async def one(client: aiohttp.ClientSession) -> None:
        nonlocal done
        while time.perf_counter() < end:
            status, *_ = await ask(client, way)
            done += status == 200

    async with session(16) as client:
        await asyncio.gather(*(one(client) for _ in range(16)))
    return done / seconds, (way.cpu_s() - before) / max(done, 1)


async def rate(way: Way, size: Size) -> dict[str, str]:
    """Return the rows of a table."""
    requests, spent = await throughput(way, size.seconds)
    return {"requests/s, 16 clients": f"{requests:.0f}", "CPU a request, ms": _cpu(way, spent * 1000)}


def _cpu(way: Way, milliseconds: float) -> str:
    return f"{milliseconds:.3f}" if way.process else NONE


async def chunks(way: Way, size: Size) -> dict[str, str]:
    """Tell how many of the chunks that the engines offer arrive, and the CPU that each costs.

    Counted between the first second, when all streams have begun, and the end.
    """
    lasting = size.seconds + 4
    pace = OFFERED / STREAMS
    text = script(tokens=int(pace * lasting), pause_s=1 / pace)
    counted = 0

    async def stream(client: aiohttp.ClientSession, model: str) -> None:
        nonlocal counted
        given = body(text, stream=True, model=model)
        async with client.post(f"{way.url}/v1/chat/completions", json=given, headers=way.headers) as answer:
            last = b""
            async for piece in answer.content.iter_any():
                counted += (last + piece).count(b"\n\n")
                last = piece[-1:]

    async with session(seconds=lasting + 30) as client:
        streams = [asyncio.create_task(stream(client, way.models[at % len(way.models)])) for at in range(STREAMS)]
        await asyncio.sleep(1.5)
        before, spent, began = counted, way.cpu_s(), time.perf_counter()
        await asyncio.sleep(size.seconds)
        number, spent, took = counted - before, way.cpu_s() - spent, time.perf_counter() - began
        for task in streams:
            task.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    served = "not served" if number < OFFERED / 100 else ""
    return {
        "CPU a streamed chunk, ms": served or _cpu(way, spent * 1000 / max(number, 1)),
        f"chunks/s of {OFFERED:,} offered": served or f"{number / took:,.0f}",
    }


async def dead(way: Way, given: Engines, size: Size) -> dict[str, str]:
    """Tell how much longer answers take once their tier is killed."""
    row = "dead tier → next answers: added, ms (median, worst)"
    if not way.cascades:
        return {row: NONE}
    async with session(1) as client:
        alive = statistics.median([(await ask(client, way))[2] for _ in range(40)][20:])
        given["standard"].kill()
        answers: list[list[float]] = []
        end = time.monotonic() + 20
        while len(answers) < max(20, size.requests // 5) and time.monotonic() < end:
            answers.append(await ask(client, way))
        given["standard"].start()
    taken = [(seconds - alive) * 1000 for status, _, seconds in answers if status == 200]
    failed = len(answers) - len(taken)
    said = f"{statistics.median(taken):.1f}, {max(taken):.1f}" if taken else "no answer"
    return {row: said + (f" ({failed} of {len(answers)} failed)" if failed else "")}


async def killed_in_turn(way: Way, given: Engines, size: Size) -> dict[str, str]:
    """Tell how many requests failed while each tier was killed and started again, one after the other."""
    row = "failed while each tier is killed in turn"
    if not way.cascades:
        return {row: NONE}
    number, asked, failed = size.requests * 10 // 3, 0, 0
    end = time.monotonic() + 60

    def kill() -> None:
        for name in NAMES:
            given[name].kill()
            given[name].start()

    async def one(client: aiohttp.ClientSession) -> None:
        nonlocal asked, failed
        while (asked < number or not killing.done()) and time.monotonic() < end:
            asked += 1
            status, *_ = await ask(client, way)
            failed += status != 200

    killing = asyncio.create_task(asyncio.to_thread(kill))
    async with session(8) as client:
        await asyncio.gather(*(one(client) for _ in range(8)))
    await killing
    return {row: f"{failed} of {asked}"}


def routed(path: str, text: str, *, stream: bool) -> dict[str, object]:
    given = body(text, stream=stream)
    if path.endswith("responses"):
        return {"model": given["model"], "input": text, "stream": stream}
    return given


async def freed(way: Way, given: Engines, phase: str) -> list[float]:
    """Close six requests in one phase; return the seconds after which the engines had dropped each, or the limit.

    Empty where the way serves none of them.
    """
    text = script(**MOMENTS[phase])
    async with session() as client:
        orders = [(path, stream) for path in PATHS.values() for stream in (False, True)]
        posts = [
            asyncio.create_task(
                client.post(f"{way.url}{path}", json=routed(path, text, stream=stream), headers=way.headers)
            )
            for path, stream in orders
        ]
        for _ in range(300):
            if at_work(given, phase) == len(orders):
                break
            await asyncio.sleep(0.05)
        number = min(at_work(given), len(orders))
        for task in posts:
            task.cancel()
        for answer in await asyncio.gather(*posts, return_exceptions=True):
            if isinstance(answer, aiohttp.ClientResponse):
                answer.close()
    began, taken = time.monotonic(), []
    while len(taken) < number and time.monotonic() - began < FREE_LIMIT_S:
        await asyncio.sleep(0.02)
        taken += [time.monotonic() - began] * (number - len(taken) - at_work(given))
    return taken + [FREE_LIMIT_S] * (number - len(taken))


def settle(given: Engines) -> None:
    """End what a way has not let go, so that it burdens no later figure."""
    for engine in given.values():
        if engine.busy():
            engine.kill()
            engine.start()


def at_work(given: Engines, phase: str = "") -> int:
    counts = [engine.active() for engine in given.values()]
    return sum(count[phase] if phase else sum(count.values()) for count in counts)


async def slots(way: Way, given: Engines) -> dict[str, str]:
    """Tell how soon the engines are free of requests whose clients left: six routes, three phases."""
    taken: list[float] = []
    for phase in MOMENTS:
        taken += await freed(way, given, phase)
        settle(given)
    late = sum(one >= FREE_LIMIT_S for one in taken)
    soon = [one for one in taken if one < FREE_LIMIT_S]
    worst = f"{max(soon):.2f}" if soon else NONE
    lost = f"; {late} not in {FREE_LIMIT_S:.0f} s" if late else ""
    return {"slot free after the client closed, s (worst)": f"{worst} ({len(soon)} of 18{lost})"}


async def measure(way: Way, given: Engines, size: Size, memory: str) -> dict[str, str]:
    straight = Way(given["standard"].url)
    steps: list[Callable[[], Awaitable[dict[str, str]]]] = [
        lambda: rate(way, size),
        lambda: latency(way, straight, size),
        lambda: chunks(way, size),
        lambda: slots(way, given),
        lambda: dead(way, given, size),
        lambda: killed_in_turn(way, given, size),
    ]
    figures = {"memory idle, MB": memory}
    for step in steps:
        figures |= await step()
        settle(given)
    return figures


def column(name: str, given: Engines, size: Size, peers: Path) -> dict[str, str]:
    """Start one way and measure it. Raises NotHereError."""
    for engine in given.values():
        engine.start()
        engine.forget()
    with tempfile.TemporaryDirectory() as home, WAYS[name](Setup(given, Path(home), peers)) as way:
        answered = asyncio.run(ready(way))
        time.sleep(1)  # idle is idle
        memory = f"{way.memory_mb():.0f}" if way.process else NONE
        opened = f"{way.opened_s:.1f}, {way.opened_s + answered:.1f}" if way.process else NONE
        return {"port open, first answer, s": opened} | asyncio.run(measure(way, given, size, memory))


def show(columns: Mapping[str, Mapping[str, str]]) -> None:
    rows = list(dict.fromkeys(row for figures in columns.values() for row in figures))
    table(["", *columns], [[row, *(figures.get(row, NONE) for figures in columns.values())] for row in rows])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    parser.add_argument("--only", action="append", choices=tuple(WAYS), help="measure this way alone; may be repeated")
    parser.add_argument("--limit", type=int, default=1200, help="seconds after which the run ends itself")
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "mlxq-benchmark-peers")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    return parser.parse_args()


def main() -> None:
    wanted = arguments()
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"ended after {wanted.limit} s"))
    signal.alarm(wanted.limit)
    load, size = os.getloadavg()[0], Size(60, 3) if wanted.quick else Size(300, 8)
    given, columns = engines(), dict[str, dict[str, str]]()
    try:
        for name in wanted.only or WAYS:
            try:
                columns[name] = column(name, given, size, wanted.peers)
            except NotHereError as problem:
                print(f"{name} is left out: {problem}")
    finally:
        for engine in given.values():
            engine.kill()
    print(f"{'quick, ' if wanted.quick else ''}load {load:.1f} on {os.cpu_count()} processors before it began")
    show(columns)
    if wanted.json:
        wanted.json.write_text(json.dumps(columns, indent=2))


if __name__ == "__main__":
    main()
