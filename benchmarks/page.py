"""Measure the page: `uv run python benchmarks/page.py [--idle 60]`.

One real page process over a real state.db, seen by the system's Chromium. Prints each figure with its bound.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import gateway
import gateways
from playwright.sync_api import Page, expect, sync_playwright

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

from support import page as support  # noqa: E402 (after the path is set)
from support import scene  # noqa: E402 (after the path is set)

from state import ledger  # noqa: E402 (after the path is set)
from state.db import Database, open_database  # noqa: E402 (after the path is set)
from state.paths import Home  # noqa: E402 (after the path is set)

MIB = 2**20
ROUNDS = 10
PAINTS = 30
"""A first paint comes with the page's beginning or with all of it, whichever the browser is ready for."""
ROUND_S = 2.0
HOUR_UPDATES = 3600
HOUR_PAUSE_S = 0.02
VIEWERS = 50
PROGRESS_S = 0.4
"""Progress of a job is written at most this often (tasks/executor.py)."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--idle", type=float, default=60.0, help="seconds of each idle measure")
    parser.add_argument("--rounds", type=int, default=25, help="pairs of rounds without and with 50 viewers")
    parser.add_argument("--only", choices=("page", "crowd", "hour"))
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder) / "home").make()
        db = open_database(home)
        scene.all_ready(db)
        scene.an_hour(db)
        scene.benchmarks(db)
        scene.beat(db)
        with support.running(home) as served:
            if wanted.only in (None, "page"):
                _measure(db, served, wanted.idle)
            if wanted.only in (None, "crowd"):
                _crowd(home, served, wanted.rounds)
        if wanted.only in (None, "hour"):
            _hour(home, db)


def _measure(db: Database, served: support.Running, idle_s: float) -> None:
    told("idle, no viewer: CPU s/min", _idle(served, idle_s), 0.01)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=support.CHROMIUM, args=support.FLAGS)
        page = browser.new_context().new_page()
        page.goto(served.link)
        page.wait_for_selector("#tiers .card")
        told("first paint, ms (median of 30)", _first_paint(page, served), 150)
        told("first load, KB", _size(served) / 1000, 60)
        told("a change seen, s (worst of 10)", _late(page, db), 0.5)
        told("idle, one viewer: CPU s/min", _idle(served, idle_s), 0.1)
        told("memory, one viewer, MiB", served.memory_bytes() / MIB, 60)
        browser.close()


def _hour(home: Home, db: Database) -> None:
    """Show a tab the changes of an hour, one a second, as fast as the machine can: what is kept must not grow."""
    with support.running(home, support.HURRIED) as served, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=support.CHROMIUM, args=support.FLAGS)
        view = browser.new_context().new_page()
        view.goto(served.link)
        held = scene.pull(db)
        expect(view.locator("#jobs progress")).to_be_visible()
        scene.bustle(db, held, range(1, HOUR_UPDATES // 10), HOUR_PAUSE_S)
        before = served.size(view)
        view.evaluate(support.COUNT)
        scene.bustle(db, held, range(HOUR_UPDATES // 10, HOUR_UPDATES * 11 // 10 + 1), HOUR_PAUSE_S)
        expect(view.locator("#jobs progress")).to_have_attribute(
            "value", f"{HOUR_UPDATES * 11 // 10 % 1000 / 1000:.4f}"
        )
        after = served.size(view)
        told("an hour's updates: rows changed", HOUR_UPDATES)
        told("  of them painted in the tab", view.evaluate("window.seen"))
        told("  the tab's live objects grew by, KB", (after.heap - before.heap) / 1000, 200)
        told("  the tab's nodes grew by", after.nodes - before.nodes, 200)
        told("  the page's process grew by, MiB", (after.process - before.process) / MIB, 2)
        told("  the page's process, MiB", after.process / MIB, 60)
        browser.close()


def told(name: str, value: float, bound: float | None = None) -> None:
    verdict = "" if bound is None else f"   bound {bound:<8g} {'ok' if value <= bound else 'MISSED'}"
    print(f"{name:<44} {value:>9.3f}{verdict}", flush=True)


def _idle(served: support.Running, seconds: float) -> float:
    began = served.cpu_s()
    time.sleep(seconds)
    return (served.cpu_s() - began) * 60 / seconds


def _first_paint(page: Page, served: support.Running) -> float:
    times: list[float] = []
    for _ in range(PAINTS):
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
    ledger.succeed(db, held, {})
    return max(late)


@contextmanager
def moving(home: Home) -> Generator[None]:
    """Let a pull move as often as a job reports, as a worker would write it."""
    over = threading.Event()
    mine = open_database(home)
    held = scene.pull(mine)

    def move() -> None:
        db = open_database(home)
        step = 0
        while not over.wait(PROGRESS_S):
            step += 1
            scene.advance(db, held, step % 100 / 100)
        db.close()

    mover = threading.Thread(target=move)
    mover.start()
    try:
        yield
    finally:
        over.set()
        mover.join()
        ledger.succeed(mine, held, {})
        mine.close()


@dataclass
class Load:
    """The gateway under load, in rounds without and with viewers."""

    rates: list[float] = field(default_factory=list)
    """Requests a second."""
    costs: list[float] = field(default_factory=list)
    """The gateway's CPU seconds a request."""
    shares: list[float] = field(default_factory=list)
    """The page's CPU seconds a second."""

    def add(self, way: gateways.Way, served: support.Running) -> None:
        began, at = served.cpu_s(), time.monotonic()
        rate, cost = asyncio.run(gateway.throughput(way, ROUND_S))
        self.shares.append((served.cpu_s() - began) / (time.monotonic() - at))
        self.rates.append(rate)
        self.costs.append(cost)


