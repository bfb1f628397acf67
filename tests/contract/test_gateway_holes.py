"""What an attacker with an app's key, a fuzzer or an unlucky client could do to LiteLLM's proxy, and cannot here."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import psutil
import pytest
import yaml
from support import loopback
from support.gateway import MASTER, Gateway, Upstream, until

from state import keys
from state.paths import Home

APP = {"Authorization": f"Bearer {MASTER}"}
USER: Any = [{"role": "user", "content": "say hello"}]


class Listener(threading.Thread):
    """A server that must not be reached: keeps whatever comes, and says nothing."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.heard: list[bytes] = []

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                with peer:
                    peer.settimeout(1)
                    with contextlib.suppress(OSError):
                        self.heard.append(peer.recv(65_536))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def evil() -> Iterator[Listener]:
    made = Listener()
    made.start()
    yield made
    made.close()


@pytest.fixture
def app(proxy: Gateway) -> Iterator[str]:
    """Return an app's key for the tier fast alone."""
    place = keys.file(Home(proxy.home))
    yield keys.create(place, "app", tiers=("fast",))
    place.unlink()


# 1, 2, 3, 6: fields that LiteLLM obeys


def orders(port: int) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:{port}"
    params = {"model": "maritalk/x", "api_base": url, "api_key": "os.environ/LITELLM_MASTER_KEY"}
    return [
        {"user_config": {"model_list": [{"model_name": "fast", "litellm_params": params}]}},
        {"custom_llm_provider": "nlp_cloud", "api_base": url},
        {"custom_llm_provider": "oobabooga", "base_url": url, "api_key": "os.environ/MLXQ_TIER_KEY"},
        {"fallbacks": [{"model": "fast", "custom_llm_provider": "petals", "api_base": url}]},
        {"context_window_fallbacks": [{"fast": ["standard"]}], "timeout": 0.001, "stream_timeout": 0.001},
        {"extra_headers": {"authorization": "x", "host": "evil"}, "extra_query": {"a": "b"}},
        {"extra_body": {"api_base": url}, "request_timeout": 0.001, "num_retries": 99},
        {"mock_response": "EVIL", "mock_testing_fallbacks": True, "litellm_params": params},
        {"metadata": {"a": {"b": "os.environ/LITELLM_MASTER_KEY"}}, "router_settings_override": {"x": 1}},
        {"model_info": {"id": "x"}, "aws_region_name": "x", "vertex_project": "x", "azure_ad_token": "x"},
    ]


ASKED: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": USER},
    "completions": {"prompt": "say hello"},
    "responses": {"input": "say hello"},
    "messages": {"messages": USER, "max_tokens": 9},
}


@pytest.mark.parametrize("path", ASKED)
def test_no_field_of_a_body_gives_orders(
    proxy: Gateway, upstreams: dict[str, Upstream], evil: Listener, app: str, path: str
):
    """The tier answers as if they were not there; nothing of them reaches it, and no other server is reached."""
    for order in orders(evil.port):
        answer = proxy.post(f"/v1/{path}", {"model": "fast", **ASKED[path], **order}, app)
        assert (answer.status_code, answer.headers["x-mlxq-tier"]) == (200, "fast")
        assert not order.keys() & upstreams["fast"].seen()[-1].keys()
    assert evil.heard == []


def test_no_secret_is_left_in_the_environment_of_what_reads_requests(proxy: Gateway):
    """LiteLLM resolves `os.environ/NAME` of its arguments: there is nothing to find."""
    check = "import os, sys; sys.argv = ['x']; from tasks.gateway import __main__ as m; m._arguments = lambda: None; "
    check += "m.serve = lambda _, secrets: print(sorted(secrets), [n for n in os.environ if 'KEY' in n]); "
    check += "real = sys.stdout; m._log_briefly = lambda: None; m.main()"
    environment = {**os.environ, **proxy.secrets, "OPENROUTER_API_KEY": "sk-or"}
    kept = {name: value for name, value in environment.items() if "KEY" not in name or name in proxy.secrets}
    kept["OPENROUTER_API_KEY"] = "sk-or"
    done = subprocess.run([sys.executable, "-c", check], env=kept, capture_output=True, text=True, check=True)
    assert "['LITELLM_MASTER_KEY', 'MLXQ_TIER_KEY', 'OPENROUTER_API_KEY'] []" in done.stderr


