"""The front's door: what LiteLLM's proxy gets to see of a request, and who gets to it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.front import configuration
from tasks.front import plan as front
from tasks.front.front_door import (
    KEY,
    SESSION,
    AppKey,
    AppKeys,
    FrontDoor,
    Message,
    Policy,
    Scope,
    conversation,
    passed,
)
from tasks.plan import gateway

MASTER = "sk-master"
PARTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"$ref": "#/$defs/Part"}}]}
SCHEMA = {
    "$defs": {
        "Part": {"type": "object", "properties": {"text": {"type": "string"}}},
        "Turn": {
            "type": "object",
            "properties": {"role": {}, "content": PARTS},
        },
    },
    "type": "object",
    "properties": {
        "model": {"type": "string"},
        "messages": {"type": "array", "items": {"$ref": "#/$defs/Turn"}},
        "shape": {"type": "object", "additionalProperties": True},
    },
}  # fmt: skip


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class Proxy:
    """An application that keeps what it saw and answers as LiteLLM does, with the addresses of nodes."""

    def __init__(self) -> None:
        self.seen: list[tuple[Scope, Any]] = []

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        body = (await receive())["body"] if scope["method"] == "POST" else b""
        self.seen.append((scope, json.loads(body or b"null")))
        headers = [(b"x-litellm-model-api-base", b"https://10.0.0.2"), (b"x-litellm-model-id", b"standard@atlas")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})


@pytest.fixture
def proxy() -> Proxy:
    return Proxy()


@pytest.fixture
def door(proxy: Proxy, tmp_path: Path) -> FrontDoor:
    rows = [
        {"name": "app", "digest": digest("sk-app"), "tiers": [], "rpm": None},
        {"name": "small", "digest": digest("sk-small"), "tiers": ["fast"], "rpm": 5},
        {"name": "node", "digest": digest("sk-fleet"), "tiers": [], "rpm": None, "kind": "fleet"},
    ]
    (tmp_path / "keys.json").write_text(json.dumps(rows))
    policy = Policy({"/v1/chat/completions": SCHEMA}, frozenset({"standard", "fast"}), {"gpt-*": "standard"})
    return FrontDoor(proxy, AppKeys(tmp_path / "keys.json", digest(MASTER)), policy)


def ask(
    door: FrontDoor, body: Any = None, path: str = "/v1/chat/completions", key: str = "sk-app", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send a request through the door; without a body a GET. Return the status, the headers and the body."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"authorization": f"Bearer {key}"} if key else {}
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in (given | headers).items()]
    scope = {"type": "http", "method": "GET" if body is None else "POST", "path": path, "headers": pairs}
    messages: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(message: Message) -> None:
        messages.append(message)

    asyncio.run(door({**scope, "query_string": b"timeout=1"}, receive, send))
    sent = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    return messages[0]["status"], sent, messages[1]["body"]


def test_only_named_fields_pass_at_every_depth_and_objects_of_any_shape_whole() -> None:
    shape = {"properties": {"api_base": 1}}
    turn = {"role": "user", "content": [{"text": "Hi", "file": "/etc/passwd"}], "cache_control": {}}
    given = {"model": "fast", "messages": [turn, "odd"], "shape": shape, "api_base": "http://evil", "user_config": {}}
    kept = {"model": "fast", "messages": [{"role": "user", "content": [{"text": "Hi"}]}, "odd"], "shape": shape}
    assert passed(given, SCHEMA, SCHEMA["$defs"]) == kept


def test_what_litellm_obeys_passes_in_no_dialect() -> None:
    obeyed = (
        *("user_config", "api_base", "base_url", "api_key", "fallbacks", "custom_llm_provider", "timeout", "tags"),
        *("mock_response", "num_retries", "metadata", "litellm_metadata", "extra_headers", "extra_body", "caching"),
        *("guardrails", "disable_fallbacks", "request_timeout", "context_window_fallback_dict", "organization"),
    )
    policy = front.files([], {}, schemas=configuration.schemas(), names={}, ring="", master="").policy
    for schema in policy["routes"].values():
        body = passed(dict.fromkeys(obeyed, "x") | {"model": "fast"}, schema, schema.get("$defs", {}))
        assert body == {"model": "fast"}


def test_the_proxy_sees_a_group_the_conversation_and_no_header_that_it_would_obey(
    door: FrontDoor, proxy: Proxy
) -> None:
    body = {"model": "gpt-5", "messages": [{"role": "user", "content": "Hi"}], "mock_response": "I am free"}
    status, headers, _ = ask(door, body, x_litellm_timeout="1", x_litellm_tags="a", content_type="application/json")
    (scope, seen), names = proxy.seen[0], {name for name, _ in proxy.seen[0][0]["headers"]}
    assert (status, headers) == (200, {"x-litellm-model-id": "standard@atlas"})
    assert seen == {"model": "standard", "messages": [{"role": "user", "content": "Hi"}]}
    assert names == {b"authorization", b"content-type", SESSION}
    assert (scope["query_string"], scope[KEY]) == (b"", AppKey("app", digest("sk-app")))


@pytest.mark.parametrize(
    ("path", "key", "body", "status", "code"),
    [
        ("/v1/chat/completions", "", {}, 401, "invalid_api_key"),
        ("/v1/chat/completions", "sk-other", {}, 401, "invalid_api_key"),
        ("/v1/chat/completions", "sk-fleet", {}, 401, "invalid_api_key"),
        ("/key/generate", MASTER, {}, 404, "unknown_route"),
        ("/config/update", MASTER, {}, 404, "unknown_route"),
        ("/v1/chat/completions/", MASTER, {}, 404, "unknown_route"),
        ("/v1/chat/completions", "sk-app", None, 405, "method_not_allowed"),
        ("/v1/models", "sk-app", {}, 405, "method_not_allowed"),
        ("/v1/chat/completions", "sk-app", b"{", 400, "invalid_json"),
        ("/v1/chat/completions", "sk-app", b"[" * 100_000, 400, "invalid_json"),
        ("/v1/chat/completions", "sk-app", [], 400, "invalid_json"),
        ("/v1/chat/completions", "sk-app", {"model": "os.environ/HOME"}, 404, "model_not_found"),
        ("/v1/chat/completions", "sk-app", {"model": ["standard"]}, 404, "model_not_found"),
        ("/v1/chat/completions", "sk-small", {"model": "gpt-5"}, 403, "model_not_allowed"),
    ],
)
def test_what_the_proxy_does_not_get_to_see(  # noqa: PLR0917 (a row of the table)
    door: FrontDoor, proxy: Proxy, path: str, key: str, body: Any, status: int, code: str
) -> None:
    answer = ask(door, body, path, key)
    assert (answer[0], json.loads(answer[2])["error"]["code"]) == (status, code)
    assert not proxy.seen


def test_what_a_key_says_of_turn_and_storing_is_told_before_the_proxy_is_asked(door: FrontDoor, tmp_path: Path) -> None:
    told: list[str] = []
    door.tell = told.append
    rows = [
        {"name": "night", "digest": digest("sk-night"), "tiers": [], "rpm": None, "background": True, "store": False},
        {"name": "app", "digest": digest("sk-app"), "tiers": [], "rpm": None, "background": False, "store": True},
    ]
    (tmp_path / "keys.json").write_text(json.dumps(rows))
    for key in ("sk-night", "sk-app", MASTER):
        assert ask(door, {"model": "fast"}, key=key)[0] == 200
    assert told == [f"{gateway.BACKGROUND} {gateway.NO_STORE}", "", ""]


def test_a_request_of_two_lengths_is_refused(door: FrontDoor, proxy: Proxy) -> None:
    status, _, _ = ask(door, {}, content_length="2", transfer_encoding="chunked")
    assert (status, proxy.seen) == (400, [])


def test_a_health_check_needs_no_key_and_shows_none(door: FrontDoor, proxy: Proxy) -> None:
    assert ask(door, None, "/health/liveliness", "sk-app")[0] == 200
    assert proxy.seen[0][0]["headers"] == []


def test_a_key_that_is_revoked_opens_nothing_and_a_damaged_file_changes_nothing(
    door: FrontDoor, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    assert ask(door, {"model": "fast"})[0] == 200
    file.write_text("{")
    assert ask(door, {"model": "fast"})[0] == 200
    file.write_text("[]")
    assert (ask(door, {"model": "fast"})[0], ask(door, {"model": "fast"}, key=MASTER)[0]) == (401, 200)


def test_the_turns_of_a_conversation_have_one_name_and_two_conversations_have_two() -> None:
    opening = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    later = [*opening, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Why?"}]
    assert conversation({"messages": opening}) == conversation({"messages": later, "temperature": 1})
    assert conversation({"messages": opening}) != conversation({"messages": opening[1:]})
    assert conversation({"messages": opening}) != conversation({"messages": opening, "system": "Be long."})
    assert conversation({"input": "Hi"}) == conversation({"input": "Hi", "tools": []})
    assert conversation({"input": ["some", "text"]}) == conversation({"input": ["some", "text"]})
    assert conversation({"messages": []}) is conversation({}) is None


def test_while_no_node_serves_apps_are_to_try_again(door: FrontDoor) -> None:
    door.policy = replace(door.policy, groups=frozenset())
    status, headers, body = ask(door, {"model": "standard", "messages": []})
    assert (status, headers["retry-after"], json.loads(body)["error"]["code"]) == (503, "5", "no_node")
