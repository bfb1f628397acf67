"""The page over the real thing: a worker, a vllm-mlx engine and the page, each a process of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect
from support import hybrid_model, loopback
from support.ports import free_port

from mlxq.web.auth import link
from state import event, ledger, secrets, service, settings, stack
from state.db import Database, open_database
from state.paths import Home
from state.stack import Engine
from tasks import kinds
from tasks.supervision import probe
from tasks.weights import builtin

pytestmark = pytest.mark.slow
START_MS = 180_000


@pytest.fixture(scope="module")
def real(empty_database: Path, builtin_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """Give the rows of a worker that was asked for the page; the tests bring its one tier up. No gateway."""
    home = Home(tmp_path_factory.mktemp("stack") / "home").make()
    shutil.copyfile(empty_database, home.database)
    db = open_database(home)
    weights = hybrid_model.make("plain", tmp_path_factory.mktemp("models") / "plain", builtin_model)
    tier = Engine(
        name="fast", model="smollm2-135m", quant="int4", source=builtin.SOURCE, port=free_port(), context=8192,
        memory_bytes=2**30, cache_bytes=64 * 2**20, concurrency=2, weights=str(weights),
    )  # fmt: skip
    stack.replace(db, [tier])
    settings.write(home, "page-port", free_port())
    world = {name: text for name, text in os.environ.items() if not name.startswith("MLXQ_")}
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "mlxq", "worker"],
        env=world | {"MLXQ_HOME": str(home.root)},
        stderr=home.log("worker").open("ab"),
    )
    ledger.enqueue(db, kinds.new("start", {"service": "page"}))
    yield db
    for name in ("fast", "page"):
        ledger.enqueue(db, kinds.new("stop", {"service": name}))
    _until(lambda: all(one.pid is None for one in service.listing(db)))
    worker.terminate()
    worker.wait(30)
    db.close()


@pytest.fixture
def view(chromium: Browser, real: Database) -> Iterator[Page]:
    ledger.enqueue(real, kinds.new("start", {"service": "fast"}))
    _until(lambda: (one := service.find(real, "page")) is not None and one.state == "ready")
    key = secrets.read(real.home.secrets)[secrets.PAGE]
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{service.get(real, 'page').port}/enter?link={link(key, time.time())}")
    page.wait_for_selector("#tiers")
    page.evaluate("document.title = 'not loaded again'")
    yield page
    context.close()


def test_a_killed_engine_is_seen_to_come_back_and_a_request_to_run(view: Page, real: Database):
    card = view.locator("article[data-key=fast]")
    expect(card.locator(".state strong")).to_have_text("healthy", timeout=START_MS)
    expect(card.locator("dd").first).to_have_text("0", timeout=60_000)

    with loopback.stream("POST", **_request(real.home, service.get(real, "fast").port, 8000, stream=True)):
        expect(view.locator("#now tbody tr")).to_have_count(1, timeout=60_000)
        expect(view.locator("#now tbody")).to_contain_text("fast")
    expect(view.locator("#now")).to_contain_text("No requests running.", timeout=60_000)

    pid, restarts = service.get(real, "fast").pid, service.get(real, "fast").restarts
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    expect(view.locator("#why")).to_contain_text("Killed by SIGKILL.", timeout=60_000)
    expect(card.locator(".state strong")).to_have_text("healthy", timeout=START_MS)
    expect(card.locator("dl")).to_contain_text(f"restarts{restarts + 1}")
    assert service.get(real, "fast").pid != pid
    assert view.title() == "not loaded again"


def test_a_drained_tier_ends_its_answer_first_and_takes_no_other(view: Page, real: Database):
    card = view.locator("article[data-key=fast]")
    expect(card.locator(".state strong")).to_have_text("healthy", timeout=START_MS)
    before, deaths = service.get(real, "fast"), _deaths(real)
    port = before.port
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(_ask, real.home, port, 4000)  # still under way when the engine has closed its port
        expect(view.locator("#now tbody tr")).to_have_count(1, timeout=60_000)
        view.get_by_role("button", name="Drain fast").click()
        view.locator("dialog [data-sure]").click()
        expect(card.locator(".state strong")).to_contain_text("draining", timeout=60_000)
        _until(lambda: not probe.listening(port))
        assert not asked.done()
        answer = asked.result()
    assert answer.json()["choices"][0]["finish_reason"] in {"stop", "length"}
    expect(card.locator(".state strong")).to_have_text("stopped", timeout=60_000)
    expect(view.locator("#jobs .record")).to_contain_text("drain fast")
    expect(card.locator("dl")).to_contain_text(f"restarts{before.restarts}")
    assert _deaths(real) == deaths


def _deaths(db: Database) -> int:
    return sum(each.name == "exited" for each in event.of_service(db, "fast"))


def _ask(home: Home, port: int, most: int) -> httpx.Response:
    return loopback.post(**_request(home, port, most))


def _request(home: Home, port: int, most: int, *, stream: bool = False) -> dict[str, Any]:
    """Return a request for `most` tokens, directly to the engine, which generates about 300 tokens/s.

    While no request is running, the page polls the engines every 5 s (mlxq/web/broadcaster.py: IDLE_S), and passes over
    one that does not answer in half a second.
    """
    words = [{"role": "user", "content": "Tell a long story."}]
    body = {"model": "fast", "max_tokens": most, "messages": words, "stream": stream}
    headers = {"Authorization": f"Bearer {secrets.read(home.secrets)[secrets.TIER]}"}
    return {"url": f"http://127.0.0.1:{port}/v1/chat/completions", "json": body, "headers": headers, "timeout": 180}


def _until(true: Callable[[], object], limit_s: float = 180.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
