"""Bodies that hypothesis makes, over the routes that take one: nothing opens, nothing breaks, no tier is rested.

GATEWAY_BODIES says how many (10,000 before a release). Around the real gateway stand scripted engines, which say what
reached them, and a listener that nothing may ever connect to.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import loopback
from support.gateway import Gateway
from support.scripted import ScriptedEngine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + int(os.environ.get("GATEWAY_BODIES", "500")) // 5)]

BODIES = int(os.environ.get("GATEWAY_BODIES", "500"))
GROWTH_MB = 120
"""Resident memory that these bodies may leave behind."""
ROUTES = ("chat/completions", "completions", "responses", "messages", "messages/count_tokens", "embeddings", "rerank")
MODELS = ("standard", "fast", "longctx", "gpt-4o", "claude-opus-4-5", "nosuch", "openai/fast", "cloud", "*")
NAMES = ("LITELLM_MASTER_KEY", "MLXQ_TIER_KEY", "OPENROUTER_API_KEY")
PROVIDERS = ("openai", "maritalk", "anthropic", "nlp_cloud", "petals", "oobabooga", "custom", "sagemaker", "vertex_ai")
KNOWN = re.compile(
    "audio|best_of|chat_template_kwargs|conversation|dimensions|documents|echo|enable_thinking|encoding_format|"
    "frequency_penalty|include|input|instructions|logit_bias|logprobs|max_completion_tokens|max_output_tokens|"
    "max_tokens|messages|metadata|min_p|model|n|parallel_tool_calls|presence_penalty|prompt|query|reasoning|"
    "reasoning_effort|repetition_penalty|response_format|return_documents|seed|stop|stop_sequences|store|stream|"
    "stream_options|suffix|system|temperature|text|thinking|thinking_token_budget|tool_choice|tools|top_k|top_n|"
    "top_logprobs|top_p|truncation|user|output_config|output_format"
)
"""Fields that the references and the engines name; no other one may reach an engine."""


@dataclass
class Listener:
    """A port of somebody else: whatever comes in here has left the machine's own engines."""

    server: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    heard: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.getsockname()[1]}"

    def listen(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            with closing(connection):
                connection.settimeout(1)
                self.heard.append(connection.recv(65536))


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    made = Listener()
    thread = threading.Thread(target=made.listen, daemon=True)
    thread.start()
    yield made
    made.server.shutdown(socket.SHUT_RDWR)
    made.server.close()
    thread.join()


@pytest.fixture(scope="module")
def http(front: Gateway) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {front.secrets['LITELLM_MASTER_KEY']}"}
    with loopback.client(base_url=front.url, headers=headers, timeout=30) as client:
        yield client


# What a body is made of

TEXT = st.text(max_size=12)
NUMBER = st.one_of(st.integers(), st.floats(), st.sampled_from([2**63, 2**64, -(2**63) - 1, 10**400, 1e308, 5e-324]))
SCALAR = st.one_of(st.none(), st.booleans(), NUMBER, TEXT)
ANY = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
URL = st.just("http://LISTENER/v1")
SECRET = st.sampled_from([f"os.environ/{name}" for name in NAMES])
PROVIDER = st.sampled_from(PROVIDERS)
ELSEWHERE = st.fixed_dictionaries(
    {"model": PROVIDER.map(lambda name: f"{name}/x"), "api_base": URL, "api_key": SECRET},
    optional={"custom_llm_provider": PROVIDER},
)
STEERING: dict[str, st.SearchStrategy[Any]] = {
    "user_config": st.fixed_dictionaries(
        {"model_list": st.lists(st.fixed_dictionaries({"model_name": st.just("fast"), "litellm_params": ELSEWHERE}))}
    ),
    "fallbacks": st.lists(ELSEWHERE, max_size=2),
    "context_window_fallbacks": st.lists(ELSEWHERE, max_size=2),
    "custom_llm_provider": PROVIDER,
    "extra_headers": st.just({"authorization": "x", "host": "evil.example"}),
    "headers": st.just({"authorization": "x"}),
    "extra_body": ELSEWHERE,
    "extra_query": ELSEWHERE,
    "litellm_params": ELSEWHERE,
    "litellm_metadata": ELSEWHERE,
    "metadata": ELSEWHERE,
    "model_info": ELSEWHERE,
    "router_settings_override": st.just({"num_retries": 9, "timeout": 0.001}),
    "mock_response": st.just("litellm.RateLimitError"),
    "mock_testing_fallbacks": st.just(True),
    "num_retries": st.just(10**6),
    "callbacks": st.just(["langfuse"]),
    "guardrails": st.just(["x"]),
    "cache": st.just({"no-cache": True, "s-maxage": 1}),
    "tags": st.just(["x"]),
    "prompt_id": TEXT,
    "mcp_servers": st.just([{"type": "url", "url": "http://LISTENER/", "name": "x"}]),
    "web_search_options": st.just({}),
    "stream_timeout": st.floats(0, 0.01),
    "timeout": st.floats(0, 0.01),
    "request_timeout": st.just(0.001),
    **dict.fromkeys(("api_base", "base_url", "aws_bedrock_runtime_endpoint", "azure_endpoint", "vertex_location"), URL),
    **dict.fromkeys(("api_key", "azure_ad_token", "aws_secret_access_key", "vertex_credentials"), SECRET),
}
"""Fields that tell LiteLLM where to go, with what key, for how long: facts of 1.106.2."""

PART = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "input_text", "output_text"]), "text": TEXT}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": URL})}),
    st.fixed_dictionaries({"type": st.just("input_image"), "image_url": URL}),
    st.fixed_dictionaries({"type": st.just("image"), "source": st.just({"type": "url", "url": "http://LISTENER/"})}),
    st.fixed_dictionaries({"type": st.just("input_audio"), "input_audio": ANY}),
    st.fixed_dictionaries({"type": st.just("file"), "file": st.fixed_dictionaries({"file_id": URL})}),
    st.fixed_dictionaries({"type": st.just("tool_result"), "tool_use_id": TEXT, "content": TEXT}),
    st.fixed_dictionaries({"type": st.just("thinking"), "thinking": TEXT, "signature": TEXT}),
    ANY,
)
ROLE = st.sampled_from(["user", "assistant", "system", "developer", "tool", "function", "root"])
MESSAGE = st.fixed_dictionaries(
    {"role": ROLE, "content": st.one_of(TEXT, st.lists(PART, max_size=3), st.none())},
    optional={
        "name": TEXT,
        "tool_call_id": TEXT,
        "tool_calls": st.lists(
            st.fixed_dictionaries(
                {"id": TEXT, "type": st.just("function"), "function": st.just({"name": "f", "arguments": "{"})}
            ),
            max_size=2,
        ),
        "cache_control": st.just({"type": "ephemeral"}),
    },
)
USER: Any = {"role": "user", "content": "hello"}
MESSAGES = st.lists(MESSAGE, max_size=3).map(lambda turns: [*turns, USER])
KEYWORD = st.sampled_from(
    ["$schema", "$id", "$ref", "type", "enum", "items", "properties", "anyOf", "maximum", "required"]
)
SCHEMA = st.one_of(
    st.sampled_from([{"type": "object"}, {"type": "nonsense"}, {"$ref": "http://LISTENER/"}, {"$ref": "#"}, {}]),
    st.dictionaries(KEYWORD, ANY, max_size=3),
)
TOOL = st.one_of(
    st.fixed_dictionaries(
        {"type": st.just("function"), "function": st.fixed_dictionaries({"name": TEXT, "parameters": SCHEMA})}
    ),
    st.fixed_dictionaries({"type": st.just("function"), "name": TEXT, "parameters": SCHEMA}),
    st.fixed_dictionaries({"name": TEXT, "input_schema": SCHEMA}),
    st.fixed_dictionaries({"type": st.just("mcp"), "server_label": TEXT, "server_url": URL}),
    st.fixed_dictionaries({"type": TEXT | st.just("x\r\nset-cookie: a=b")}),
    ANY,
)
FORMAT = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "json_object", "json_schema", "xml"])},
    optional={"json_schema": st.fixed_dictionaries({"name": TEXT, "schema": SCHEMA}), "schema": SCHEMA},
)
ORDINARY: dict[str, st.SearchStrategy[Any]] = {
    "stream": st.booleans(),
    "stream_options": st.just({"include_usage": True}) | ANY,
    "temperature": st.floats(-1, 3),
    "top_p": st.floats(-1, 2),
    "top_k": st.integers(-2, 100),
    "max_tokens": st.integers(-1, 100),
    "max_completion_tokens": st.integers(-1, 100),
    "max_output_tokens": st.integers(-1, 100),
    "n": st.integers(0, 3),
    "stop": TEXT | st.lists(TEXT, max_size=3),
    "stop_sequences": st.lists(TEXT, max_size=3),
    "logit_bias": st.dictionaries(TEXT, st.integers(-101, 101), max_size=2),
    "logprobs": st.booleans() | st.integers(0, 5),
    "tools": st.lists(TOOL, max_size=2),
    "tool_choice": st.sampled_from(["auto", "none", "required", {"type": "any"}, {"type": "tool", "name": "f"}]) | ANY,
    "response_format": FORMAT,
    "text": st.fixed_dictionaries({"format": FORMAT}),
    "thinking": st.sampled_from([{"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}, {"type": "x"}]),
    "reasoning_effort": st.sampled_from(["low", "high", "none", "extreme"]),
    "reasoning": st.just({"effort": "low"}) | ANY,
    "chat_template_kwargs": st.dictionaries(TEXT, SCALAR, max_size=2),
    "system": TEXT | st.lists(PART, max_size=2),
    "instructions": TEXT,
    "previous_response_id": TEXT,
    "seed": st.integers(),
    "user": TEXT,
    "store": st.booleans(),
    "disable_fallbacks": st.booleans(),
    "encoding_format": st.sampled_from(["float", "base64", "hex"]),
}
LEAST: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [USER]},
    "completions": {"prompt": "hello"},
    "responses": {"input": "hello"},
    "messages": {"messages": [USER], "max_tokens": 50},
    "messages/count_tokens": {"messages": [USER]},
    "embeddings": {"input": "hello"},
    "rerank": {"query": "hello", "documents": ["a", "b"]},
}


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Make a route and a body for it: right, steered elsewhere, and wrong in places."""
    route = draw(st.sampled_from(ROUTES))
    body = {"model": draw(st.sampled_from(MODELS)), **LEAST[route]}
    if "messages" in body and draw(st.booleans()):
        body["messages"] = draw(MESSAGES)
    if "input" in body and draw(st.booleans()):
        body["input"] = draw(st.lists(MESSAGE | PART, max_size=3) | ANY)
    for fields, most in ((ORDINARY, 4), (STEERING, 3)):
        names = draw(st.lists(st.sampled_from(sorted(fields)), max_size=most, unique=True))
        body |= {name: draw(fields[name]) for name in names}
    if draw(st.integers(0, 3)) == 0:
        body[draw(st.sampled_from(sorted(body)))] = draw(ANY)
    return route, body


def fuzzed(function: Any) -> Any:
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=BODIES, deadline=None, suppress_health_check=checks, database=None)(function)


def secrets_of(front: Gateway) -> list[str]:
    return list(front.secrets.values())


def judge(front: Gateway, answer: httpx.Response) -> None:
    """Hold an answer to what every answer has to be."""
    assert answer.status_code < 500, answer.text
    assert "set-cookie" not in answer.headers
    assert not [secret for secret in secrets_of(front) if secret in answer.text]
    for word in ("litellm", "Traceback", "os.environ"):
        assert word not in answer.text or word in answer.request.content.decode("utf-8", "replace")
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["message"]
        assert error["type"]


def whole(front: Gateway, http: httpx.Client) -> None:
    """Hold the gateway to what has to be true after everything that was sent."""
    asked = {"model": "standard", "messages": [USER]}
    answer = http.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-mlxq-tried"] == "standard", "no tier is at rest"


def inspect(front: Gateway, engines: dict[str, ScriptedEngine]) -> None:
    """Look at all that reached the engines: their own key once, no other secret, no field that steers."""
    master = front.secrets["LITELLM_MASTER_KEY"]
    for engine in engines.values():
        for request in engine.seen():
            assert master not in json.dumps(request)
            headers = {name.lower(): value for name, value in request["headers"].items()}
            assert headers.pop("authorization") == f"Bearer {front.secrets['MLXQ_TIER_KEY']}"
            assert front.secrets["MLXQ_TIER_KEY"] not in json.dumps([headers, request["body"]])
            assert headers["content-type"] == "application/json"
            assert [name for name in request["body"] if not KNOWN.fullmatch(name)] == []
        engine.forget()


def test_no_body_opens_or_breaks_anything(
    front: Gateway, engines: dict[str, ScriptedEngine], http: httpx.Client, listener: Listener
):
    assert front.process
    pid, before = front.process.pid, psutil.Process(front.process.pid).memory_info().rss
    sent = 0

    @fuzzed
    @given(bodies())
    def send(made: tuple[str, dict[str, Any]]) -> None:
        nonlocal sent
        route, body = made
        content = json.dumps(body).replace("http://LISTENER", listener.url).encode()
        judge(front, http.post(f"/v1/{route}", content=content, headers={"content-type": "application/json"}))
        assert not listener.heard, body
        sent += 1
        if sent % 100 == 0:
            whole(front, http)
            inspect(front, engines)

    send()
    whole(front, http)
    inspect(front, engines)
    assert not listener.heard
    assert psutil.Process(pid).is_running()
    assert front.process.poll() is None
    grown = (psutil.Process(pid).memory_info().rss - before) / 1e6
    print(f"{sent} bodies, the same process, {grown:.0f} MB more")
    assert grown < GROWTH_MB
    assert sent >= BODIES


KINDS = ("application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "")
POLYGLOT = b'{"model":"fast","x":"&model=standard&prompt=hi&max_tokens=1&a="}'
RAW = (
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"{",
    b"\xff\xfe{}",
    b'{"model":"standard","messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"model":"standard","messages":[{"role":"user","content":"a"}],"temperature":NaN}',
    b'{"model":"standard","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"model":"standard","messages":[{"role":"user","content":"a"}],"metadata":' + b'{"a":' * 900 + b"1" + b"}" * 901,
    b'{"model":"standard","messages":[{"role":"user","content":"a"}],"tools":[{"type":"function","function":'
    b'{"name":"f","parameters":' + b'{"a":' * 900 + b"{}" + b"}" * 900 + b"}}]}",
    b'{"model":"standard","model":"fast","messages":[{"role":"user","content":"a"}]}',
    b'{"model":"standard","max_tokens":' + b"9" * 5000 + b',"messages":[{"role":"user","content":"a"}]}',
    POLYGLOT,
    b"model=standard&prompt=hi",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("route", ROUTES)
def test_no_raw_body_opens_or_breaks_anything(
    front: Gateway, engines: dict[str, ScriptedEngine], http: httpx.Client, route: str, kind: str
):
    for content in RAW:
        judge(front, http.post(f"/v1/{route}", content=content, headers={"content-type": kind} if kind else {}))
    whole(front, http)
    inspect(front, engines)


def test_what_was_checked_is_what_goes_on(front: Gateway, engines: dict[str, ScriptedEngine], http: httpx.Client):
    """A form inside of JSON asked `fast` of the one reader and `standard` of the other."""
    kind = {"content-type": "application/x-www-form-urlencoded"}
    content = POLYGLOT[:-1] + b',"prompt":"hi"}'
    answer = http.post("/v1/completions", content=content, headers=kind)
    assert (answer.status_code, answer.headers["x-mlxq-tier"]) == (200, "fast")
    assert engines["standard"].seen() == []


HEAD = b'{"model":"standard","messages":['
COUNTLESS = {
    "messages": HEAD + b'{"role":"user","content":"a"},' * 900_000 + b'{"role":"user","content":"a"}]}',
    "wrong messages": HEAD + b'{"role":"x","content":1},' * 1_000_000 + b"1]}",
    "empty lists": HEAD + b"[]," * 9_000_000 + b"1]}",
    "unknown fields": b'{"model":"standard","x":{' + b'"a":[1],' * 3_000_000 + b'"b":1}}',
    "a string without an end": HEAD + b'{"role":"user","content":"' + b'\\"' * 14_000_000,
}


@pytest.mark.parametrize("what", COUNTLESS)
def test_countless_values_are_refused_before_they_take_memory(front: Gateway, http: httpx.Client, what: str):
    """27 MB of empty lists took 7 GB once, and the event loop for a minute."""
    assert front.process
    process = psutil.Process(front.process.pid)
    before = process.memory_info().rss
    answer = http.post("/v1/chat/completions", content=COUNTLESS[what])
    judge(front, answer)
    assert answer.json()["error"]["code"] in {"too_many_values", "invalid_json"}
    assert (process.memory_info().rss - before) / 1e6 < 4 * len(COUNTLESS[what]) / 1e6


def test_a_long_text_may_hold_as_many_signs_as_it_likes(front: Gateway, engines: dict[str, ScriptedEngine]):
    table = '1,2,"three",[4]\n' * 20_000
    answered = front.ask(f"{table} script {json.dumps({'text': 'a table'})}")
    assert answered.status_code == 200, answered.text
    assert answered.json()["choices"][0]["message"]["content"] == "a table"