def _crowd(home: Home, served: support.Running, rounds: int) -> None:
    """Load the gateway before stand-in engines while no one and while fifty look, in turns."""
    loads = {0: Load(), VIEWERS: Load()}
    engines = gateways.engines()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            gateways.mlxq(gateways.Setup(engines, Path(folder), peers=Path(folder))) as way,
            moving(home),
            served.viewers() as look,
        ):
            asyncio.run(gateway.ready(way))
            asyncio.run(gateway.throughput(way, 3 * ROUND_S))
            for number in range(rounds):
                for viewers in sorted(loads, reverse=bool(number % 2)):
                    look(viewers)
                    loads[viewers].add(way, served)
            told("memory, 50 viewers came and went, MiB", served.memory_bytes() / MIB, 60)
    finally:
        for engine in engines.values():
            engine.kill()
    _compare(loads[0], loads[VIEWERS])


def _compare(alone: Load, watched: Load) -> None:
    cores = os.cpu_count() or 1
    share = statistics.median(watched.shares)
    told("gateway, requests/s, no viewer", statistics.median(alone.rates))
    told("gateway, requests/s, 50 viewers", statistics.median(watched.rates))
    _tell_pairs("gateway slower, %", [1 - new / old for old, new in zip(alone.rates, watched.rates, strict=True)], 2)
    told("gateway, CPU ms a request, no viewer", statistics.median(alone.costs) * 1000)
    told("gateway, CPU ms a request, 50 viewers", statistics.median(watched.costs) * 1000)
    _tell_pairs("gateway's CPU a request, % more", [b / a - 1 for a, b in zip(alone.costs, watched.costs, strict=True)])
    told("the page's CPU, % of one core", share * 100)
    told(f"the page's CPU, % of all {cores} cores", share / cores * 100, 2)


def _tell_pairs(name: str, ratios: list[float], bound: float | None = None) -> None:
    """Print the median over the pairs of rounds, and how far the machine's noise spreads them."""
    low, middle, high = (100 * each for each in statistics.quantiles(ratios))
    told(f"{name} (median of {len(ratios)} pairs)", middle, bound)
    print(f"  half of the pairs lie between {low:.1f} and {high:.1f} %")


if __name__ == "__main__":
    main()
