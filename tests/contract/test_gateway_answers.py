"""What the gateway adds to vllm-mlx and holds clients to. Each test fails when the gateway's part is taken out."""

from __future__ import annotations

import contextlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anthropic
import openai
import pytest
from support import loopback
from support.gateway import MASTER, Gateway, Upstream, until

from state import keys
from state.db import read_database
from state.errors import NotSetUp
from state.metrics import usage
from state.paths import Home

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
LINK = "https://example.org/a.pdf"
AS_SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}


def user(text: object) -> Any:
    return [{"role": "user", "content": text}]


@pytest.fixture
def client(proxy: Gateway, upstreams: dict[str, Upstream]) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{proxy.url}/v1",
        api_key=proxy.secrets["LITELLM_MASTER_KEY"],
        max_retries=0,
        http_client=loopback.client(),
    )


@pytest.fixture
def claude(proxy: Gateway, upstreams: dict[str, Upstream]) -> anthropic.Anthropic:
    return anthropic.Anthropic(
        base_url=proxy.url,
        api_key=proxy.secrets["LITELLM_MASTER_KEY"],
        max_retries=0,
        http_client=loopback.anthropic_client(),
    )


# Stop strings


def test_a_stop_string_ends_an_answer(client: openai.OpenAI, upstreams: dict[str, Upstream]):
    """The engine ignores `stop` and would continue to ten words; usage counts what was made until then."""
    answer = client.chat.completions.create(model="standard", messages=user("go"), stop=["four"])
    assert answer.choices[0].message.content == "one two three "
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 4)


def test_a_stop_string_across_chunks_ends_a_stream(client: openai.OpenAI):
    stream = client.chat.completions.create(model="standard", messages=user("go"), stop="ee four", stream=True)
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "one two thr"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_what_only_looks_like_a_stop_string_is_kept(client: openai.OpenAI):
    stream = client.chat.completions.create(
        model="standard", messages=user("say one twos"), stop=["two three", "ssss"], stream=True
    )
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == "one twos"


def test_anthropics_stop_sequences_work_too(claude: anthropic.Anthropic):
    answer = claude.messages.create(
        model="claude-opus-4-5", max_tokens=99, messages=user("go"), stop_sequences=["four"]
    )
    assert "".join(block.text for block in answer.content if block.type == "text").strip() == "one two three"


# Structured answers


def test_a_schema_is_carried_out_without_metal(client: openai.OpenAI, upstreams: dict[str, Upstream]):
    """json_schema itself would fail the engine's whole batch where there is no Metal."""
    answer = client.chat.completions.create(model="standard", messages=user('say {"a": 1}'), response_format=AS_SCHEMA)
    assert json.loads(answer.choices[0].message.content or "") == {"a": 1}
    seen = upstreams["standard"].seen()[-1]
    assert "response_format" not in seen
    assert json.dumps(SCHEMA, separators=(",", ":")) in seen["messages"][0]["content"]


def test_a_schema_is_carried_out_in_streams(client: openai.OpenAI):
    stream = client.chat.completions.create(
        model="standard", messages=user('say {"a": 1}'), response_format=AS_SCHEMA, stream=True
    )
    assert json.loads("".join(c.choices[0].delta.content or "" for c in stream if c.choices)) == {"a": 1}


def test_an_answer_that_misses_the_schema_is_an_error(client: openai.OpenAI):
    with pytest.raises(openai.UnprocessableEntityError, match="'x' is not of type 'integer'") as caught:
        client.chat.completions.create(model="standard", messages=user('say {"a": "x"}'), response_format=AS_SCHEMA)
    assert caught.value.code == "schema_mismatch"


def test_a_schema_that_is_none_is_refused(client: openai.OpenAI):
    faulty: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integr"}}}
    with pytest.raises(openai.BadRequestError, match="integr"):
        client.chat.completions.create(model="standard", messages=user("go"), response_format=faulty)


# Streams that break


@pytest.mark.parametrize("order", ["silent-end 5", "error-event 5", "die-after 5"])
def test_a_stream_cut_in_its_text_is_an_error(client: openai.OpenAI, order: str):
    """Passed on as it is, the silent one reads like a complete answer."""
    stream = client.chat.completions.create(model="standard", messages=user(order), stream=True)
    with pytest.raises(openai.APIError):
        list(stream)


