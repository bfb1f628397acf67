"""A client that leaves frees its slot, on every route and at every moment; and tiers die under many clients."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import aiohttp
import pytest
from support.gateway import Gateway
from support.scripted import ScriptedEngine, script

Engines = dict[str, ScriptedEngine]
FREE_S = 30.0
"""For a busy machine; what is left lasts twice as long. benchmarks/gateway.py has the figure."""
REQUESTS = int(os.environ.get("GATEWAY_REQUESTS", "200"))
"""While each tier is killed in turn; 1,000 before a release."""
PATHS = ("chat/completions", "completions", "responses", "messages")
MOMENTS: dict[str, dict[str, Any]] = {
    "waiting": {"wait_s": 60},
    "prefill": {"prefill_s": 60, "beat_s": 0.5},
    "generating": {"pause_s": 0.5, "tokens": 100},
}


def asked(path: str, text: str, *, stream: bool) -> dict[str, Any]:
    """Return a body for a route."""
    given: dict[str, Any] = {"model": "standard", "stream": stream}
    match path:
        case "completions":
            return {**given, "prompt": text}
        case "responses":
            return {**given, "input": text}
        case _:
            return {**given, "messages": [{"role": "user", "content": text}], "max_tokens": 200}


def key(front: Gateway) -> dict[str, str]:
    return {"authorization": f"Bearer {front.secrets['LITELLM_MASTER_KEY']}"}


async def until(true: Any, limit_s: float = 60.0) -> float:
    """Return the seconds until another process says so."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < limit_s, "waited in vain"
        await asyncio.sleep(0.02)
    return time.monotonic() - began


async def leave(
    front: Gateway, engine: ScriptedEngine, path: str, phase: str, *, stream: bool, **more: object
) -> float:
    """Ask, close the connection when the engine is in the phase; return the seconds until its slot is free."""
    text = script(**MOMENTS[phase])
    async with aiohttp.ClientSession(headers=key(front)) as session:
        post = session.post(f"{front.url}/v1/{path}", json={**asked(path, text, stream=stream), **more})
        request = asyncio.ensure_future(post)
        await until(lambda: engine.active()[phase] == 1)
        request.cancel()
        for answer in await asyncio.gather(request, return_exceptions=True):
            if isinstance(answer, aiohttp.ClientResponse):
                answer.close()
    return await until(lambda: engine.busy() == 0)


@pytest.mark.parametrize("phase", MOMENTS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_leaves_frees_the_slot(front: Gateway, engines: Engines, path: str, stream: bool, phase: str):
    assert asyncio.run(leave(front, engines["standard"], path, phase, stream=stream)) < FREE_S
    assert not [name for name in ("fast", "longctx") if engines[name].seen()], "nobody else does its work"
    answered = front.ask(script(text="a"))
    assert answered.headers["x-mlxq-tried"] == "standard", "to leave is no failure of the tier"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_stop_strings_keep_no_slot_of_a_client_that_left(front: Gateway, engines: Engines, stream: bool):
    """The gateway itself looks for them in the answer."""
    left = leave(front, engines["standard"], "chat/completions", "generating", stream=stream, stop=["zzz"])
    assert asyncio.run(left) < FREE_S


def test_a_client_that_leaves_between_two_tiers_is_let_go(front: Gateway, engines: Engines):
    """The first tier dies under the request; the one that takes over is freed all the same."""

    async def ask() -> None:
        async with aiohttp.ClientSession(headers=key(front)) as session:
            post = session.post(f"{front.url}/v1/messages", json=asked("messages", "hi", stream=False))
            request = asyncio.ensure_future(post)
            await until(lambda: engines["standard"].active()["waiting"] == 1)
            await asyncio.to_thread(engines["standard"].kill)
            await until(lambda: engines["longctx"].active()["waiting"] == 1)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
        assert await until(lambda: engines["longctx"].busy() == 0) < FREE_S

    for engine in engines.values():
        engine.order(wait_s=60)
    asyncio.run(ask())


ENDS = {
    "chat/completions": b"data: [DONE]",
    "completions": b"data: [DONE]",
    "responses": b"response.completed",
    "messages": b"message_stop",
}


async def ask_many(front: Gateway, engines: Engines) -> dict[str, int]:
    """Ask in a circle of routes until each tier was killed and started again; count how the requests ended."""
    ends = {"whole": 0, "told": 0, "failed": 0, "silent": 0}
    number = 0

    def kill() -> None:
        for engine in engines.values():
            engine.kill()
            engine.start()

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal number
        while number < REQUESTS or not killing.done():
            number += 1
            path, stream = PATHS[number % len(PATHS)], number % 3 == 0
            body = asked(path, f"request {number} {script(text='a b c', pause_s=0.005)}", stream=stream)
            async with session.post(f"{front.url}/v1/{path}", json=body) as answer:
                content = await answer.read()
            ends[judged(answer.status, content, path, stream=stream)] += 1

    killing = asyncio.create_task(asyncio.to_thread(kill))
    async with aiohttp.ClientSession(headers=key(front)) as session:
        await asyncio.gather(*(client(session) for _ in range(8)))
    await killing
    return ends


def judged(status: int, content: bytes, path: str, *, stream: bool) -> str:
    if status != 200:
        return "failed"
    if not stream or ENDS[path] in content:
        return "whole"
    return "told" if b'"error"' in content else "silent"


def test_no_request_fails_while_each_tier_is_killed_in_turn(front: Gateway, engines: Engines):
    """But a stream whose first words are out when its tier dies: that one is told."""
    ends = asyncio.run(ask_many(front, engines))
    assert (ends["failed"], ends["silent"]) == (0, 0), ends
    assert ends["whole"] >= REQUESTS - 3 * 8
