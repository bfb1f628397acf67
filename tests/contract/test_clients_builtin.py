"""Clients through the real gateway to the real engines: nothing here is scripted.

The model is a tiny one of random weights, as no matter what is said: it reads and writes fifty times as fast as the
built-in one.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from support import hybrid_model, loopback, responses_events
from support.engines import KEY, Engine, installation
from support.gateway import Gateway
from support.npm import Person, installed

from catalog.engines import Abilities, abilities
from mlxq.clients.client import Target
from state.stack import as_tiers
from tasks.engines import adapters
from tasks.plan.request_stats import EngineRequest
from tasks.supervision import probe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONTEXT = 2048
STEP = 16
"""Prompt tokens that are read at a time: nothing interrupts an engine within. One takes 0.1 s of CPU time here."""
FREE_S = 60.0
"""For a busy machine with two processors; benchmarks/gateway.py has the figure."""
FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]


@dataclass
class Real:
    """The engine's process, and the gateway before it."""

    engine: Engine
    gateway: Gateway

    @property
    def can(self) -> Abilities:
        """Return what the engine can do by itself."""
        return abilities(self.engine.at.engine, "cpu")

    @property
    def key(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.gateway.secrets['LITELLM_MASTER_KEY']}"}

    def requests(self) -> list[EngineRequest]:
        """Return the requests that the engine has."""
        return probe.detailed_status(self.engine.port, KEY, 30, release=self.engine.at.name)[1]

    def busy(self) -> int:
        """Return how many requests it works on or will."""
        status = self.engine.status()
        return status.num_running + status.num_waiting

    def waiting(self) -> bool:
        return self.engine.status().num_waiting > 0

    def reading(self) -> bool:
        return self.engine.status().prefilling

    def generating(self) -> bool:
        return any(request.completion_tokens for request in self.requests())

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        answer = loopback.post(
            f"{self.gateway.url}{path}", json={"model": "standard", **body}, headers=self.key, timeout=120
        )
        assert answer.headers.get("x-mlxq-tried", "standard") == "standard", "no other tier is asked"
        return answer

    def open(self, path: str, body: dict[str, Any]) -> socket.socket:
        """Send a request and return its connection: whoever closes it leaves."""
        content = json.dumps({"model": "standard", "temperature": 0, **body}).encode()
        head = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {len(content)}"]
        head += [f"{name}: {value}" for name, value in self.key.items()]
        connection = socket.create_connection(("127.0.0.1", self.gateway.port))
        connection.sendall("\r\n".join([*head, "", ""]).encode() + content)
        return connection