@pytest.mark.parametrize("order", ["silent-end 0", "error-event 0", "die-after 0"])
def test_a_stream_cut_before_its_text_goes_on_elsewhere(
    client: openai.OpenAI, upstreams: dict[str, Upstream], order: str
):
    upstreams["standard"].fault(order)
    stream = client.chat.completions.create(model="standard", messages=user("say all of it"), stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == "all of it"


# Requests that are wrong


def test_an_overlong_prompt_is_named_as_openai_does(client: openai.OpenAI):
    for tier in ("standard", "fast", "longctx", "gpt-4o"):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=tier, messages=user("word " * 20_000))
        assert caught.value.code == "context_length_exceeded"
        assert "16384" in str(caught.value)


def test_a_long_prompt_goes_where_it_fits(proxy: Gateway, upstreams: dict[str, Upstream]):
    assert proxy.ask("say " + "word " * 2000, "fast").headers["x-mlxq-tier"] == "standard"
    assert proxy.ask("say " + "word " * 8000, "fast").headers["x-mlxq-tier"] == "longctx"


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("chat/completions", {"messages": user("word " * 8000), "stream": True}),
        ("completions", {"prompt": "word " * 8000}),
        ("responses", {"input": "word " * 8000}),
        ("messages", {"messages": user("word " * 8000), "max_tokens": 9}),
    ],
)
def test_every_dialects_long_prompt_goes_where_it_fits(
    proxy: Gateway, upstreams: dict[str, Upstream], path: str, asked: dict[str, Any]
):
    answer = proxy.post(f"/v1/{path}", {"model": "fast", **asked})
    assert (answer.status_code, answer.headers["x-mlxq-tier"]) == (200, "longctx")
    assert answer.headers["x-mlxq-tried"] == "longctx"


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": user([{"type": "text", "text": "see"}, PICTURE])}),
        ("chat/completions", {"messages": user([{"type": "input_audio", "input_audio": {"data": "aGk="}}])}),
        ("chat/completions", {"messages": user([{"type": "video", "video": "/etc/passwd"}])}),
        ("chat/completions", {"messages": user([{"type": "file", "file": {"file_id": LINK}}])}),
        (
            "messages",
            {"messages": user([{"type": "document", "source": {"type": "url", "url": LINK}}]), "max_tokens": 9},
        ),
        (
            "messages",
            {"messages": user([{"type": "image", "source": {"type": "url", "url": LINK}}]), "max_tokens": 9},
        ),
        ("responses", {"input": user([{"type": "input_file", "file_url": LINK}])}),
        ("responses", {"input": user([{"type": "input_image", "image_url": LINK}])}),
    ],
)
def test_what_a_text_model_cannot_see_or_hear_is_refused(
    proxy: Gateway, upstreams: dict[str, Upstream], path: str, body: dict[str, Any]
):
    """vllm-mlx would answer as if it were not there; no link is followed by anything."""
    before = len(upstreams["standard"].seen())
    answer = proxy.post(f"/v1/{path}", {"model": "standard", **body})
    assert answer.status_code == 400
    assert "is not supported: standard does not take" in answer.json()["error"]["message"]
    assert len(upstreams["standard"].seen()) == before


def test_no_messages_is_the_callers_error(client: openai.OpenAI, claude: anthropic.Anthropic):
    with pytest.raises(openai.BadRequestError, match="at least one message"):
        client.chat.completions.create(model="standard", messages=[])
    with pytest.raises(anthropic.BadRequestError, match="at least one message"):
        claude.messages.create(model="claude-opus-4-5", max_tokens=9, messages=[])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"{}", b'{"model": 7}', b'{"model": ["a"]}', b"\xff\xfe"])
