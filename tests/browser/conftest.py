"""One Chromium for all tests; each test has a page process of its own over its own rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from support import page as support
from support import scene

from state.db import Database, open_database
from state.paths import Home

expect.set_options(timeout=15_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if not Path(support.CHROMIUM).exists():
        pytest.skip(f"{support.CHROMIUM} is not installed; CHROMIUM names another")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=support.CHROMIUM, args=support.FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def rows(home: Home) -> Iterator[Database]:
    """Give a database on the real clock, everything in it up and well."""
    db = open_database(home)
    scene.all_ready(db)
    scene.an_hour(db)
    scene.beat(db)
    yield db
    db.close()


@pytest.fixture
def served(home: Home, rows: Database) -> Iterator[support.Running]:
    with support.running(home) as running:
        yield running


@pytest.fixture
def view(chromium: Browser, served: support.Running) -> Iterator[Page]:
    """Give the page in a browser that came in by a link; a fault in its script fails the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda fault: faults.append(str(fault)))
    page.on("console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text else None)
    page.goto(served.link)
    page.wait_for_selector("#tiers .card")
    page.evaluate("document.title = 'not loaded again'")
    yield page
    assert faults == []
    context.close()
