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
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from tasks.engines import installed, model_facts, serving
from tasks.engines.base import Served
from tasks.weights import builtin

if TYPE_CHECKING:
    from conftest import Gateway, Upstream

pytestmark = pytest.mark.slow
FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {"name": "n", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


@pytest.fixture(scope="module")
def engine(every_upstream: dict[str, Upstream], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    """Yield a real engine in the place of the stand-in for `standard`."""
    home = tmp_path_factory.mktemp("engine")
    made = type(every_upstream["fast"])("standard")
    tier = replace(made.tier(), weights=str(builtin.ensure(home / "models")), concurrency=2, context=2048)
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
        return httpx.get(f"{url}/health", timeout=2).is_success
    return False


@pytest.fixture(scope="module")
def gateway(
    proxy: Gateway, engine: Upstream, every_upstream: dict[str, Upstream], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    tiers = [replace(engine.tier(), context=2048), every_upstream["longctx"].tier()]
    made = type(proxy)(home=tmp_path_factory.mktemp("gateway"), tiers=tiers, secrets=proxy.secrets)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def client(gateway: Gateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.secrets["LITELLM_MASTER_KEY"], max_retries=0)


def said(client: openai.OpenAI, **more: Any) -> Any:
    asked: dict[str, Any] = {"model": "standard", "messages": FRANCE, "temperature": 0, "max_tokens": 24, **more}
    return client.chat.completions.create(**asked)


def stops(engine: Upstream) -> None:
    deadline = time.monotonic() + 10
    while httpx.get(f"{engine.url}/v1/status", headers={"Authorization": "Bearer sk-tier"}).json()["num_running"]:
        assert time.monotonic() < deadline, "the engine still works on an answer whose client left"
        time.sleep(0.1)


def test_a_stop_string_ends_a_real_answer_and_its_work(client: openai.OpenAI, engine: Upstream):
    """Text and usage are those of the whole answer, cut; the engine does not continue behind it."""
    whole = said(client)
    text = whole.choices[0].message.content
    assert "Paris" in text
    cut = said(client, stop=["Paris"], max_tokens=2000)
    assert cut.choices[0].message.content == text.partition("Paris")[0]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.prompt_tokens == whole.usage.prompt_tokens
    assert 0 < cut.usage.completion_tokens < whole.usage.completion_tokens
    stops(engine)


def test_an_engine_does_not_work_for_a_client_that_is_gone(client: openai.OpenAI, engine: Upstream):
    stream = said(client, stream=True, max_tokens=2000)
    next(iter(stream))
    stream.close()
    stops(engine)


def test_a_schema_leaves_the_rest_of_the_batch_alone(client: openai.OpenAI):
    """On this back end json_schema itself would end the other stream with an error."""
    stream = said(client, stream=True, max_tokens=60)
    chunks = [next(stream)]
    with contextlib.suppress(openai.UnprocessableEntityError, openai.BadRequestError):  # so small a model may miss it
        said(client, response_format=SCHEMA, max_tokens=40)
    chunks += list(stream)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in {"stop", "length"}


@pytest.mark.parametrize("wrong", [{"temperature": "hot"}, {"max_tokens": 10**9}])
def test_a_field_the_engine_refuses_is_the_callers_error(client: openai.OpenAI, wrong: dict[str, Any]):
    """LiteLLM alone would make the engine's 422 into an empty 200."""
    with pytest.raises(openai.BadRequestError):
        said(client, **wrong, extra_body={"disable_fallbacks": True})


def test_a_hung_engine_is_left_in_time(gateway: Gateway, client: openai.OpenAI, engine: Upstream):
    """No heartbeat for twenty seconds: the stream is answered by the next tier."""
    engine.send(signal.SIGSTOP)
    began = time.monotonic()
    try:
        text = gateway.ask("say still here", stream=True).text
    finally:
        engine.send(signal.SIGCONT)
    assert "still" in text
    assert time.monotonic() - began < 25


def test_an_engine_killed_in_its_answer_is_replaced(gateway: Gateway, client: openai.OpenAI, engine: Upstream):
    """Last in this file: the watchdog's kill is what makes the gateway try the next tier."""
    engine.send(signal.SIGSTOP)
    asked = subprocess.Popen(
        [sys.executable, "-c", f"import time, os; time.sleep(2); os.kill({engine.process and engine.process.pid}, 9)"]
    )
    assert gateway.ask("say still here").headers["x-mlxq-tier"] == "longctx"
    assert asked.wait() == 0