def test_a_body_that_is_none_is_the_callers_error(proxy: Gateway, body: bytes):
    headers = {"Authorization": f"Bearer {proxy.secrets['LITELLM_MASTER_KEY']}"}
    response = loopback.post(f"{proxy.url}/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_an_unknown_name_is_told_what_exists(client: openai.OpenAI, claude: anthropic.Anthropic):
    with pytest.raises(openai.NotFoundError, match="fast, gpt-4o, gpt-4o-mini, longctx, standard") as caught:
        client.chat.completions.create(model="gpt-9", messages=user("go"))
    assert caught.value.code == "model_not_found"
    with pytest.raises(anthropic.NotFoundError, match="longctx, standard"):
        claude.messages.create(model="gemini", max_tokens=9, messages=user("go"))


def test_embeddings_without_a_model_are_said_to_be_missing(client: openai.OpenAI):
    with pytest.raises(openai.APIStatusError, match="No embedding model") as caught:
        client.embeddings.create(model="standard", input="x")
    assert caught.value.status_code == 404, "no SDK sends a 404 again"


@pytest.mark.parametrize("status", [400, 404, 422])
def test_an_engines_own_words_stay_in_its_log(client: openai.OpenAI, status: int):
    with pytest.raises(openai.APIStatusError, match="mlxq logs longctx") as caught:
        client.chat.completions.create(model="longctx", messages=user(f"status {status}"))
    assert caught.value.status_code == (422 if status == 422 else 400)
    assert caught.value.code == "refused_by_engine"
    assert "upstream says" not in str(caught.value)


@pytest.mark.parametrize("order", ["status 400", "status 422"])
def test_a_request_at_fault_is_not_taken_round(proxy: Gateway, upstreams: dict[str, Upstream], order: str):
    before = {name: len(one.seen()) for name, one in upstreams.items()}
    assert proxy.ask(order, "fast").status_code == int(order.split()[1])
    assert {name: len(one.seen()) - before[name] for name, one in upstreams.items()} == {
        "fast": 1,
        "standard": 0,
        "longctx": 0,
    }


def test_a_request_that_is_too_long_for_one_tier_goes_on(proxy: Gateway, upstreams: dict[str, Upstream]):
    upstreams["fast"].fault("status 400 maximum context length is 3 tokens")
    assert proxy.ask("say hello", "fast").headers["x-mlxq-tier"] == "standard"


# Tiers that are down


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_all_tiers_down_says_when_and_what_next(proxy: Gateway, upstreams: dict[str, Upstream], stream: bool):
    for one in upstreams.values():
        one.kill()
    for _ in range(4):  # fresh failures first, then tiers at rest
        response = proxy.ask("go", stream=stream)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "5"
        assert response.json()["error"]["code"] == "no_tier_available"
        assert "mlxq status" in response.json()["error"]["message"]


def alive(upstreams: dict[str, Upstream]) -> list[str]:
    return [name for name, one in upstreams.items() if one.process and one.process.poll() is None]


def test_a_request_that_kills_tiers_meets_two_of_them_at_most(proxy: Gateway, upstreams: dict[str, Upstream]):
    """Nor does it when the client sends it again, while other requests are served."""
    response = proxy.ask("die")
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "request_kills_tiers"
    until(lambda: len(alive(upstreams)) == 1)  # a process ends after its connections
    assert proxy.ask("die").status_code == 422
    assert proxy.ask("say well").headers["x-mlxq-tier"] == alive(upstreams)[0]


# Keys


@pytest.fixture
def ring(proxy: Gateway) -> Any:
    path = keys.file(Home(proxy.home))
    yield path
    path.unlink(missing_ok=True)


CHAT = {"model": "standard", "messages": user("say hi")}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer sk-wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic c2s6eA=="},
        {"x-api-key": "sk-wrong"},
        {"Authorization": "Bearer \xff\xfe"},
        {"Authorization": "Bearer " + "a" * 8000},
        {"x-litellm-api-key": "sk-wrong"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/models", "/model/info", "/nowhere"])
def test_no_or_wrong_key_is_a_401(proxy: Gateway, path: str, headers: dict[str, str]):
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    response = loopback.request("GET" if "model" in path else "POST", f"{proxy.url}{path}", json=CHAT, headers=raw)
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_both_styles_of_key_are_taken(proxy: Gateway, upstreams: dict[str, Upstream], path: str):
    master = proxy.secrets["LITELLM_MASTER_KEY"]
    body = {**CHAT, "max_tokens": 9}
    for headers in ({"x-api-key": master}, {"Authorization": f"Bearer {master}"}):
        assert loopback.post(f"{proxy.url}{path}", json=body, headers=headers).status_code == 200


def test_an_apps_key_works_until_it_is_revoked(proxy: Gateway, upstreams: dict[str, Upstream], ring: Any):
    key = keys.create(ring, "app")
    assert proxy.post("/v1/chat/completions", CHAT, key).status_code == 200
    keys.revoke(ring, "app")
    assert proxy.post("/v1/chat/completions", CHAT, key).status_code == 401


def test_an_apps_key_asks_for_its_tiers_alone(proxy: Gateway, upstreams: dict[str, Upstream], ring: Any):
    key = keys.create(ring, "app", tiers=("fast",))
    assert proxy.post("/v1/chat/completions", {**CHAT, "model": "gpt-4o-mini"}, key).status_code == 200
    assert proxy.post("/v1/chat/completions", CHAT, key).status_code == 403


def test_an_apps_key_is_held_to_its_rate(proxy: Gateway, upstreams: dict[str, Upstream], ring: Any):
    key = keys.create(ring, "app", rpm=2)
    codes = [proxy.post("/v1/chat/completions", CHAT, key).status_code for _ in range(3)]
    assert codes == [200, 200, 429]


NOWHERE = [
    *("/model/info", "/router/settings", "/get/config/callbacks", "/debug/asyncio-tasks", "/key/list", "/metrics"),
    *("/v1/images/generations", "/v1/moderations", "/v1/assistants"),
    *("/v1/foo", "/", "/docs", "/v1/responses/resp_1"),
]


@pytest.mark.parametrize("path", NOWHERE)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_routes_are_nowhere_for_every_key(proxy: Gateway, ring: Any, method: str, path: str):
    """Also for the master key: no route of it reaches an engine, and so none can put a tier to rest."""
    for key in (keys.create(ring, "app"), MASTER):
        response = loopback.request(method, f"{proxy.url}{path}", headers={"Authorization": f"Bearer {key}"}, json=CHAT)
        assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")
    keys.revoke(ring, "app")


def test_speech_is_not_served_and_said_so(client: openai.OpenAI):
    """OpenAI's client asks again after a 501 unless it is told not to."""
    with pytest.raises(openai.InternalServerError, match="no model that hears or speaks") as caught:
        client.with_options(max_retries=5).audio.speech.create(model="tts-1", voice="alloy", input="hello")
    assert caught.value.status_code == 501
    with pytest.raises(openai.InternalServerError, match="no model that hears or speaks"):
        client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"RIFF"))
    assert caught.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/chat/completions"), ("DELETE", "/v1/messages"), ("POST", "/v1/models")]
)
def test_a_wrong_method_is_named(proxy: Gateway, method: str, path: str):
    response = loopback.request(method, f"{proxy.url}{path}", headers={"Authorization": f"Bearer {MASTER}"})
    assert response.status_code == 405
    assert response.headers["allow"] in {"POST", "GET, HEAD"}


