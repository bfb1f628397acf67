"""One Chromium and one page process for all tests of a file; each test has rows and a tab of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from support import page as support
from support import scene

from state.db import Database, open_database
from state.paths import Home

expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if not Path(support.CHROMIUM).exists():
        pytest.skip(f"{support.CHROMIUM} is not installed; CHROMIUM names another")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=support.CHROMIUM, args=support.FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[support.Running]:
    home = Home(tmp_path_factory.mktemp("page") / "home").make()
    open_database(home).close()
    with support.running(home, support.COUNTED) as running:
        yield running


@pytest.fixture
def rows(served: support.Running) -> Iterator[Database]:
    """Give the page's database on the real clock, with nothing of an earlier test, everything in it up and well."""
    db = open_database(served.home)
    with db.transaction():
        db.run("PRAGMA defer_foreign_keys = ON")
        for row in db.rows("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '%sqlite%'"):
            db.run(f"DELETE FROM {row['name']}")
    scene.all_ready(db)
    scene.an_hour(db)
    scene.beat(db)
    yield db
    db.close()


@pytest.fixture
def view(chromium: Browser, served: support.Running, rows: Database) -> Iterator[Page]:
    """Give the page in a browser that came in by a link; a fault in its script fails the test."""
    with support.opened(chromium, served) as page:
        yield page
