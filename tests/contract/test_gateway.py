"""What the real proxy does for callers while engines are well, dead, or gone for a while."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import psutil
import pytest
from support import loopback
from support.gateway import Gateway, Upstream


def answered_by(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.headers["x-mlxq-tier"]


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


@pytest.fixture
def client(proxy: Gateway) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{proxy.url}/v1",
        api_key=proxy.secrets["LITELLM_MASTER_KEY"],
        max_retries=0,
        http_client=loopback.client(),
    )


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


@pytest.mark.parametrize(
    ("model", "stream"), [("fast", False), ("fast", True), ("gpt-4o-mini", False), ("claude-3-5-haiku-latest", True)]
)
def test_a_dead_tier_is_answered_by_the_next(proxy: Gateway, upstreams: dict[str, Upstream], model: str, stream: bool):
    upstreams["fast"].kill()
    response = proxy.ask("say hello there", model, stream=stream)
    assert answered_by(response) == "standard"
    assert "there" in response.text


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_tier_that_cannot_now_is_answered_by_the_next(
    proxy: Gateway, upstreams: dict[str, Upstream], status: int, stream: bool
):
    upstreams["fast"].fault(f"status {status}")
    before = len(upstreams["fast"].seen())
    for _ in range(3):
        assert answered_by(proxy.ask("say hello there", "fast", stream=stream)) == "standard"
    assert len(upstreams["fast"].seen()) - before <= 3, "a tier that fails is left at once, and not asked again"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_tier_that_dies_under_a_request_is_answered_by_the_next(
    proxy: Gateway, upstreams: dict[str, Upstream], stream: bool
):
    """The tier hangs, as one that waits for its first token; the watchdog's kill is what sends the request on."""
    upstreams["fast"].fault("hang")
    killer = threading.Timer(1.0, upstreams["fast"].kill)
    killer.start()
    assert answered_by(proxy.ask("say hello there", "fast", stream=stream)) == "standard"
    killer.join()


def test_a_tier_is_used_again_soon_after_its_return(proxy: Gateway, upstreams: dict[str, Upstream]):
    upstreams["standard"].kill()
    for _ in range(4):
        assert answered_by(proxy.ask("say hello")) == "longctx"
    upstreams["standard"].start()
    began = time.monotonic()
    while answered_by(proxy.ask("say hello")) != "standard":
        assert time.monotonic() - began < 60
        time.sleep(0.1)


