"""Take the README's pictures of the page and of `mlxq top`: `uv run python tests/browser/pictures.py`, into docs/img.

The rows are those of the tests' scene; a small server answers for the engines, so that requests are under way.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import expect, sync_playwright
from rich.console import Console

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "img"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support import page as support  # noqa: E402 (after the path is set)
from support import scene  # noqa: E402 (after the path is set)
from support.status_server import REQUESTS, engine  # noqa: E402 (after the path is set)

from mlxq.top import draw  # noqa: E402 (after the path is set)
from mlxq.web import engine_status, snapshot  # noqa: E402 (after the path is set)
from state import service, settings  # noqa: E402 (after the path is set)
from state.db import Database, open_database  # noqa: E402 (after the path is set)
from state.paths import Home  # noqa: E402 (after the path is set)

WIDTHS = {"phone": 390, "tablet": 820, "wide": 1440}


def a_day(db: Database, back: Any, ports: dict[str, int]) -> None:
    """Let a day pass: a start, a death, a failed job, a pull under way."""
    back(5400)
    scene.set_up(db, ports)
    for name, _, _, _, size, _ in scene.TIERS:
        scene.ready(db, name, size * 0.82)
        back(back.s - 9)
    scene.ready(db, "gateway", 0.6)
    scene.ready(db, "page", 0.05)
    back(3300)
    scene.succeed(db, "pull", source="hub:mlx-community/qwen3.5-27b")
    back(2800)
    scene.succeed(db, "smoke_test")
    back(1900)
    scene.die(db, "standard", 0)
    scene.begin(db, "standard")
    back(1889)
    now = db.now()
    service.apply(db, "standard", service.ServiceEvent.BECAME_READY, ready_at=now, memory_bytes=int(13.9 * scene.GIB))
    back(700)
    scene.fail(db, "longctx")
    back(12)
    scene.die(db, "longctx", 40)
    scene.benchmarks(db)
    scene.pull(db)
    back(0)
    scene.an_hour(db)
    scene.a_week(db)
    settings.write(db.home, "openrouter-key", "sk-or-none")
    scene.beat(db)


class Back:
    """A clock that is so many seconds behind."""

    s = 0.0

    def __call__(self, seconds: float) -> None:
        self.s = seconds

    def now(self) -> float:
        return time.time() - self.s


def main() -> None:
    back = Back()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as engines:
        home = Home(Path(folder) / "home").make()
        db = open_database(home, clock=back.now)
        a_day(db, back, {name: engines.enter_context(engine(name)) for name in REQUESTS})
        IMAGES.mkdir(exist_ok=True)
        terminal(db)
        with support.running(home) as served:
            shoot(served)


def terminal(db: Database) -> None:
    """Draw what `mlxq top` shows, as an SVG that asks no other host for its letters."""
    console = Console(record=True, width=118, file=io.StringIO(), highlight=False)
    console.print(draw.draw(snapshot.take(db, engine_status.ask(service.listing(db), "")), console.width))
    drawn = console.export_svg(title="mlxq top", unique_id="top")
    (IMAGES / "top.svg").write_text(re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL))


def shoot(served: support.Running) -> None:
    """Take each width in each scheme."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=support.CHROMIUM, args=support.FLAGS)
        for scheme in ("light", "dark"):
            for name, width in WIDTHS.items():
                context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
                page = context.new_page()
                page.goto(served.link)
                page.wait_for_selector("#now tbody tr")
                expect(page.locator("time[data-ago]").first).to_contain_text("ago")
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
                shot = Image.open(io.BytesIO(page.screenshot(full_page=True)))
                shot.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(
                    IMAGES / f"page-{name}-{scheme}.png", optimize=True
                )
                context.close()
        browser.close()


if __name__ == "__main__":
    main()
