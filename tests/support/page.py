"""A real page process over a real state.db, and the way into it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page
from support import loopback
from support.ports import free_port

from mlxq.web.auth import link
from state import secrets
from state.paths import Home

HURRIED = "from mlxq.web import __main__ as program, broadcaster; broadcaster.GAP_S = 0.005; program.main()"
"""An hour's paintings fit into minutes."""
COUNTED = """
import os
from mlxq.web import __main__ as program
from mlxq.web.broadcaster import Broadcaster
from state.db import Database
steps = os.open(os.path.join(os.environ["MLXQ_HOME"], "steps"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def counted(method):
    def step(*arguments, **named):
        os.write(steps, b"!")
        return method(*arguments, **named)
    return step
for owner, names in ((Broadcaster, ("_rows_changed", "_wait_for_news")), (Database, ("rows", "row", "value"))):
    for name in names:
        setattr(owner, name, counted(getattr(owner, name)))
program.main()
"""
"""Counts its queries, and what wakes it for its viewers."""
COUNT = """() => { window.seen = 0; new MutationObserver(() => window.seen++)
    .observe(document.querySelector('#jobs'), {subtree: true, attributes: true, attributeFilter: ['value']}) }"""
"""Counts in window.seen how often a bar moves."""
VIEWERS = Path(__file__).with_name("viewers.py")
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--js-flags=--expose-gc"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@dataclass(frozen=True)
class Size:
    """What an open page takes once all that can be collected is collected."""

    heap: int
    """Bytes of live objects in the tab."""
    nodes: int
    """Nodes that the tab holds, those that hang nowhere among them."""
    process: int
    """Bytes of the page's process."""


@dataclass
class Running:
    """One page process."""

    home: Home
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        return secrets.read(self.home.secrets)[secrets.PAGE]

    @property
    def link(self) -> str:
        """Make a new one-time link."""
        return f"{self.url}/enter?link={link(self.key, time.time())}"

    def client(self) -> httpx.Client:
        """Give a client that has come in by a link."""
        client = loopback.client(base_url=self.url, timeout=loopback.LIMIT_S)
        client.get(self.link).raise_for_status()
        return client

    @contextmanager
    def viewers(self) -> Generator[Callable[[int], None]]:
        """Give what has so many viewers follow the page from now on; they are a process of their own."""
        cookie = "; ".join(f"{name}={value}" for name, value in self.client().cookies.items())
        argv = [sys.executable, str(VIEWERS), str(self.port), cookie]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            told, said = process.stdin, process.stdout

            def look(number: int) -> None:
                print(number, file=told, flush=True)
                assert said.readline() == "there\n", "the viewers lost the page"

            yield look

    def memory_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def size(self, view: Page) -> Size:
        """Measure an open page."""
        session = view.context.new_cdp_session(view)
        for _ in range(2):
            session.send("HeapProfiler.collectGarbage")
        session.send("Performance.enable")
        told = {each["name"]: int(each["value"]) for each in session.send("Performance.getMetrics")["metrics"]}
        session.detach()
        return Size(told["JSHeapUsedSize"], told["Nodes"], self.memory_bytes())

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def steps(self) -> int:
        """Return how often a page that is COUNTED was woken, or asked its database."""
        return (self.home.root / "steps").stat().st_size


@contextmanager
def opened(chromium: Browser, served: Running) -> Generator[Page]:
    """Open the page by a link in a browser of its own; a fault in its script is raised at the end."""
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


@contextmanager
def running(home: Home, code: str = "") -> Generator[Running]:
    """Start the page's real program, or `code` in its place, and end it."""
    port = free_port()
    program = ["-c", code] if code else ["-m", "mlxq.web"]
    process = subprocess.Popen(
        [sys.executable, "-P", *program, str(port)], env={**os.environ, "MLXQ_HOME": str(home.root)}
    )
    try:
        _until_it_answers(process, port)
        yield Running(home, port, process)
    finally:
        process.terminate()
        process.wait(60)


def _until_it_answers(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + 90
    while time.monotonic() < until:
        assert process.poll() is None, "the page ended at once"
        try:
            loopback.get(f"http://127.0.0.1:{port}/health").raise_for_status()
        except httpx.TransportError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("the page does not answer")
