"""One real proxy over three stand-ins for engines, shared by the gateway's contract tests: a start costs seconds."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hub.client import Hub, running
from hub.model import make
from support.gateway import CONTEXTS, MASTER, Gateway, Upstream, until
from support.scripted import CONTEXTS as SCRIPTED
from support.scripted import ScriptedEngine


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Serve one small model from a Hub on loopback."""
    root = tmp_path_factory.mktemp("hub")
    make(root / "tiny-4bit")
    with running(root) as served:
        yield served


@pytest.fixture(scope="session")
def every_upstream() -> Iterator[dict[str, Upstream]]:
    made = {name: Upstream(name) for name in CONTEXTS}
    for one in made.values():
        one.start()
    yield made
    for one in made.values():
        one.kill()


@pytest.fixture(scope="session")
def proxy(every_upstream: dict[str, Upstream], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(
        home=tmp_path_factory.mktemp("gateway"),
        tiers=[one.tier() for one in every_upstream.values()],
        secrets={"LITELLM_MASTER_KEY": MASTER, "MLXQ_TIER_KEY": "sk-tier"},
    )
    made.start()
    yield made
    made.stop()


@pytest.fixture
def upstreams(proxy: Gateway, every_upstream: dict[str, Upstream]) -> Iterator[dict[str, Upstream]]:
    """Three healthy stand-ins that the proxy uses; whatever a test does to them is undone."""
    for name in every_upstream:
        until(lambda name=name: proxy.ask("say ready", name).headers.get("x-mlxq-tier") == name)
    yield every_upstream
    for one in every_upstream.values():
        one.send(signal.SIGCONT)
        one.start()
        if one.faulty:
            one.fault("")


@pytest.fixture(scope="session")
def every_engine() -> Iterator[dict[str, ScriptedEngine]]:
    made = {name: ScriptedEngine(name) for name in SCRIPTED}
    for engine in made.values():
        engine.start()
    yield made
    for engine in made.values():
        engine.kill()


@pytest.fixture(scope="session")
def front(every_engine: dict[str, ScriptedEngine], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Run one gateway over scripted engines, as on a Mac: there the engines themselves hold answers to a schema."""
    made = Gateway(
        home=tmp_path_factory.mktemp("front"),
        tiers=[engine.tier() for engine in every_engine.values()],
        secrets={"LITELLM_MASTER_KEY": MASTER, "MLXQ_TIER_KEY": "sk-tier"},
        backend="metal",
    )
    made.start()
    yield made
    made.stop()


@pytest.fixture
def engines(front: Gateway, every_engine: dict[str, ScriptedEngine]) -> Iterator[dict[str, ScriptedEngine]]:
    """Three healthy scripted engines behind `front`; whatever a test does to them is undone."""
    for engine in every_engine.values():
        engine.forget()
    yield every_engine
    for engine in every_engine.values():
        engine.send(signal.SIGCONT)
        engine.start()
        engine.order()