# 2: the second wall

PROVIDERS = """
import asyncio, json, os, sys
import litellm
from tasks.gateway.egress import Wall
Wall([("127.0.0.1", 1)], None).stand()
port = int(sys.argv[1])
url = f"http://127.0.0.1:{port}"
names = sorted({str(getattr(one, "value", one)) for one in litellm.provider_list})

async def ask(name):
    try:
        async with asyncio.timeout(20):
            await litellm.acompletion(model=f"{name}/x", messages=[{"role": "user", "content": "hi"}], api_base=url,
                                      base_url=url, api_key="k", timeout=5, num_retries=0, max_retries=0)
        return "answered"
    except BaseException as problem:
        return type(problem).__name__

async def main():
    some = asyncio.Semaphore(16)

    async def one(name):
        async with some:
            return await ask(name)

    outcomes = dict(zip(names, await asyncio.gather(*map(one, names))))
    print(json.dumps(outcomes))
    sys.stdout.flush()
    os._exit(0)

asyncio.run(main())
"""


@pytest.mark.slow
def test_no_provider_of_litellms_gets_through_the_wall(evil: Listener, tmp_path: Path):
    """Each name that LiteLLM knows is asked at an address beside the engines', behind the wall that the gateway has."""
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROVIDERS, str(evil.port)],
        env=os.environ | quiet,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
        timeout=500,
    )
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert len(outcomes) > 50, done.stderr[-2000:]
    assert "answered" not in outcomes.values()
    assert evil.heard == []


WALLED = """
import socket, sys
from tasks.gateway.egress import Wall
wall = Wall([("127.0.0.1", int(sys.argv[1]))], None)
wall.stand()
socket.create_connection(("127.0.0.1", int(sys.argv[1]))).close()
for attempt in (
    lambda: socket.create_connection(("127.0.0.1", int(sys.argv[2]))),
    lambda: socket.socket().connect_ex(("169.254.169.254", 80)),
    lambda: socket.getaddrinfo("example.org", 80),
    lambda: socket.gethostbyname("example.org"),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", int(sys.argv[2]))),
):
    try:
        attempt()
    except PermissionError as problem:
        print("refused", problem)
"""


