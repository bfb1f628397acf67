"""The gateway over a real vllm-mlx with a real model: what a stand-in could only pretend."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from support import loopback
from support.gateway import Gateway, Upstream

from tasks.engines import installed, model_facts, serving
from tasks.engines.base import Served

pytestmark = pytest.mark.slow
FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def engine(
    every_upstream: dict[str, Upstream], builtin_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Upstream]:
    """Yield a real engine in the place of the stand-in for `standard`."""
    home = tmp_path_factory.mktemp("engine")
    made = Upstream("standard")
    tier = replace(made.tier(), weights=str(builtin_model), concurrency=2, context=2048)
    served = Served(tier, model_facts.read(Path(tier.weights)), str(home), "sk-tier", "cpu")
    launch = serving.launch_with(served, installed.own())
    argv, environment = launch.argv, launch.environment(1)
    with (home / "log").open("ab") as log:
        made.process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while not _healthy(made.url):
        assert made.process.poll() is None, (home / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield made
    made.send(signal.SIGCONT)
    made.kill()


def _healthy(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return loopback.get(f"{url}/health", timeout=2).is_success
    return False


@pytest.fixture(scope="module")
def gateway(
    proxy: Gateway, engine: Upstream, every_upstream: dict[str, Upstream], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    tiers = [replace(engine.tier(), context=2048), every_upstream["longctx"].tier()]
    made = Gateway(home=tmp_path_factory.mktemp("gateway"), tiers=tiers, secrets=proxy.secrets)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def client(gateway: Gateway) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{gateway.url}/v1",
        api_key=gateway.secrets["LITELLM_MASTER_KEY"],
        max_retries=0,
        http_client=loopback.client(),
    )


def said(client: openai.OpenAI, **more: Any) -> Any:
    asked: dict[str, Any] = {"model": "standard", "messages": FRANCE, "temperature": 0, "max_tokens": 24, **more}
    return client.chat.completions.create(**asked)


@pytest.mark.parametrize("wrong", [{"temperature": "hot"}, {"max_tokens": 2**31}])
def test_a_field_the_engine_refuses_is_the_callers_error(client: openai.OpenAI, wrong: dict[str, Any]):
    """LiteLLM alone would make the engine's 422 into an empty 200."""
    with pytest.raises(openai.BadRequestError):
        said(client, **wrong, extra_body={"disable_fallbacks": True})


def test_a_hung_engine_is_left_in_time(gateway: Gateway, client: openai.OpenAI, engine: Upstream):
    """No heartbeat for twenty seconds: the stream is answered by the next tier."""
    engine.suspend()
    began = time.monotonic()
    try:
        text = gateway.ask("say still here", stream=True).text
    finally:
        engine.send(signal.SIGCONT)
    assert "still" in text
    assert time.monotonic() - began < 100  # its answer would take for ever


def test_an_engine_killed_in_its_answer_is_replaced(gateway: Gateway, client: openai.OpenAI, engine: Upstream):
    """Last in this file: the watchdog's kill is what makes the gateway try the next tier."""
    engine.suspend()
    asked = subprocess.Popen(
        [sys.executable, "-c", f"import time, os; time.sleep(2); os.kill({engine.process and engine.process.pid}, 9)"]
    )
    assert gateway.ask("say still here").headers["x-mlxq-tier"] == "longctx"
    assert asked.wait() == 0