def until(true: Callable[[], object], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module", params=list(adapters.ENGINES))
def small(
    request: pytest.FixtureRequest,
    shared_folder: Path,
    builtin_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Real]:
    """Serve the model with each engine in turn, installed as mlxq installs it, behind the real gateway."""
    at = installation(request.param, shared_folder / "engines")
    weights = hybrid_model.make("plain", tmp_path_factory.mktemp("plain"), builtin_model)
    more = {"prefill_step": STEP}
    engine = Engine(tmp_path_factory.mktemp("engine"), weights, at, 2**24, CONTEXT, 2, name="standard", more=more)
    gateway = Gateway(
        home=tmp_path_factory.mktemp("gateway"),
        tiers=[engine.tier],
        programs={"standard": at.engine},
        secrets={"LITELLM_MASTER_KEY": "sk-mlxq-master-of-the-built-in", "MLXQ_TIER_KEY": KEY},
    )
    try:
        engine.start()
        gateway.start()
        yield Real(engine, gateway)
    finally:
        gateway.stop()
        engine.stop(1)


def openai_of(served: Real) -> openai.OpenAI:
    key = served.gateway.secrets["LITELLM_MASTER_KEY"]
    return openai.OpenAI(base_url=f"{served.gateway.url}/v1", api_key=key, max_retries=0, http_client=loopback.client())


def anthropic_of(served: Real) -> anthropic.Anthropic:
    key = served.gateway.secrets["LITELLM_MASTER_KEY"]
    return anthropic.Anthropic(
        base_url=served.gateway.url, api_key=key, max_retries=0, http_client=loopback.anthropic_client()
    )


@pytest.fixture
def client(small: Real) -> openai.OpenAI:
    return openai_of(small)


@pytest.fixture
def claude(small: Real) -> anthropic.Anthropic:
    return anthropic_of(small)


def test_the_three_dialects_tell_the_same_answer(client: openai.OpenAI, claude: anthropic.Anthropic):
    """With temperature 0 one model says one thing, whichever way it is asked, whole or streamed."""
    asked: Any = {"model": "standard", "extra_body": {"temperature": 0}}  # anthropic 2.x has no such argument
    chat = client.chat.completions.create(**asked, messages=FRANCE, max_tokens=12)
    with client.responses.stream(**asked, input=FRANCE, max_output_tokens=12) as stream:
        response = stream.get_final_response()
    with claude.messages.stream(**asked, messages=FRANCE, max_tokens=12) as told:
        message = told.get_final_message()
    texts = [chat.choices[0].message.content or "", response.output_text, message.content[0].model_dump()["text"]]
    stripped = {text.strip() for text in texts}
    assert len(stripped) == 1, "vllm-mlx keeps the space before the first word in one of them"
    assert stripped.pop()
    assert chat.usage
    assert response.usage
    read = message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    counts = {chat.usage.prompt_tokens, response.usage.input_tokens, read}
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


HELLO: Any = [{"role": "user", "content": "Say hello."}]


def inside(pieces: Iterable[str | None]) -> tuple[str, str]:
    """Return a stop string that begins inside one token of an answer and ends in the next, and what is before it."""
    words = [piece for piece in pieces if piece]
    at = next(at for at, piece in enumerate(words[:-1]) if len(piece) > 2)
    stop, whole = words[at][2:] + words[at + 1][0], "".join(words)
    before = whole[: whole.index(stop)].strip()
    assert before
    return stop, before


def test_a_stop_string_ends_a_real_answer_and_its_work(small: Real):
    """Text and usage are those of the whole answer, cut, also inside a token; Anthropic's dialect names the string.

    An engine that has sent the token cannot take its end back. Greedy, the model says the same each time.
    """
    client, claude = openai_of(small), anthropic_of(small)
    asked: Any = {"model": "standard", "messages": HELLO, "extra_body": {"temperature": 0}, "max_tokens": 1500}
    whole = list(client.chat.completions.create(**asked | {"max_tokens": 32}, stream=True))
    stop, before = inside(chunk.choices[0].delta.content for chunk in whole if chunk.choices)
    chat = client.chat.completions.create(**asked, stop=[stop])
    chunks = list(client.chat.completions.create(**asked, stop=stop, stream=True))
    with claude.messages.stream(**asked, stop_sequences=[stop]) as stream:
        message = stream.get_final_message()
    texts = [chat.choices[0].message.content or "", message.content[0].model_dump()["text"]]
    texts += ["".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)]
    assert {text.strip() for text in texts} == {before}, "rapid-mlx also cuts the space before it"
    assert chat.choices[0].finish_reason == "stop"
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert chat.usage
    assert chat.usage.prompt_tokens == message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)
    assert 0 < chat.usage.completion_tokens < 32
    until(lambda: not small.busy(), FREE_S)


def test_a_stop_string_cuts_a_completion_too(client: openai.OpenAI):
    """Whole and streamed, by the first of two that comes."""
    asked: Any = {"model": "standard", "prompt": COUNTING, "temperature": 0, "max_tokens": 30}
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True) if chunk.choices]
    stop, before = inside(pieces)
    words = asked | {"stop": [stop, "never"]}
    whole = client.completions.create(**words).choices[0]
    cut = [chunk.choices[0].text for chunk in client.completions.create(**words, stream=True) if chunk.choices]
    assert whole.text.strip() == "".join(cut).strip() == before
    assert whole.finish_reason == "stop"