def test_streams_pass_through_whole(client: openai.OpenAI, upstreams: dict[str, Upstream]):
    stream = client.chat.completions.create(
        model="standard", messages=[{"role": "user", "content": "say a b c"}], stream=True
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "a b c"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


@pytest.mark.parametrize("words", ["a [DONE] b", "[DONE]", "a\\[DONE]"])
def test_words_that_end_streams_elsewhere_do_not_here(
    client: openai.OpenAI, upstreams: dict[str, Upstream], words: str
):
    stream = client.chat.completions.create(model="standard", messages=user(f"say {words}"), stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == words


def test_a_heartbeat_is_no_part_of_an_answer(client: openai.OpenAI, upstreams: dict[str, Upstream]):
    texts: list[list[str | None]] = []
    for order in ("say a b c", "beat a b c"):
        stream = client.chat.completions.create(model="standard", messages=user(order), stream=True)
        texts.append([c.choices[0].delta.content for c in stream if c.choices])
    assert texts[0] == texts[1]


def test_fields_that_openai_does_not_know_reach_the_engine(client: openai.OpenAI, upstreams: dict[str, Upstream]):
    more = {"top_k": 7, "chat_template_kwargs": {"enable_thinking": False}}
    client.chat.completions.create(model="standard", messages=user("say a"), extra_body=more)
    seen = upstreams["standard"].seen()[-1]
    assert {name: seen.get(name) for name in more} == more


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
sys.argv = sys.argv[sys.argv.index("tasks.gateway"):]
runpy.run_module("tasks.gateway", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_nothing_leaves_the_machine(every_upstream: dict[str, Upstream], proxy: Gateway, tmp_path: Path):
    """No look-up and no connection but to loopback, from the start through requests and fallbacks to the end."""
    watched = Gateway(
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
    made = Gateway(home=tmp_path, tiers=proxy.tiers, secrets=proxy.secrets, host="127.0.0.2")
    made.start()
    codes = [loopback.get(f"http://{host}:{made.port}/v1/models").status_code for host in ("127.0.0.1", "127.0.0.2")]
    made.stop()
    assert codes == [401, 401]


TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tell the weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def test_tools_are_called_through_openais_client(client: openai.OpenAI, upstreams: dict[str, Upstream]):
    asked: Any = {"model": "standard", "messages": [{"role": "user", "content": "tool"}], "tools": TOOLS}
    (call,) = client.chat.completions.create(**asked).choices[0].message.tool_calls or []
    assert (call.id, call.function.name, json.loads(call.function.arguments)) == ("call_1", "weather", {"city": "Oslo"})
    assert upstreams["standard"].seen()[-1]["tools"] == TOOLS

    deltas = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True) if chunk.choices]
    pieces = [call.function for one in deltas for call in one.delta.tool_calls or []]
    assert json.loads("".join(piece.arguments or "" for piece in pieces)) == {"city": "Oslo"}
    assert deltas[-1].finish_reason == "tool_calls"


def test_tools_are_called_through_anthropics_client(proxy: Gateway, upstreams: dict[str, Upstream]):
    claude = anthropic.Anthropic(
        base_url=proxy.url,
        api_key=proxy.secrets["LITELLM_MASTER_KEY"],
        max_retries=0,
        http_client=loopback.anthropic_client(),
    )
    function = TOOLS[0]["function"]
    asked: Any = {
        "model": "claude-opus-4-5",
        "max_tokens": 99,
        "messages": [{"role": "user", "content": "tool"}],
        "tools": [{"name": "weather", "description": "", "input_schema": function["parameters"]}],
    }
    answer = claude.messages.create(**asked)
    with claude.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    for one in (answer, streamed):
        (block,) = [block for block in one.content if block.type == "tool_use"]
        assert (block.name, block.input, one.stop_reason) == ("weather", {"city": "Oslo"}, "tool_use")


LITELLM = """
import json, litellm, os
asked = {"model": "litellm_proxy/gpt-4o", "messages": [{"role": "user", "content": "say a b c"}]}
whole = litellm.completion(**asked)
pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True)]
try:
    litellm.completion(**{**asked, "model": "litellm_proxy/gpt-9"})
    refused = ""
except litellm.NotFoundError as problem:
    refused = str(problem)
print(json.dumps([whole.choices[0].message.content, whole.usage.completion_tokens, "".join(pieces), refused]))
"""


@pytest.mark.slow
def test_litellms_own_client_is_served(proxy: Gateway, upstreams: dict[str, Upstream]):
    outside = {
        "LITELLM_PROXY_API_BASE": proxy.url,
        "LITELLM_PROXY_API_KEY": proxy.secrets["LITELLM_MASTER_KEY"],
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    done = subprocess.run(
        [sys.executable, "-c", LITELLM], env=os.environ | outside, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    whole, tokens, streamed, refused = json.loads(done.stdout.splitlines()[-1])
    assert (whole, tokens, streamed) == ("a b c", 3, "a b c")
    assert "There is no model 'gpt-9' here" in refused


ALONE = """
ip link set lo up
"$PYTHON" -m pytest tests/contract/test_gateway.py -k "reaches_its_tier or (that_cannot_now and 503)" || exit 1
grep -h OutNoRoutes /proc/net/snmp6; grep ^Ip: /proc/net/snmp
"$PYTHON" -c 'import socket; socket.socket().connect_ex(("192.0.2.1", 80))'
grep ^Ip: /proc/net/snmp
"""


def may_be_alone() -> bool:
    try:
        return subprocess.run(["unshare", "-rn", "ip", "link", "set", "lo", "up"], check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not may_be_alone(), reason="a network namespace needs Linux, util-linux, iproute2 and the right")
def test_nothing_even_tries_to_leave_a_machine_without_a_network():
    """Tests of this file run where there is loopback alone; the kernel counts what found no way out.

    A packet sent on purpose afterwards shows that it counts.
    """
    done = subprocess.run(
        ["unshare", "-rn", "sh", "-c", ALONE],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (six,) = [line.split() for line in done.stdout.splitlines() if line.startswith("Ip6OutNoRoutes")]
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("Ip:")]
    counted = [int(values[lines[0].index("OutNoRoutes")]) for values in lines[1::2]]
    assert (int(six[1]), counted) == (0, [0, 1])
