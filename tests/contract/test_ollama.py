"""Ollama's own Python client against a real gateway: chat, generate, vectors, the list of models, and their files."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from ollama import Client, ResponseError
from support import loopback
from support.batching import Batching, batching
from support.gateway import MASTER, Gateway, until
from support.ports import free_port
from support.scripted import ScriptedEngine, script

from state import job, ledger, on_demand, service, stack, weights
from state.errors import Busy
from state.on_demand import DiskModel
from state.service import ServiceEvent

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
TEMPLATE = {"kind": "attention", "switch": True, "keeps": False, "reads": False, "efforts": [], "max_tokens": 4096}
FACTS = {
    "revision": "1",
    "recipe": None,
    "model_type": "qwen3",
    "parameters": 4_000_000_000,
    "bits": 4.5,
    "quantization": "4-bit g64",
    "context": 32_768,
    "kv_bytes_per_token": 1000,
    "size": 2_300_000_000,
    "vision": True,
}


@pytest.fixture(scope="module")
def engine() -> Iterator[ScriptedEngine]:
    made = ScriptedEngine("standard")
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def home(engine: ScriptedEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Batching]:
    """Run a gateway whose `standard` sees and thinks and whose `fast` does neither, over one scripted engine."""
    root = tmp_path_factory.mktemp("ollama")
    tier = replace(
        engine.tier(), vision=True, reasoning_parser="qwen3", source="hub:org/model", weights=str(root / "weights")
    )
    plain = replace(tier, name="fast", vision=False, reasoning_parser=None)
    vectors = replace(tier, name="embedding", purpose="embedding", model="bge-m3", tool_parser=None)
    gateway = Gateway(
        home=root,
        tiers=[tier, plain],
        secrets={"LITELLM_MASTER_KEY": MASTER, "MLXQ_TIER_KEY": "sk-tier"},
        templates={"standard": TEMPLATE},
        retrieval=[vectors],
        backend="metal",
    )
    gateway.start()
    made = batching(gateway)
    stack.replace(made.db, [tier, replace(plain, port=free_port())])  # each has its own, as in a stack
    stack.put_retrieval(made.db, replace(vectors, port=free_port()))
    weights.record(made.db, tier.weights, tier.source, FACTS)
    small = replace(plain, name="tiny.int8", model="tiny", quant="int8", weights=str(root / "tiny"))
    same = replace(small, name="served.int8", weights=tier.weights)
    models = [DiskModel("tiny", ("tiny:int8", "org/Tiny"), small), DiskModel("served", ("org/model",), same)]
    on_demand.put_models(made.db, models)
    yield made
    gateway.stop()
    made.db.close()


@pytest.fixture(scope="module")
def client(home: Batching) -> Client:
    return client_of(home, home.key("app"))


def client_of(home: Batching, key: str) -> Client:
    return Client(host=home.gateway.url, headers={"authorization": f"Bearer {key}"})


def user(text: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text, **more}]


def refused(call: Any) -> tuple[int, str]:
    """Return the status of a refusal and its words, which are all that Ollama's shape has."""
    with pytest.raises(ResponseError) as problem:
        call()
    return problem.value.status_code, problem.value.error


def test_a_chat_whole_and_as_lines(client: Client, engine: ScriptedEngine):
    order = user(script(text="one two three", thinking="hm hm"))
    whole = client.chat("standard", order, think=True)
    assert (whole.message.content, whole.message.thinking, whole.done, whole.done_reason) == (
        "one two three",
        "hm hm",
        True,
        "stop",
    )
    lines = list(client.chat("standard:latest", order, think=True, stream=True))
    assert "".join(line.message.content or "" for line in lines) == "one two three"
    assert "".join(line.message.thinking or "" for line in lines) == "hm hm"
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    for last in (whole, lines[-1]):
        assert (last.model, last.prompt_eval_count, last.eval_count) in {
            ("standard", 7, 5),
            ("standard:latest", 7, 5),
        }
        assert last.total_duration
        assert last.eval_duration, "clients divide by it"
        assert last.total_duration >= (last.prompt_eval_duration or 0) + (last.eval_duration or 0) > 0


