"""The gateway takes no more memory after many requests than after some.

`GATEWAY_REQUESTS=50000 uv run pytest tests/contract/test_gateway_memory.py -s` for as many as an agent sends in days.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import httpx
import psutil
import pytest
from support.gateway import MASTER, Gateway
from support.scripted import ScriptedEngine

REQUESTS = int(os.environ.get("GATEWAY_REQUESTS", "2000"))
WARM = 1000
"""Requests after which the gateway has loaded what it loads late, and its caches and arenas have their size."""
MOST_GROWTH_BYTES = 12 * 2**20
"""240 bytes a request, were there 50,000: less than any object that is kept for one."""
AT_ONCE = 8
TIERS = ("standard", "fast", "longctx")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def body(number: int) -> tuple[str, dict[str, Any]]:
    """Return a request like no other: of each dialect, streamed or not, some with tools, and some that are refused."""
    words: Any = [{"role": "user", "content": f"request {number}: {'word ' * (number % 97)}"}]
    asked: dict[str, Any] = {"model": TIERS[number % 3], "max_tokens": 4, "stream": number % 2 == 0}
    if number % 5 == 1:
        return "/v1/messages", asked | {"messages": words}
    if number % 5 == 2:
        return "/v1/responses", {"model": asked["model"], "stream": asked["stream"], "input": f"request {number}"}
    if number % 5 == 3:
        schema = {"type": "object", "properties": {f"p{number}": {"type": "string"}}}
        tool = {"type": "function", "function": {"name": f"f{number}", "parameters": schema}}
        return "/v1/chat/completions", asked | {"messages": words, "tools": [tool]}
    if number % 50 == 4:
        return "/v1/chat/completions", asked | {"messages": words, f"unknown-{number}": 1, "max_tokens": -number}
    return "/v1/chat/completions", asked | {"messages": words}


async def send(url: str, numbers: range) -> dict[int, int]:
    """Send requests, several at once; return how often each status came."""
    waiting, statuses = iter(numbers), dict[int, int]()
    headers = {"Authorization": f"Bearer {MASTER}"}

    async def client() -> None:
        async with httpx.AsyncClient(verify=False, trust_env=False, timeout=60, headers=headers) as http:
            for number in waiting:
                path, content = body(number)
                answer = await http.post(f"{url}{path}", json=content)
                statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return statuses


def test_memory_does_not_grow_with_requests(front: Gateway, engines: dict[str, ScriptedEngine]) -> None:
    assert front.process
    gateway = psutil.Process(front.process.pid)
    asyncio.run(send(front.url, range(WARM)))
    before, files = gateway.memory_info().rss, gateway.num_fds()

    statuses: dict[int, int] = {}
    for begin in range(WARM, WARM + REQUESTS, 1000):
        for status, count in asyncio.run(send(front.url, range(begin, min(begin + 1000, WARM + REQUESTS)))).items():
            statuses[status] = statuses.get(status, 0) + count
        for engine in engines.values():
            engine.forget()
        grown = gateway.memory_info().rss - before
        print(f"{begin + 1000 - WARM} requests: {(before + grown) / 2**20:.1f} MiB, {grown / 2**20:+.1f}, {statuses}")

    assert set(statuses) <= {200, 400}
    assert statuses[200] > 0.9 * REQUESTS
    assert gateway.memory_info().rss - before < MOST_GROWTH_BYTES
    assert gateway.num_fds() <= files + AT_ONCE * (1 + len(TIERS))  # what clients and engines hold open at once
