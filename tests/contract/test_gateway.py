"""What the real proxy does for callers while engines are well, dead, or gone for a while."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import openai
import psutil
import pytest

if TYPE_CHECKING:
    from conftest import Gateway, Upstream


def answered_by(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.headers["x-litellm-model-id"].partition("@")[0]


@pytest.fixture
def client(proxy: Gateway) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=proxy.secrets["LITELLM_MASTER_KEY"], max_retries=0)


@pytest.mark.parametrize(
    ("model", "tier"),
    [
        ("standard", "standard"),
        ("fast", "fast"),
        ("longctx", "longctx"),
        ("default", "standard"),
        ("gpt-4o", "standard"),
        ("gpt-4o-mini", "fast"),
        ("claude-opus-4-5", "standard"),
        ("claude-3-5-haiku-latest", "fast"),
    ],
)
def test_each_name_reaches_its_tier(proxy: Gateway, upstreams: dict[str, Upstream], model: str, tier: str):
    assert answered_by(proxy.ask("say hello", model)) == tier


@pytest.mark.parametrize("model", ["fast", "gpt-4o-mini", "claude-3-5-haiku-latest"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_dead_tier_is_answered_by_the_next(proxy: Gateway, upstreams: dict[str, Upstream], model: str, stream: bool):
    upstreams["fast"].kill()
    began = time.monotonic()
    response = proxy.ask("say hello there", model, stream=stream)
    assert answered_by(response) == "standard"
    assert "there" in response.text
    assert time.monotonic() - began < 2, "LiteLLM's own back-off would take 4 s"


def test_a_tier_is_used_again_soon_after_its_return(proxy: Gateway, upstreams: dict[str, Upstream]):
    upstreams["standard"].kill()
    for _ in range(4):
        assert answered_by(proxy.ask("say hello")) == "longctx"
    upstreams["standard"].start()
    began = time.monotonic()
    while answered_by(proxy.ask("say hello")) != "standard":
        assert time.monotonic() - began < 6
        time.sleep(0.1)


def test_streams_pass_through_whole(client: openai.OpenAI, upstreams: dict[str, Upstream]):
    stream = client.chat.completions.create(
        model="standard", messages=[{"role": "user", "content": "say a b c"}], stream=True
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "a b c"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


def test_no_key_is_on_the_command_line(proxy: Gateway):
    assert proxy.process
    shown = psutil.Process(proxy.process.pid).cmdline()
    assert not [key for key in proxy.secrets.values() if key in " ".join(shown)]


WATCHED = """
import runpy, sys
sys.modules["uvloop"] = None  # its sockets are C and raise no audit event
def watch(event, args):
    if event == "socket.getaddrinfo" and args[0] not in (None, "127.0.0.1", "localhost"):
        print("LOOKED UP", args[0], flush=True, file=sys.stderr)
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] != "127.0.0.1":
        print("CONNECTED", args[1], flush=True, file=sys.stderr)
sys.addaudithook(watch)
sys.argv = sys.argv[sys.argv.index("tasks.launch.gateway"):]
runpy.run_module("tasks.launch.gateway", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_nothing_leaves_the_machine(every_upstream: dict[str, Upstream], proxy: Gateway, tmp_path: Path):
    """No look-up and no connection but to loopback, from the start through requests and fallbacks to the end."""
    watched = type(proxy)(
        home=tmp_path,
        tiers=proxy.tiers,
        secrets=proxy.secrets,
        prefix=[sys.executable, "-c", WATCHED],
    )
    watched.start()
    assert answered_by(watched.ask("say hello")) == "standard"
    assert watched.ask("status 500").status_code >= 500
    watched.stop()
    assert [line for line in watched.log.read_text().splitlines() if "LOOKED UP" in line or "CONNECTED" in line] == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="macOS has no 127.0.0.2 unless a person adds it")
def test_another_address_is_listened_on_besides_loopback(proxy: Gateway, tmp_path: Path):
    """127.0.0.2 stands for the address of the machine in its network."""
    made = type(proxy)(home=tmp_path, tiers=proxy.tiers, secrets=proxy.secrets, host="127.0.0.2")
    made.start()
    codes = [httpx.get(f"http://{host}:{made.port}/v1/models").status_code for host in ("127.0.0.1", "127.0.0.2")]
    made.stop()
    assert codes == [401, 401]