def test_options_format_and_thinking_reach_the_engine_in_its_words(client: Client, engine: ScriptedEngine):
    """What an engine cannot be told is ignored, as Ollama ignores what it does not know."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    options = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "num_predict": 600,
        "stop": ["END"],
        "repeat_penalty": 1.1,
        "seed": 7,
        "num_ctx": 8192,
        "mirostat": 1,
    }
    engine.forget()
    client.chat("standard", user("hello"), options=options, format=schema, think=False, keep_alive="5m")
    (body,) = [entry["body"] for entry in engine.seen()]
    wanted = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "max_tokens": 600, "repetition_penalty": 1.1}
    assert {name: body[name] for name in wanted} == wanted
    assert body["response_format"]["json_schema"]["schema"] == schema
    assert body["chat_template_kwargs"]["enable_thinking"] is False
    assert not {"seed", "num_ctx", "mirostat", "keep_alive", "options"} & set(body)

    engine.forget()
    client.generate("standard", "hello", system="Be brief.", format="json", options={"num_predict": -1})
    (body,) = [entry["body"] for entry in engine.seen()]
    assert body["response_format"] == {"type": "json_object"}
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_comes_back(client: Client, engine: ScriptedEngine, stream: bool):
    def weather(city: str) -> str:
        """Return the weather.

        Args:
            city: The city.
        """
        return city

    talk: list[Any] = user(script(text="It rains.", tool="weather", arguments={"city": "Rome"}))
    answer: Any = client.chat("standard", talk, tools=[weather], stream=stream, think=False)
    messages = [part.message for part in answer] if stream else [answer.message]
    (call,) = [call for message in messages for call in message.tool_calls or ()]
    assert (call.function.name, call.function.arguments) == ("weather", {"city": "Rome"})

    engine.forget()
    talk += [
        {"role": "assistant", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_name": "weather", "content": "rain"},
    ]
    assert client.chat("standard", talk, tools=[weather], think=False).message.content == "It rains."
    (body,) = [entry["body"] for entry in engine.seen()]
    asked, told = body["messages"][-2:]
    assert told["tool_call_id"] == asked["tool_calls"][0]["id"]
    assert asked["tool_calls"][0]["function"]["arguments"] == '{"city":"Rome"}'


def test_pictures_are_for_models_that_see(client: Client, engine: ScriptedEngine):
    engine.forget()
    client.chat("standard", user("what is it?", images=[PNG]), think=False)
    (body,) = [entry["body"] for entry in engine.seen()]
    assert body["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    status, words = refused(lambda: client.generate("fast", "what is it?", images=[PNG]))
    assert (status, words) == (400, "`images` is not supported: fast does not take images.")


def test_generate_whole_and_as_lines(client: Client):
    order = script(text="one two three")
    assert client.generate("fast", order).response == "one two three"
    lines = list(client.generate("fast", order, stream=True))
    assert "".join(line.response or "" for line in lines) == "one two three"
    assert (lines[-1].done, lines[-1].done_reason, lines[-1].eval_count) == (True, "stop", 3)
    assert client.generate("fast", "").done_reason == "load"
    assert client.chat("fast", []).done_reason == "load"


def test_vectors(client: Client):
    many = client.embed("embedding", ["a", "b"])
    assert [len(vector) > 0 for vector in many.embeddings] == [True, True]
    assert many.total_duration
    assert list(client.embeddings("embedding:latest", "a").embedding) == list(many.embeddings[0])
    assert refused(lambda: client.embed("standard", "a"))[0] == 404


def test_the_models_in_ollamas_shapes(home: Batching, client: Client):
    listed = client.list().models
    names = ["standard:latest", "fast:latest", "embedding:latest", "served:latest", "tiny:latest"]
    assert [model.model for model in listed] == names
    assert (listed[3].digest, listed[3].size) == (listed[0].digest, listed[0].size)
    assert (listed[0].size, len(listed[0].digest or "")) == (2_300_000_000, 64)
    assert listed[0].details
    assert (listed[0].details.family, listed[0].details.parameter_size) == ("qwen3", "4.0B")

    shown = client.show("gpt-4o")
    assert shown.capabilities == ["completion", "tools", "vision", "thinking"]
    assert shown.modelinfo
    assert shown.modelinfo["qwen3.context_length"] == 131_072
    assert client.show("embedding").capabilities == ["embedding"]
    for name in ("tiny", "TINY:int8", "org/tiny:latest"):
        assert client.show(name).modelinfo == {
            "general.architecture": "unknown",
            "general.basename": "tiny",
            "general.parameter_count": 0,
            "unknown.context_length": 131_072,
        }
    assert client.show("org/model").capabilities == shown.capabilities
    assert refused(lambda: client.show("nope")) == (404, "The model 'nope' was not found.")

    assert client.ps().models == []
    service.ensure(home.db, "standard", "engine", 1)
    for step in (ServiceEvent.STARTING, ServiceEvent.SPAWNED, ServiceEvent.BECAME_READY):
        service.apply(home.db, "standard", step)
    (running,) = client.ps().models
    assert (running.model, running.context_length, running.size) == ("standard:latest", 131_072, 2**30)
    assert running.expires_at
    assert running.expires_at.year == 2318, "a tier stays"
    service.ensure(home.db, "tiny.int8", "engine", 2)
    for step in (ServiceEvent.STARTING, ServiceEvent.SPAWNED, ServiceEvent.BECAME_READY):
        service.apply(home.db, "tiny.int8", step)
    used_at = time.time() + 1000
    on_demand.used(home.db, "tiny.int8", used_at, 300)
    expires = {model.model: model.expires_at for model in client.ps().models}["tiny:latest"]
    assert expires
    assert expires.timestamp() == pytest.approx(used_at + 300, abs=1)

    narrow = client_of(home, home.key("narrow", tiers=("fast",)))
    assert [model.model for model in narrow.list().models] == ["fast:latest"]
    assert refused(lambda: narrow.show("standard"))[0] == 404
    assert refused(lambda: narrow.chat("standard", user("hello")))[0] == 403
    version = loopback.get(f"{home.gateway.url}/api/version", headers={"authorization": f"Bearer {MASTER}"})
    assert set(version.json()) == {"version"}


def test_a_model_is_downloaded_and_deleted_by_a_key_that_may(home: Batching, client: Client):
    """Both are jobs; a stream says how far the download is."""
    for call in (lambda: client.pull("org/other"), lambda: client.delete("org/model")):
        status, words = refused(call)
        assert (status, "may not download or delete models" in words) == (403, True)
    admin = client_of(home, home.key("admin", manage=True))
    assert refused(lambda: admin.pull("../etc")) == (404, "The model '../etc' was not found.")
    assert refused(lambda: admin.delete("org/other"))[0] == 404

    lines: list[Any] = []
    puller = threading.Thread(target=lambda: lines.extend(admin.pull("org/other", stream=True)))
    puller.start()
    claim = claimed(home, "pull")
    assert job.get(home.db, claim.id).args["source"] == "hub:org/other"
    ledger.report(home.db, claim, "fetch", {"done": 10, "total": 20, "unit": "bytes"})
    until(lambda: len(lines) > 1)
    ledger.succeed(home.db, claim, {})
    puller.join()
    assert [(line.status, line.completed, line.total) for line in lines][-2:] == [
        ("fetch", 10, 20),
        ("success", None, None),
    ]

    failing = threading.Thread(target=lambda: lines.append(refused(lambda: admin.delete("org/model"))))
    failing.start()
    claim = claimed(home, "remove_weights")
    ledger.fail(home.db, claim, Busy("weights is served by standard."))
    failing.join()
    assert lines[-1] == (409, "weights is served by standard.")


def claimed(home: Batching, kind: str) -> Any:
    """Wait for a job, and take it as a worker does."""
    taken: list[Any] = []
    until(
        lambda: (
            (claim := ledger.claim(home.db, "heavy" if kind == "pull" else "ops", {kind}, "boot/1/1"))
            and not taken.append(claim)
        )
    )
    return taken[0]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("chat", {"model": "nope", "messages": user("hello")}, 404, "There is no model 'nope' here"),
        ("chat", {"model": "fast", "messages": user("hello"), "think": True}, 400, "'fast' does not support thinking"),
        ("chat", {"model": "fast", "messages": user("hello"), "format": "xml"}, 400, "`format`"),
        ("chat", {"model": "fast", "messages": user("hello"), "options": {"top_k": "x"}}, 400, "`options.top_k`"),
        ("chat", {"model": "fast", "messages": user("hello"), "keep_alive": "soon"}, 400, "`keep_alive`"),
        ("chat", {"model": "fast", "messages": user("hello", images=["http://a/b.png"])}, 400, "images[0]"),
        ("chat", {"messages": user("hello")}, 400, "`model` is missing"),
        ("generate", {"model": "fast", "prompt": "a", "context": [1, 2]}, 400, "`context` is not supported"),
        ("generate", {"model": "fast", "prompt": "a", "suffix": "b"}, 400, "`suffix` is not supported"),
        ("embed", {"model": "embedding", "input": [1, 2]}, 400, "token numbers"),
        ("create", {"model": "new", "from": "fast"}, 404, "There is nothing at POST /api/create"),
        ("tags", {}, 405, "does not take POST"),
    ],
)
def test_errors_have_ollamas_shape(home: Batching, path: str, body: dict[str, Any], status: int, words: str):
    answer = loopback.post(f"{home.gateway.url}/api/{path}", json=body, headers={"authorization": f"Bearer {MASTER}"})
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert words in answer.json()["error"]


def test_a_key_is_needed_and_a_break_ends_a_stream_in_words(home: Batching, client: Client):
    assert refused(lambda: Client(host=home.gateway.url).list())[0] == 401
    order = user(script(text="one two three four", fault="reset", after=2))
    with pytest.raises(ResponseError, match="broke off"):
        list(client.chat("fast", order, stream=True))