def test_a_stream_is_as_openais_reference_has_it(small: Real):
    asked = {"messages": FRANCE, "max_tokens": 4, "stream": True}
    lines = small.post("/v1/chat/completions", asked).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if "{" in line]
    assert all("finish_reason" in choice for chunk in chunks for choice in chunk["choices"])
    assert all("usage" not in chunk or chunk["usage"] is None for chunk in chunks)
    told = small.post("/v1/responses", {"input": FRANCE, "max_output_tokens": 4, "stream": True}).text
    response = responses_events.check(responses_events.read(told))
    assert response["status"] == "incomplete"
    assert response["usage"]["input_tokens"] > 5


def test_a_count_is_that_of_the_answer(client: openai.OpenAI, claude: anthropic.Anthropic, small: Real):
    counted = claude.messages.count_tokens(model="standard", messages=FRANCE).input_tokens
    usage = client.chat.completions.create(model="standard", messages=FRANCE, max_tokens=1).usage
    assert usage
    assert (counted == usage.prompt_tokens) is small.can.counts_exactly
    assert 0 < counted <= usage.prompt_tokens


SCHEMA: Any = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FORCED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": FRANCE,
        "max_tokens": 8,
        "tools": [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}],
        "tool_choice": "required",
    },
    "/v1/responses": {
        "input": FRANCE,
        "max_output_tokens": 8,
        "tools": [{"type": "function", "name": "look", "parameters": SCHEMA}],
        "tool_choice": "required",
    },
    "/v1/messages": {
        "messages": FRANCE,
        "max_tokens": 8,
        "tools": [{"name": "look", "input_schema": SCHEMA}],
        "tool_choice": {"type": "any"},
    },
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", FORCED)
def test_a_call_that_so_small_a_model_cannot_make_is_an_error(small: Real, path: str, stream: bool):
    """Not plain text and 200, not a call that the engine made up, not a tier at rest."""
    answer = small.post(path, {**FORCED[path], "stream": stream, "temperature": 0})
    assert answer.status_code == 422 or (stream and answer.status_code == 200)
    assert "without the tool call" in answer.text
    assert "Paris" not in answer.text


CALLED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "user", "content": "What is the weather in Oslo?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "rain"},
        ],
        "tools": FORCED["/v1/chat/completions"]["tools"],
    },
    "/v1/responses": {
        "input": [
            {"role": "user", "content": "What is the weather in Oslo?"},
            {"type": "reasoning", "summary": []},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "rain"}]},
        ],
        "tools": FORCED["/v1/responses"]["tools"],
    },
    "/v1/messages": {
        "messages": [
            {"role": "user", "content": "What is the weather in Oslo?"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "I have to look.", "signature": ""},
                    {"type": "tool_use", "id": "c1", "name": "look", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "rain"}]},
                    {"type": "text", "text": "Be brief."},
                ],
            },
        ],
        "tools": FORCED["/v1/messages"]["tools"],
    },
}


@pytest.mark.parametrize("path", CALLED)
def test_what_a_tool_gave_back_is_read(small: Real, path: str):
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    answer = small.post(path, {**CALLED[path], limit: 3})
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"].get("input_tokens", 9) > 5 or path != "/v1/responses"


FORMS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": FRANCE,
        "max_tokens": 6,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}},
    },
    "/v1/responses": {
        "input": FRANCE,
        "max_output_tokens": 6,
        "text": {"format": {"type": "json_schema", "name": "n", "strict": True, "schema": SCHEMA}},
    },
    "/v1/messages": {
        "messages": FRANCE,
        "max_tokens": 6,
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    },
}


@pytest.mark.parametrize("path", FORMS)
def test_a_schema_leaves_the_rest_of_the_batch_alone(client: openai.OpenAI, small: Real, path: str):
    """Without Metal json_schema itself ends the other answers of vllm-mlx, and rapid-mlx answers 502."""
    asked: Any = {"model": "standard", "messages": FRANCE, "stream": True, "max_tokens": 40}
    stream = client.chat.completions.create(**asked, extra_body={"min_p": 0.1})
    chunks = [next(stream)]
    answer = small.post(path, {**FORMS[path], "temperature": 0})
    assert answer.status_code == 200, answer.text
    assert "length" in answer.text or "max_tokens" in answer.text or "max_output_tokens" in answer.text
    chunks += list(stream)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] in {"stop", "length"}


