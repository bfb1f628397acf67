"""Measure the page: `uv run python benchmarks/page.py [--idle 60]`.

One real page process over a real state.db, seen by the system's Chromium. Prints each figure with its bound.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx
from playwright.sync_api import Page, expect, sync_playwright

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

from support import page as support  # noqa: E402 (after the path is set)
from support import scene  # noqa: E402 (after the path is set)

from state.db import Database, open_database  # noqa: E402 (after the path is set)
from state.paths import Home  # noqa: E402 (after the path is set)

MIB = 2**20
ROUNDS = 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--idle", type=float, default=60.0, help="seconds of each idle measure")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home").make()
        db = open_database(home)
        scene.all_ready(db)
        scene.an_hour(db)
        scene.benchmarks(db)
        scene.beat(db)
        with support.running(home) as served:
            _measure(db, served, wanted.idle)


def _measure(db: Database, served: support.Running, idle_s: float) -> None:
    told("idle, no viewer: CPU s/min", _idle(served, idle_s), 0.01)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=support.CHROMIUM, args=support.FLAGS)
        page = browser.new_context().new_page()
        page.goto(served.link)
        page.wait_for_selector("#tiers .card")
        told("first paint, ms (median of 10)", _first_paint(page, served), 300)
        told("first load, KB", _size(served) / 1000, 100)
        told("a change seen, s (worst of 10)", _late(page, db), 1.0)
        told("idle, one viewer: CPU s/min", _idle(served, idle_s), 0.1)
        told("memory, one viewer, MiB", served.memory_bytes() / MIB, 60)
        browser.close()
    asyncio.run(_crowd(db, served))


def told(name: str, value: float, bound: float) -> None:
    print(f"{name:<40} {value:>9.3f}   bound {bound:<8g} {'ok' if value <= bound else 'MISSED'}", flush=True)


def _idle(served: support.Running, seconds: float) -> float:
    began = served.cpu_s()
    time.sleep(seconds)
    return (served.cpu_s() - began) * 60 / seconds


def _first_paint(page: Page, served: support.Running) -> float:
    times: list[float] = []
    for _ in range(ROUNDS):
        page.goto(served.url)
        page.wait_for_selector("#tiers .card")
        paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        page.wait_for_timeout(200)
        times.append(page.evaluate(f"() => {paint} ?? 0"))
    return statistics.median(times)


def _size(served: support.Running) -> int:
    client = served.client()
    names = ("/", "/static/page.css", "/static/page.js", "/static/mark.svg")
    return sum(len(client.get(name).content) for name in names)


def _late(page: Page, db: Database) -> float:
    page.evaluate(
        """() => { window.seen = {}; new MutationObserver(() => {
            const found = document.querySelector('#jobs').textContent.match(/(\\d+) %/);
            if (found) window.seen[found[1]] ??= Date.now() / 1000; })
            .observe(document.body, {subtree: true, childList: true, characterData: true}) }"""
    )
    held = scene.pull(db, 0.01)
    late: list[float] = []
    for step in range(2, 2 + ROUNDS):
        scene.advance(db, held, step / 100)
        at = time.time()
        expect(page.locator("#jobs .far")).to_contain_text(f"{step} %")
        late.append(page.evaluate("step => window.seen[step]", step) - at)
    return max(late)


async def _crowd(db: Database, served: support.Running) -> None:
    """Let 50 viewers follow a pull that moves twice a second, and print what that costs the machine."""
    cookies = served.client().cookies
    limits = httpx.Limits(max_connections=60)
    async with httpx.AsyncClient(
        base_url=served.url, cookies=cookies, limits=limits, timeout=30, trust_env=False
    ) as http:
        viewers = [asyncio.create_task(_follow(http)) for _ in range(50)]
        await asyncio.sleep(3)
        began, at = served.cpu_s(), time.monotonic()
        held = scene.pull(db, 0.5) if not db.value("SELECT count(*) FROM jobs WHERE state = 'running'") else None
        for step in range(20):
            if held:
                scene.advance(db, held, 0.5 + step / 100)
            else:
                scene.die(db, "fast")
                scene.ready(db, "fast")
            await asyncio.sleep(0.5)
        share = (served.cpu_s() - began) / (time.monotonic() - at)
        told("50 viewers of a moving pull: CPU share", share, 0.15)
        told("memory, 50 viewers, MiB", served.memory_bytes() / MIB, 80)
        for viewer in viewers:
            viewer.cancel()
        await asyncio.gather(*viewers, return_exceptions=True)


async def _follow(http: httpx.AsyncClient) -> None:
    async with http.stream("GET", "/events") as answer:
        async for _ in answer.aiter_bytes():
            pass


if __name__ == "__main__":
    main()
