"""The launcher with the real vllm-mlx and the built-in model: what its flags cannot say, said."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.ports import free_port

from state.stack import Tier
from tasks.engines import installed, model_facts, serving
from tasks.engines.base import Served
from tasks.supervision import probe
from tasks.system import memory, process
from tasks.system.process import How, Spawned
from tasks.weights import builtin

pytestmark = pytest.mark.slow

KEY = "sk-mlxq-contract"
RESIDENT = 350 * 2**20
SECRET = "my landlord is called Ferdinand"


class Engine:
    """One engine process of the built-in model."""

    def __init__(self, home: Path, weights: Path) -> None:
        self.port = free_port()
        self.tier = Tier(
            name="fast",
            model="smollm2-135m",
            quant="int4",
            source=builtin.SOURCE,
            port=self.port,
            context=8192,
            memory_bytes=2**30,
            cache_bytes=64 * 2**20,
            concurrency=4,
            weights=str(weights),
        )
        self.home = home
        self.log = home / "fast.log"
        self.started_s = 0.0
        self.spawned: Spawned | None = None

    def start(self) -> None:
        served = Served(self.tier, model_facts.read(Path(self.tier.weights)), str(self.home), KEY, "cpu")
        launch = serving.launch_with(served, installed.own())
        began = time.monotonic()
        self.spawned = process.spawn(launch.argv, launch.environment(1), self.log, self.home, "fast")
        while not probe.listening(self.port):
            assert process.alive(self.spawned.engine), self.log.read_text()
            time.sleep(0.02)
        self.started_s = time.monotonic() - began

    @property
    def identity(self) -> process.Identity:
        assert self.spawned
        return self.spawned.engine

    def post(self, **body: object) -> httpx.Response:
        return httpx.post(self.url, json=self.body(**body), headers=self.headers, timeout=120)

    def body(self, text: str = "Hello", **more: object) -> dict[str, object]:
        return {"model": "fast", "messages": [{"role": "user", "content": text}], **more}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/chat/completions"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builtin.ensure(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def engine(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made = Engine(tmp_path_factory.mktemp("engine"), weights)
    made.start()
    yield made
    process.stop(made.identity, 1)


def test_it_serves_the_tier_by_its_name(engine: Engine):
    assert probe.models(engine.port, KEY) == {"fast"}
    assert probe.one_token(engine.port, KEY, "fast", 60) < 60
    assert engine.post(max_tokens=4).json()["model"] == "fast"


def test_it_asks_for_the_key(engine: Engine):
    assert probe.ask(engine.port, "/v1/models", "wrong", 5).status == 401
    assert probe.ask(engine.port, "/v1/models", "", 5).status == 401


def test_it_is_small_and_quick(engine: Engine):
    """The figures: at most 350 MB resident, after about 4 s; without torch."""
    resident = memory.resident(engine.identity)
    maps = Path(f"/proc/{engine.identity.pid}/maps")
    print(f"start {engine.started_s:.1f} s, resident {resident / 2**20:.0f} MiB")

    assert resident <= RESIDENT
    assert not maps.exists() or "torch" not in maps.read_text()


def test_the_key_is_in_no_command_line(engine: Engine):
    listing = subprocess.run(["ps", "-A", "-ww", "-o", "args"], capture_output=True, text=True, check=True)

    assert f"--port {engine.port}" in listing.stdout
    assert KEY not in listing.stdout
    assert KEY not in engine.log.read_text()


def test_what_users_write_stays_out_of_the_log(engine: Engine):
    before = engine.log.read_text()
    engine.post(text=SECRET, max_tokens=4)

    assert SECRET not in engine.log.read_text()
    assert engine.log.read_text() == before


def test_its_status_shows_progress(engine: Engine):
    """Steps and tokens grow while it works, and it is idle afterwards: what the watchdog judges by."""
    before = probe.status(engine.port, KEY)
    engine.post(max_tokens=8, temperature=0)
    after = probe.status(engine.port, KEY)

    assert after.steps_executed > before.steps_executed
    assert after.completion_tokens >= before.completion_tokens + 4
    assert (after.num_running, after.num_waiting, after.loaded) == (0, 0, True)


def test_a_prompt_over_the_limit_of_answers_is_refused(engine: Engine):
    assert engine.post(max_tokens=8193).status_code == 400


def test_its_drain_has_an_end(weights: Path, tmp_path: Path):
    """A 4000-token answer would hold the engine for minutes; the limit here is for a slow machine."""
    engine = Engine(tmp_path, weights)
    engine.start()
    flowing = threading.Event()

    def read() -> None:
        wanted = engine.body("Tell a very long story.", max_tokens=4000, stream=True)
        try:
            with httpx.stream("POST", engine.url, json=wanted, headers=engine.headers, timeout=60) as answer:
                for _ in answer.iter_lines():
                    flowing.set()
        except httpx.TransportError:
            return

    reader = threading.Thread(target=read)
    reader.start()
    assert flowing.wait(60)
    stopped = process.stop(engine.identity, 30)
    reader.join(10)
    print(f"drained in {stopped.seconds:.1f} s")

    assert stopped.outcome == How.ASKED
    assert process.wait(engine.spawned.shim, 5)
    assert process.exit_status(tmp_path, "fast", engine.identity) == 143


def test_the_saved_prompts_lie_under_the_home(weights: Path, tmp_path: Path):
    """They hold what users wrote, so that they must be where mlxq can purge them."""
    engine = Engine(tmp_path, weights)
    engine.start()
    engine.post(text="word " * 300, max_tokens=2)
    process.stop(engine.identity, 30)
    saved = [file for file in (tmp_path / "cache" / "fast").rglob("*") if file.is_file()]

    assert any(file.name == "index.json" for file in saved)
    assert json.loads(next(file for file in saved if file.name == "index.json").read_text())
    assert all(file.stat().st_mode & 0o077 == 0 for file in saved)