@pytest.mark.parametrize(
    "fields",
    [
        *({"top_k": -1}, {"top_k": 0}, {"top_p": 0}, {"reasoning_effort": "max"}, {"logit_bias": {}}, {"stop": []}),
        *({"min_p": 0.5, "repetition_penalty": 2}, {"enable_thinking": True, "thinking_token_budget": 9}),
        {"parallel_tool_calls": False, "n": 1, "logprobs": False, "frequency_penalty": 0, "presence_penalty": 2},
    ],
    ids="-".join,
)
def test_what_passes_the_gateways_checks_passes_the_engines(small: Real, fields: dict[str, Any]):
    answer = small.post("/v1/chat/completions", {"messages": FRANCE, "max_tokens": 1, **fields})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("fields", [{"logit_bias": {"5": 1}}, {"frequency_penalty": 1}, {"logprobs": True}])
def test_a_field_is_carried_out_or_refused_by_its_name(small: Real, fields: dict[str, Any]):
    (name,) = fields
    answer = small.post("/v1/chat/completions", {"messages": FRANCE, "max_tokens": 1, **fields})
    if getattr(small.can, name):
        assert answer.status_code == 200
    else:
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


STORY = "Tell a very long story."
LONG = "one two three four five six seven eight nine ten " * 120
COUNTING = "1, 2, 3, 4, 5, 6, 7, 8,"
"""For /v1/completions: a question ends at once there."""
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


def asked(path: str, text: str) -> dict[str, Any]:
    """Return a body for a route whose answer is long."""
    if path == "/v1/completions":
        return {"prompt": text, "max_tokens": 1500}
    if path == "/v1/responses":
        return {"input": text, "max_output_tokens": 1500}
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 1500}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", ROUTES)
def test_a_client_that_leaves_in_its_answer_frees_the_slot(small: Real, path: str, stream: bool):
    until(lambda: not small.busy(), FREE_S)
    text = COUNTING if path == "/v1/completions" else STORY
    with small.open(path, {**asked(path, text), "stream": stream}):
        until(small.generating, 120)
    until(lambda: not small.busy(), FREE_S)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("path", ROUTES)
def test_a_client_that_leaves_while_its_prompt_is_read_frees_the_slot(small: Real, path: str, stream: bool):
    until(lambda: not small.busy(), FREE_S)
    with small.open(path, {**asked(path, f"{path} {stream} {LONG}"), "stream": stream}):
        until(small.reading, 120)
    until(lambda: not small.busy(), FREE_S)


@pytest.mark.parametrize("path", ROUTES)
def test_a_client_that_leaves_while_it_waits_is_let_go(small: Real, path: str):
    """Two others have the engine's slots; when they leave, nothing is left to do."""
    until(lambda: not small.busy(), FREE_S)
    story = {**asked("/v1/chat/completions", STORY), "stream": True}
    with small.open("/v1/chat/completions", story), small.open("/v1/chat/completions", story):
        until(lambda: small.engine.status().num_running == 2, 120)
        for stream in (False, True):
            with small.open(path, {**asked(path, COUNTING), "stream": stream}):
                until(small.waiting, 60)
            until(lambda: not small.waiting(), FREE_S)
            assert small.engine.status().num_running == 2, "no other client's request is aborted"
    until(lambda: not small.busy(), FREE_S)


def test_claude_code_says_that_its_prompt_is_too_long(small: Real, tmp_path: Path, pytestconfig: pytest.Config):
    """Its first prompt has 20,000 tokens: the person has to learn that at once, and in words."""
    claude_code = installed("claude", pytestconfig)
    person = Person.make(tmp_path)
    key = small.gateway.secrets["LITELLM_MASTER_KEY"]
    person.connect(
        "claude-code", Target(small.gateway.url, key, as_tiers([replace(small.engine.tier, tool_parser="hermes")]))
    )
    done = person.run(claude_code, "-p", "hello", "--output-format", "json")
    said = json.loads(done.stdout)
    assert said["is_error"]
    assert "too long" in said["result"]