def test_the_wall_stands_below_the_socket_module(evil: Listener):
    engine = socket.create_server(("127.0.0.1", 0))
    argv = [sys.executable, "-c", WALLED, str(engine.getsockname()[1]), str(evil.port)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    engine.close()
    assert done.stdout.count("refused") == 5
    assert evil.heard == []


# 5: a body that two parsers read differently


def test_a_body_is_json_whatever_it_says_it_is(proxy: Gateway, upstreams: dict[str, Upstream], app: str):
    content = b'{"model":"fast","prompt":"hi","x":"&model=standard&prompt=hi&max_tokens=1&a="}'
    headers = {"Authorization": f"Bearer {app}", "content-type": "application/x-www-form-urlencoded"}
    answer = loopback.post(f"{proxy.url}/v1/completions", content=content, headers=headers)
    assert (answer.status_code, answer.headers["x-mlxq-tier"]) == (200, "fast")
    assert upstreams["fast"].seen()[-1] == {"model": "fast", "prompt": "hi"}
    form = loopback.post(f"{proxy.url}/v1/completions", content=b"model=standard&prompt=hi", headers=headers)
    assert (form.status_code, form.json()["error"]["code"]) == (400, "invalid_json")


# 6: no tier rests for a caller's mistake


@pytest.mark.parametrize(
    "body",
    [
        {"messages": USER, "max_tokens": 0},
        {"messages": [{"role": "user", "content": "status 400"}]},
        {"messages": [{"role": "user", "content": "status 404"}]},
        {"messages": [{"role": "user", "content": "status 422"}]},
        {"messages": [{"role": "user", "content": "status 429"}]},
        {"messages": [{"role": "user", "content": "word " * 20_000}]},
    ],
)
def test_a_callers_mistake_rests_no_tier(proxy: Gateway, upstreams: dict[str, Upstream], body: dict[str, Any]):
    assert proxy.post("/v1/chat/completions", {"model": "standard", **body}).status_code in {400, 422, 429}
    for name in upstreams:
        assert proxy.ask("say hello", name).headers["x-mlxq-tier"] == name


def test_a_caller_who_gives_up_rests_no_tier(proxy: Gateway, upstreams: dict[str, Upstream]):
    with pytest.raises(httpx.ReadTimeout):
        loopback.post(
            f"{proxy.url}/v1/chat/completions",
            json={"model": "standard", "messages": [{"role": "user", "content": "hang"}]},
            headers=APP,
            timeout=0.3,
        )
    assert proxy.ask("say hello").headers["x-mlxq-tier"] == "standard"


def test_all_busy_is_a_429(proxy: Gateway, upstreams: dict[str, Upstream]):
    answer = proxy.ask("status 429")
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
    assert int(answer.headers["retry-after"]) >= 1


# 7, 8: sizes and times


def test_a_body_beyond_the_limit_is_not_kept(proxy: Gateway, upstreams: dict[str, Upstream]):
    assert proxy.process
    shown = psutil.Process(proxy.process.pid)
    before = shown.memory_info().rss

    def parts() -> Iterator[bytes]:
        yield b'{"model":"fast","messages":[{"role":"user","content":"'
        for _ in range(100):
            yield b"a" * 2**20
        yield b'"}]}'

    announced = {**APP, "content-length": str(sum(map(len, parts())))}
    for headers in (APP, announced):
        with contextlib.suppress(httpx.WriteError):
            answer = loopback.post(f"{proxy.url}/v1/chat/completions", content=parts(), headers=headers, timeout=60)
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert shown.memory_info().rss - before < 100 * 2**20
    assert proxy.ask("say hello").status_code == 200


@pytest.mark.parametrize("depth", [900, 100_000])
@pytest.mark.parametrize("field", ["metadata", "tools", "chat_template_kwargs"])
def test_deep_json_is_the_callers_error(proxy: Gateway, depth: int, field: str):
    content = f'{{"model":"fast","messages":[],"{field}":{"[" * depth}{"]" * depth}}}'
    answer = loopback.post(f"{proxy.url}/v1/chat/completions", content=content.encode(), headers=APP)
    assert answer.status_code == 400


@pytest.mark.parametrize("content", [b'{"model":"\xff"}', b'{"model":"\\ud800","messages":[]}', b"[" * 9, b"NaN", b"7"])
def test_what_is_no_json_is_the_callers_error(proxy: Gateway, content: bytes):
    assert loopback.post(f"{proxy.url}/v1/chat/completions", content=content, headers=APP).status_code == 400


IMPATIENT = """
import runpy, sys
from tasks.gateway import connections
from tasks.gateway.admission import body
assert body.READ_S == connections.REQUEST_S == 30
body.READ_S = connections.REQUEST_S = 3.0
sys.argv = sys.argv[sys.argv.index("tasks.gateway"):]
runpy.run_module("tasks.gateway", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def impatient(proxy: Gateway, tmp_path: Path) -> Iterator[Gateway]:
    """Yield a gateway that waits 3 s for a request where others wait 30."""
    argv = [sys.executable, "-c", IMPATIENT]
    made = Gateway(home=tmp_path, tiers=proxy.tiers, secrets=proxy.secrets, prefix=argv)
    made.start()
    yield made
    made.stop()


def test_half_a_request_ends_after_a_while(impatient: Gateway):
    """Half a head, half a body, and half a head after a whole request; meanwhile others are served."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {MASTER}\r\n".encode()
    whole = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    began = time.monotonic()
    peers = [socket.create_connection(("127.0.0.1", impatient.port)) for _ in range(3)]
    for peer, content in zip(peers, (head, head + b"content-length: 9\r\n\r\n{", whole), strict=True):
        peer.sendall(content)
    assert peers[2].recv(65_536)
    peers[2].sendall(head)
    assert loopback.get(f"{impatient.url}/health").status_code == 200
    for peer in peers:
        peer.settimeout(120)
        answer = b""
        while part := peer.recv(65_536):
            answer += part
            if b"408" in answer:
                break
    assert 2 < time.monotonic() - began < 120


@pytest.mark.parametrize("key", [MASTER, "sk-wrong"])
def test_a_request_of_two_lengths_is_refused_at_once(proxy: Gateway, key: str):
    """RFC 9112 6.3: what follows it may be taken for a request of its own, so that the connection ends."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
    head += "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", proxy.port), 20) as peer:
        peer.sendall(head.encode())
        answer = b""
        while part := peer.recv(65_536):
            answer += part
    assert answer.startswith(b"HTTP/1.1 400")


def test_connections_without_a_key_are_bounded(proxy: Gateway, upstreams: dict[str, Upstream]):
    """The oldest of them go; one that has shown a key stays."""
    with loopback.client(headers=APP, timeout=loopback.LIMIT_S) as known:
        assert known.get(f"{proxy.url}/v1/models").status_code == 200
        peers = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(250)]
        for peer in peers:
            peer.sendall(b"GET /v1/models HTTP/1.1\r\n")
        assert known.get(f"{proxy.url}/v1/models").status_code == 200
        assert loopback.get(f"{proxy.url}/health").is_success, "it came last, so that all of them were taken in"
        assert proxy.process
        process = psutil.Process(proxy.process.pid)
        until(lambda: len(process.net_connections()) < 200)
        for peer in peers:
            peer.close()


# 9: the poison guard


def test_the_innocent_are_let_through_after_a_kill(proxy: Gateway, upstreams: dict[str, Upstream]):
    """Requests that were in flight beside others when tiers were killed are blamed for nothing."""
    body = {"model": "standard", "messages": USER}
    for name in ("standard", "longctx"):
        upstreams[name].fault("hang")  # so that all are in flight, however far apart they come
    with loopback.client(headers=APP, timeout=30) as client:
        threads = [
            threading.Thread(target=client.post, args=(f"{proxy.url}/v1/chat/completions",), kwargs={"json": body})
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for name in ("standard", "longctx"):
            until(lambda name=name: upstreams[name].open() == len(threads))
            upstreams[name].kill()
        for thread in threads:
            thread.join()
        upstreams["standard"].start()
        assert client.post(f"{proxy.url}/v1/chat/completions", json=body).status_code == 200


# 16: what a key sees


def test_a_key_sees_the_models_it_may_ask_for(proxy: Gateway, app: str):
    headers = {"Authorization": f"Bearer {app}"}
    listed = loopback.get(f"{proxy.url}/v1/models", headers=headers).json()["data"]
    assert {model["id"] for model in listed} == {"fast", "gpt-4o-mini"}
    assert all(model["context_length"] == model["max_output_tokens"] == 1024 for model in listed)
    assert loopback.get(f"{proxy.url}/v1/models/standard", headers=headers).status_code == 404
    assert loopback.get(f"{proxy.url}/v1/models/fast", headers=headers).json()["id"] == "fast"
    claude = anthropic.Anthropic(base_url=proxy.url, api_key=app, http_client=loopback.anthropic_client())
    assert [model.id for model in claude.models.list()] == ["fast", "gpt-4o-mini"]


def test_no_answer_tells_a_key_of_other_tiers_names(proxy: Gateway, app: str):
    headers = {"Authorization": f"Bearer {app}"}
    for answer in (
        loopback.get(f"{proxy.url}/v1/models/nope", headers=headers),
        proxy.post("/v1/chat/completions", {"model": "nope", "messages": USER}, app),
    ):
        assert answer.status_code == 404
        assert "fast, gpt-4o-mini" in answer.text
        assert "standard" not in answer.text


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_limit_above_the_engines_is_the_engines(proxy: Gateway, upstreams: dict[str, Upstream], limit: str):
    """It is an upper bound: clients send that of the model whose name they know, and engines refuse it."""
    assert proxy.ask("say hello", "fast", **{limit: 64_000}).status_code == 200
    assert upstreams["fast"].seen()[-1]["max_tokens"] == 1024


# Dialects


@pytest.mark.parametrize(
    "wish", [{"type": "enabled", "budget_tokens": 1024}, {"type": "disabled"}, {"type": "adaptive"}]
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_anthropics_thinking_is_the_models(
    proxy: Gateway, upstreams: dict[str, Upstream], wish: dict[str, Any], stream: bool
):
    body = {"model": "claude-opus-9", "max_tokens": 2048, "messages": USER, "thinking": wish, "stream": stream}
    answer = proxy.post("/v1/messages", body)
    assert answer.status_code == 200
    assert "hello" in answer.text
    seen = upstreams["standard"].seen()[-1]
    wanted = {"enabled": True, "disabled": False}.get(wish["type"])
    assert seen.get("enable_thinking") == wanted
    assert seen.get("thinking_token_budget") == wish.get("budget_tokens")


def test_a_stop_sequence_is_named(proxy: Gateway, upstreams: dict[str, Upstream]):
    claude = anthropic.Anthropic(
        base_url=proxy.url, api_key=MASTER, max_retries=0, http_client=loopback.anthropic_client()
    )
    asked: Any = {"model": "standard", "max_tokens": 99, "messages": [{"role": "user", "content": "go"}]}
    answer = claude.messages.create(**asked, stop_sequences=["four"])
    with claude.messages.stream(**asked, stop_sequences=["four"]) as stream:
        streamed = stream.get_final_message()
    for message in (answer, streamed):
        assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "four")
        assert message.id.startswith("msg_")


def test_max_completion_tokens_reach_the_engine(proxy: Gateway, upstreams: dict[str, Upstream]):
    proxy.ask("say hello", max_completion_tokens=2)
    assert upstreams["standard"].seen()[-1]["max_tokens"] == 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", ["chat/completions", "messages", "responses"])
def test_a_forced_call_that_is_none_is_an_error(
    proxy: Gateway, upstreams: dict[str, Upstream], path: str, stream: bool
):
    """vllm-mlx answers `tool_choice` with plain text and 200."""
    schema = {"type": "object", "properties": {}}
    tools: dict[str, Any] = {
        "chat/completions": {"tools": [{"type": "function", "function": {"name": "look", "parameters": schema}}]}
        | {"messages": USER, "tool_choice": "required"},
        "messages": {
            "messages": USER,
            "max_tokens": 9,
            "tools": [{"name": "look", "input_schema": schema}],
            "tool_choice": {"type": "any"},
        },
        "responses": {
            "input": "say hello",
            "tools": [{"type": "function", "name": "look", "parameters": schema}],
            "tool_choice": "required",
        },
    }
    answer = proxy.post(f"/v1/{path}", {"model": "standard", "stream": stream, **tools[path]})
    assert answer.status_code == 422
    assert "tool call" in answer.json()["error"]["message"]


def test_a_forced_call_is_passed_on(proxy: Gateway, upstreams: dict[str, Upstream]):
    client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=MASTER, max_retries=0, http_client=loopback.client())
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    asked: Any = {"model": "standard", "messages": [{"role": "user", "content": "tool"}], "tools": [tool]}
    answer = client.chat.completions.create(**asked, tool_choice="required")
    assert answer.choices[0].message.tool_calls
    stream = client.chat.completions.create(**asked, tool_choice="required", stream=True)
    assert any(chunk.choices[0].delta.tool_calls for chunk in stream if chunk.choices)


def test_a_cut_answer_to_a_schema_is_whole_and_says_length(proxy: Gateway, upstreams: dict[str, Upstream]):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    answer = proxy.ask('cut {"a": ', response_format=form)
    assert answer.status_code == 200
    choice = answer.json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", '{"a": ')


def test_responses_keep_no_conversation(proxy: Gateway, upstreams: dict[str, Upstream]):
    body = {"model": "standard", "input": "say hello"}
    refused = proxy.post("/v1/responses", {**body, "previous_response_id": "resp_1"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_parameter")
    assert proxy.post("/v1/responses", {**body, "store": True}).status_code == 200
    assert not upstreams["standard"].seen()[-1].get("store")


def test_tools_that_only_openai_has_are_named_as_left_out(proxy: Gateway, upstreams: dict[str, Upstream]):
    body = {"model": "standard", "input": "say hello", "tools": [{"type": "web_search"}]}
    answer = proxy.post("/v1/responses", body)
    assert (answer.status_code, answer.headers["x-mlxq-dropped"]) == (200, "tools.web_search")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/nope"])
def test_every_answer_has_an_id(proxy: Gateway, upstreams: dict[str, Upstream], path: str):
    answer = proxy.post(path, {"model": "standard", "messages": USER, "max_tokens": 9})
    assert answer.headers["x-request-id"].startswith("req_")
    assert ("request-id" in answer.headers) == (path == "/v1/messages")


def test_usage_is_in_a_stream_only_when_it_is_asked_for(proxy: Gateway, upstreams: dict[str, Upstream]):
    assert "usage" not in proxy.ask("say hello", stream=True).text
    assert '"prompt_tokens"' in proxy.ask("say hello", stream=True, stream_options={"include_usage": True}).text


# Browsers

PREFLIGHT = {"Origin": "http://app.example", "Access-Control-Request-Method": "POST"}


def test_no_page_reads_answers_unless_it_is_allowed(proxy: Gateway, upstreams: dict[str, Upstream]):
    refused = loopback.options(f"{proxy.url}/v1/chat/completions", headers=PREFLIGHT)
    assert refused.status_code == 401
    answer = loopback.get(f"{proxy.url}/v1/models", headers={**APP, "Origin": "http://app.example"})
    assert not [name for name in (*refused.headers, *answer.headers) if name.startswith("access-control")]


def test_an_allowed_page_asks_without_a_key_if_it_may_ask(proxy: Gateway, tmp_path: Path):
    made = Gateway(home=tmp_path, tiers=proxy.tiers, secrets=proxy.secrets, allowed_origins=["http://app.example"])
    made.start()
    try:
        url = f"{made.url}/v1/chat/completions"
        wanted = {**PREFLIGHT, "Access-Control-Request-Headers": "authorization,content-type"}
        asked = loopback.options(url, headers=wanted)
        assert asked.status_code == 204
        assert asked.headers["access-control-allow-origin"] == "http://app.example"
        assert asked.headers["access-control-allow-headers"] == "authorization,content-type"
        refused = loopback.post(url, json={}, headers={"Origin": "http://app.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "http://app.example"
        other = loopback.options(url, headers={**wanted, "Origin": "http://evil.example"})
        assert other.status_code == 401
        assert "access-control-allow-origin" not in other.headers
    finally:
        made.stop()


# Silence


@pytest.mark.slow
def test_a_waiting_stream_says_that_it_lives(proxy: Gateway, upstreams: dict[str, Upstream]):
    """Before the first words, so that no client gives up; then another tier may still answer."""
    upstreams["standard"].fault("hang")
    body = {"model": "standard", "messages": [{"role": "user", "content": "say hello there"}], "stream": True}
    with loopback.stream("POST", f"{proxy.url}/v1/chat/completions", json=body, headers=APP, timeout=60) as answer:
        lines = answer.iter_lines()
        assert next(lines) == ": waiting"
        upstreams["standard"].send(signal.SIGKILL)
        words = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(one["choices"][0]["delta"].get("content") or "" for one in words) == "hello there"


def test_the_configuration_names_no_key(proxy: Gateway):
    text = (proxy.home / "gateway.yaml").read_text()
    assert set(yaml.safe_load(text)) == {"engines", "tiers", "names"}
    assert not [key for key in proxy.secrets.values() if key in text]
