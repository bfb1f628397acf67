"""What viewers are sent: the same bytes for all, the newest for the slow, nothing old for the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from support import scene

from mlxq.web.broadcaster import Broadcaster
from mlxq.web.html import SECTIONS, HtmlRenderer
from state.db import Database
from state.paths import Home

LIMIT_S = 60.0


async def until(viewer: AsyncGenerator[bytes], text: str) -> bytes:
    """Give the first thing a viewer is sent in which `text` stands."""
    async with asyncio.timeout(LIMIT_S):
        async for sent in viewer:
            if text.encode() in sent:
                return sent
    raise AssertionError("the stream ended")


def test_a_newcomer_is_sent_everything_and_a_change_is_spelt_once_for_all(home: Home, rows: Database):
    async def run() -> None:
        stage = Broadcaster(home, HtmlRenderer())
        async with aclosing(stage.watch()) as one, aclosing(stage.watch()) as two:
            first = await until(one, "event: tiers")
            await until(two, "event: tiers")
            assert [f"event: {name}\n" for name in SECTIONS if f"event: {name}\n".encode() not in first] == []
            scene.die(rows, "fast")
            seen = await until(one, "crashed, restarting")
            assert await until(two, "crashed, restarting") is seen
            assert b"event: bench" not in seen

    asyncio.run(run())


def test_a_slow_viewer_is_sent_the_newest_and_not_what_was_between(home: Home, rows: Database):
    async def run() -> None:
        stage = Broadcaster(home, HtmlRenderer())
        async with aclosing(stage.watch()) as quick, aclosing(stage.watch()) as slow:
            await until(quick, "event: tiers")
            await until(slow, "event: tiers")
            held = scene.pull(rows, 0.11)
            await until(quick, "0.1100")
            scene.advance(rows, held, 0.22)
            await until(quick, "0.2200")
            async with asyncio.timeout(LIMIT_S):
                sent = await anext(slow)
            assert b"0.2200" in sent
            assert b"0.1100" not in sent

    asyncio.run(run())


def test_who_comes_after_all_have_left_is_sent_nothing_old(home: Home, rows: Database):
    async def run() -> None:
        stage = Broadcaster(home, HtmlRenderer())
        async with aclosing(stage.watch()) as one:
            await until(one, "event: tiers")
        scene.die(rows, "fast")
        async with aclosing(stage.watch()) as two:
            async with asyncio.timeout(LIMIT_S):
                sent = [await anext(two) for _ in range(2)]
            assert b"crashed, restarting" in sent[1]
            assert b"event:" not in sent[0]

    asyncio.run(run())


def test_viewers_may_leave_at_any_moment(home: Home, rows: Database):
    """The thread that asks the engines was once left with rows that were closed under it, and took the page along."""

    async def run() -> None:
        stage = Broadcaster(home, HtmlRenderer())
        for number in range(60):
            async with aclosing(stage.watch()) as one:
                await anext(one)
                await asyncio.sleep(number % 10 / 1000)

    asyncio.run(run())