def test_damaged_keys_open_nothing_and_close_nothing_else(proxy: Gateway, upstreams: dict[str, Upstream], ring: Any):
    key = keys.create(ring, "app")
    ring.write_text("[{")
    assert proxy.post("/v1/chat/completions", CHAT, key).status_code == 401
    assert proxy.post("/v1/chat/completions", CHAT).status_code == 200


def test_background_requests_stand_back(proxy: Gateway, upstreams: dict[str, Upstream], ring: Any):
    """A background request that comes during an interactive stream reaches the engine after it."""
    key = keys.create(ring, "batch", background=True)
    body = {**CHAT, "messages": user("held"), "stream": True}
    headers = {"Authorization": f"Bearer {proxy.secrets['LITELLM_MASTER_KEY']}"}
    engine, background = upstreams["standard"], {**CHAT, "messages": user("say afterwards")}
    url, pool = f"{proxy.url}/v1/chat/completions", ThreadPoolExecutor(1)
    with pool, loopback.stream("POST", url, json=body, headers=headers, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        answer = pool.submit(proxy.post, "/v1/chat/completions", background, key)
        for _ in range(5):
            assert proxy.post("/v1/chat/completions", CHAT).status_code == 200
        assert "say afterwards" not in str(engine.seen())
        engine.release()
        assert "[DONE]" in "".join(lines)
        assert answer.result().status_code == 200
    assert "say afterwards" in str(engine.seen()[-1])


# Accounts


def counted_by(proxy: Gateway) -> dict[str, int]:
    """Return the requests that are counted so far, by key."""
    db = read_database(Home(proxy.home))
    rows = usage.totals(db, "key")
    db.close()
    return {row["key"]: row["requests"] for row in rows}


def counted(proxy: Gateway, key: str, requests: int) -> dict[str, Any]:
    """Wait until that many requests of a key are counted; return its sums."""
    row: dict[str, Any] = {}
    deadline = time.monotonic() + 60
    while row.get("requests") != requests:
        assert time.monotonic() < deadline, row
        time.sleep(0.2)
        with contextlib.suppress(NotSetUp):  # the first request that is counted makes it
            db = read_database(Home(proxy.home))
            row = next((row for row in usage.totals(db, "key") if row["key"] == key), {})
            db.close()
    return row


def test_the_first_word_is_counted_when_it_comes(proxy: Gateway, upstreams: dict[str, Upstream], ring: Any):
    """An engine says at once who speaks, here half a second before the first word."""
    key = keys.create(ring, "listener")
    proxy.post("/v1/chat/completions", {**CHAT, "stream": True, "messages": user("slow 0.5")}, key)
    assert counted(proxy, "listener", 1)["first_byte_seconds"] >= 0.5


def test_usage_is_counted_by_key_and_tier(proxy: Gateway, upstreams: dict[str, Upstream], ring: Any):
    key = keys.create(ring, "counted")
    for stream in (False, True):
        proxy.post("/v1/chat/completions", {**CHAT, "stream": stream, "messages": user("say a b c")}, key)
    upstreams["standard"].kill()
    proxy.post("/v1/chat/completions", CHAT, key)
    proxy.post("/v1/chat/completions", {**CHAT, "model": "nope"}, key)
    row = counted(proxy, "counted", 4)
    assert (row["failed"], row["fallbacks"]) == (1, 1)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (21, 7)


def test_a_check_of_mlxq_is_counted_nowhere_and_a_client_cannot_hide(
    proxy: Gateway, upstreams: dict[str, Upstream], ring: Any
):
    """The header counts for the master key alone."""
    key = keys.create(ring, "hider")

    def ask(key: str) -> int:
        headers = {"Authorization": f"Bearer {key}", "x-mlxq-check": "1"}
        return loopback.post(f"{proxy.url}/v1/chat/completions", json=CHAT, headers=headers, timeout=60).status_code

    proxy.post("/v1/chat/completions", CHAT, keys.create(ring, "counted-last"))
    counted(proxy, "counted-last", 1)  # and with it all that was asked before
    before = counted_by(proxy).get("mlxq")
    assert (ask(MASTER), ask(key)) == (200, 200)
    counted(proxy, "hider", 1)
    assert counted_by(proxy).get("mlxq") == before


def test_no_key_and_no_prompt_is_in_the_log(proxy: Gateway, upstreams: dict[str, Upstream]):
    proxy.ask("say xyzzy-secret-prompt")
    proxy.ask("status 500 xyzzy-secret-prompt")
    text = proxy.log.read_text()
    assert not [key for key in proxy.secrets.values() if key in text]
    assert "xyzzy" not in text


# Other dialects


def test_completions_stop_too(client: openai.OpenAI):
    answer = client.completions.create(model="standard", prompt="go", stop="four")
    assert answer.choices[0].text == "one two three "


def test_responses_and_messages_and_their_count(client: openai.OpenAI, claude: anthropic.Anthropic):
    assert client.responses.create(model="standard", input="say hello").output_text == "hello"
    answer = claude.messages.create(model="claude-opus-4-5", max_tokens=9, messages=user("say hello"))
    assert [block.text for block in answer.content if block.type == "text"] == ["hello"]
    with claude.messages.stream(model="claude-opus-4-5", max_tokens=9, messages=user("say a b")) as stream:
        assert "".join(stream.text_stream) == "a b"
    assert claude.messages.count_tokens(model="claude-opus-4-5", messages=user("say hello")).input_tokens > 0


def test_models_lists_the_tiers(client: openai.OpenAI):
    assert {"standard", "fast", "longctx"} <= {model.id for model in client.models.list()}
