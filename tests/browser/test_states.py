"""The page in each state, at three widths, light and dark: axe finds nothing, and nothing is cut off.

PICTURES names a folder that gets a picture of each of the 36 cells.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect
from support import page as support
from support import scene
from support.status_server import REQUESTS, engine

from state.db import Database, open_database
from state.paths import Home

WIDTHS = (390, 820, 1440)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
SIGNS = {
    "idle": ("#now", "No requests running."),
    "load": ("#now tbody", "generation"),
    "killed": ("#tiers", "crashed, restarting"),
    "failed": ("#tiers", "crashed, needs attention"),
    "pulling": ("#jobs", "61 MB/s, 51s left"),
    "stop_all": ("#head", "Start all"),
}
"""State -> where the page shows it."""
STICKING_OUT = """[...document.querySelectorAll('.card')].flatMap(card => [...card.querySelectorAll('button, td, p')]
    .filter(part => part.getBoundingClientRect().right > card.getBoundingClientRect().right - 8)
    .map(part => part.innerText))"""


@pytest.fixture(scope="module")
def busy() -> threading.Event:
    """Set while the engines have requests."""
    return threading.Event()


@pytest.fixture(scope="module")
def shared(busy: threading.Event, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    home = Home(tmp_path_factory.mktemp("page") / "home").make()
    with ExitStack() as engines:
        ports = {name: engines.enter_context(engine(name, busy)) for name in REQUESTS}
        db = open_database(home)
        scene.set_up(db, ports)
        for name, *_ in scene.TIERS:
            scene.ready(db, name)
        scene.ready(db, "gateway")
        scene.ready(db, "page")
        scene.an_hour(db)
        scene.beat(db)
        yield db
        db.close()


@pytest.fixture(scope="module")
def view(chromium: Browser, shared: Database) -> Iterator[Page]:
    with support.running(shared.home) as running:
        context = chromium.new_context()
        page = context.new_page()
        page.goto(running.link)
        page.wait_for_selector("#tiers .card")
        yield page
        context.close()


@pytest.mark.parametrize("state", scene.STATES, ids=lambda state: state.__name__)
def test_axe_finds_nothing_in_any_state(
    state: scene.State, view: Page, shared: Database, busy: threading.Event
) -> None:
    if state is scene.load:
        busy.set()
    state(shared)
    where, text = SIGNS[state.__name__]
    expect(view.locator(where)).to_contain_text(text)
    if state is scene.failed:
        view.locator("#jobs li summary").first.click()
        expect(view.locator("#jobs h4").first).to_be_visible()
    found: dict[str, str] = {}
    for scheme, width in product(SCHEMES, WIDTHS):
        view.set_viewport_size({"width": width, "height": 900})
        view.emulate_media(color_scheme=scheme)
        if pictures := os.environ.get("PICTURES"):
            view.screenshot(path=f"{pictures}/{state.__name__}-{width}-{scheme}.png", full_page=True)
        report = Axe().run(view)
        if report.violations_count:
            found[f"{width} {scheme}"] = report.generate_report()
        assert view.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{width} scrolls sideways"
        assert view.evaluate(STICKING_OUT) == [], f"at {width} px something sticks out of its card"
    assert found == {}
