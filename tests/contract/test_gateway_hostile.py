"""What a user with an app's key tried against the gateway, each of which once broke something: it must stay whole."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
from support import loopback
from support.gateway import Gateway
from support.scripted import ScriptedEngine, script

USER: Any = [{"role": "user", "content": "hello"}]
OVER = 2**64


@pytest.fixture(autouse=True)
def whole(front: Gateway, engines: dict[str, ScriptedEngine]) -> Iterator[None]:
    """Hold each test to the same process, no traceback, and no tier at rest."""
    assert front.process
    before = front.log.stat().st_size
    yield
    assert front.process.poll() is None
    assert b"Traceback" not in front.log.read_bytes()[before:]
    for name in engines:
        assert front.ask("hello", name).headers["x-mlxq-tried"] == name


def refused(answer: httpx.Response, code: str, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.get("code", code) == code
    return error


# Numbers that no JSON writer of ours can pass on


NUMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat_template_kwargs": ("chat/completions", {"messages": USER, "chat_template_kwargs": {"a": OVER}}),
    "a tool's schema": (
        "chat/completions",
        {"messages": USER, "tools": [{"type": "function", "function": {"name": "f", "parameters": {"minimum": OVER}}}]},
    ),
    "a schema": (
        "chat/completions",
        {"messages": USER, "response_format": {"type": "json_schema", "json_schema": {"schema": {"maximum": -OVER}}}},
    ),
    "a tool of Anthropic's": (
        "messages",
        {"messages": USER, "max_tokens": 9, "tools": [{"name": "f", "input_schema": {"a": [OVER]}}]},
    ),
    "an earlier call": (
        "messages",
        {
            "max_tokens": 9,
            "messages": [
                *USER,
                {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"a": OVER}}]},
                *USER,
            ],
        },
    ),
    "a count": ("messages/count_tokens", {"messages": USER, "tools": [{"name": "f", "input_schema": {"a": OVER}}]}),
    "a tool of Responses": (
        "responses",
        {"input": "a", "tools": [{"type": "function", "name": "f", "parameters": {"a": OVER}}]},
    ),
    "token ids": ("embeddings", {"input": [OVER]}),
    "a document": ("rerank", {"query": "a", "documents": [{"text": OVER}]}),
}


@pytest.mark.parametrize("where", NUMBERS)
def test_a_number_that_cannot_go_on_is_refused(front: Gateway, where: str):
    path, body = NUMBERS[where]
    error = refused(front.post(f"/v1/{path}", {"model": "standard", **body}), "invalid_value")
    assert "64 bits" in error["message"]


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    "field",
    [
        '"temperature":',
        '"chat_template_kwargs":{"a":',
        '"tools":[{"type":"function","function":{"name":"f","parameters":{"a":',
    ],
)
def test_a_number_that_is_none_never_reaches_an_engine(
    front: Gateway, engines: dict[str, ScriptedEngine], number: str, field: str
):
    ends = {"{": "}", "[": "]"}
    closing = "".join(ends[sign] for sign in reversed(field) if sign in ends)
    content = f'{{"model":"standard","messages":[{{"role":"user","content":"a"}}],{field}{number}{closing}}}'
    answer = loopback.post(f"{front.url}/v1/chat/completions", content=content.encode(), headers=headers(front))
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"]
    assert engines["standard"].seen() == []


def headers(front: Gateway) -> dict[str, str]:
    return {"authorization": f"Bearer {front.secrets['LITELLM_MASTER_KEY']}"}


# Words that would be headers


@pytest.mark.parametrize("kind", ["x\r\nset-cookie: a=b", "😀", "x" * 100_000, "a b", ""])
def test_the_kind_of_a_tool_is_no_header_of_its_own(front: Gateway, kind: str):
    answer = front.post("/v1/responses", {"model": "standard", "input": "a", "tools": [{"type": kind}]})
    assert refused(answer, "invalid_value")["param"] == "tools[0].type"
    assert "set-cookie" not in answer.headers


def test_all_tools_that_are_left_out_are_named_once(front: Gateway):
    tools = [{"type": kind} for kind in ("web_search", "mcp", "web_search", *(f"x{number}" for number in range(500)))]
    answer = front.post("/v1/responses", {"model": "standard", "input": "a", "tools": tools})
    assert answer.status_code == 200
    dropped = answer.headers["x-mlxq-dropped"].split(",")
    assert dropped[0] == "tools.mcp"
    assert len(dropped) == len(set(dropped)) == 20


# Messages that become none


@pytest.mark.parametrize("more", [{}, {"output_format": {"type": "json_schema", "schema": {}}}, {"system": []}])
@pytest.mark.parametrize("content", ["", "be kind", []])
def test_a_talk_without_a_user_is_refused(front: Gateway, more: dict[str, Any], content: Any):
    body = {"model": "standard", "max_tokens": 9, "messages": [{"role": "system", "content": content}], **more}
    assert "message of the user" in refused(front.post("/v1/messages", body), "empty_messages")["message"]


# Schemas


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("named", [[], {"a": 1}, 7, "http://[", "http://127.0.0.1:1/"])
def test_a_schema_of_an_odd_draft_is_answered_or_refused(lenient: Gateway, named: Any, stream: bool):
    form = {"type": "json_schema", "json_schema": {"schema": {"$schema": named, "type": "object"}}}
    answer = lenient.ask(script(text="{}"), response_format=form, stream=stream)
    assert answer.status_code in {200, 400}, answer.text


@pytest.fixture(scope="module")
def lenient(
    front: Gateway,
    every_engine: dict[str, ScriptedEngine],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    """Run a gateway that checks answers itself, as without Metal."""
    made = Gateway(
        home=tmp_path_factory.mktemp("lenient"),
        tiers=[engine.tier() for engine in every_engine.values()],
        secrets=front.secrets,
    )
    made.start()
    yield made
    made.stop()


# An engine that talks oddly: the caller is answered by the next one, or is told in words


def event(**chunk: Any) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


def piece(**delta: Any) -> str:
    return event(choices=[{"index": 0, "delta": delta}])


ODD = {
    "a number": "data: 7\n\n",
    "choices that are none": event(choices=7),
    "a choice that is none": event(choices=[7]),
    "a delta that is none": event(choices=[{"delta": 7}]),
    "words that are none": piece(content=7),
    "a usage that is none": event(choices=[], usage={"prompt_tokens": "x"}),
    "an index that is none": piece(tool_calls=[{"index": "x", "id": "a", "function": {"name": "f"}}]),
    "a call without an id": piece(tool_calls=[{"index": 0, "function": {"arguments": "{}"}}]),
    "a call without a function": piece(tool_calls=[{"index": None, "id": "a", "function": None}]),
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", ["chat/completions", "messages"])
@pytest.mark.parametrize("odd", ODD)
def test_an_odd_answer_of_an_engine_is_no_internal_error(
    front: Gateway, engines: dict[str, ScriptedEngine], odd: str, path: str, stream: bool
):
    engines["standard"].order(
        events=[ODD[odd], event(choices=[{"delta": {}, "finish_reason": "stop"}]), "data: [DONE]\n\n"]
    )
    body = {"model": "standard", "messages": USER, "max_tokens": 9, "stream": stream}
    stops = {"stop": "zz"} if path == "chat/completions" else {"stop_sequences": ["zz"]}
    answer = front.post(f"/v1/{path}", {**body, **stops})
    engines["standard"].order()
    assert answer.status_code == 200, answer.text
    time.sleep(1.1)  # an engine that fails is asked last for a second


# The wire


def test_a_body_in_countless_chunks_holds_nobody_up(front: Gateway):
    """200,000 chunks of a byte: others once waited a second and more for each read."""
    content = json.dumps({"model": "standard", "messages": USER}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers(front).items()) + "\r\n"
    chunks = b"1\r\n \r\n" * 200_000 + b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
    answers: list[bytes] = []

    def send() -> None:
        with socket.create_connection(("127.0.0.1", front.port), 60) as peer:
            peer.sendall(head.encode() + chunks)
            answers.append(peer.recv(65_536))

    assert front.process
    process = psutil.Process(front.process.pid)
    sender = threading.Thread(target=send)
    sender.start()
    longest = 0.0
    with loopback.client(base_url=front.url, timeout=loopback.LIMIT_S) as client:
        while sender.is_alive():
            before, used = process.cpu_times().user, time.process_time()
            client.get("/health")
            longest = max(longest, process.cpu_times().user - before - (time.process_time() - used))
    assert answers[0].startswith(b"HTTP/1.1 200")
    assert longest < 0.5, "CPU seconds of the gateway before another client's turn came"


def test_words_without_the_call_that_was_asked_for_rest_no_tier(front: Gateway):
    """More of them than there is room to hold back."""
    body: dict[str, Any] = {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}
    answer = front.ask(script(tokens=150_000), stream=True, **body)
    assert answer.status_code == 422 or answer.text.startswith(": waiting"), answer.text
    assert "tool_call_missing" in answer.text
