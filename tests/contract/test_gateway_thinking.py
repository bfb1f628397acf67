"""Thinking by a tier's default and by a request's wish, with real engines and a hybrid that never ends its thoughts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import hybrid_model, loopback, responses_events
from support.batching import batching, file_of, line
from support.engines import KEY, Engine, installation
from support.gateway import Gateway, until

from catalog.engines import ModelKind, reuses
from state import keys
from state.batches import batches
from state.db import open_database
from state.paths import Home
from state.stack import Defaults, Tier
from tasks.batches import control
from tasks.engines import adapters, model_facts, serving
from tasks.system import process, prompt_cache

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BUDGET = 24
ROOM = 520
"""Tokens in which a model thinks without being asked: more than thinking.LEAST_ROOM."""
SHORT = 40
"""Tokens of an answer whose request asks for thoughts: its model ends none by itself, and each costs 20 ms here."""
THINK = {
    "chat/completions": {"reasoning_effort": "low"},
    "messages": {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    "responses": {"reasoning": {"effort": "low"}},
}
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
USER = [{"role": "user", "content": "Which files are there?"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module", params=list(adapters.ENGINES))
def engine(
    request: pytest.FixtureRequest, shared_folder: Path, builtin_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    root = tmp_path_factory.mktemp("engine")
    folder = hybrid_model.make("hybrid", root / "hybrid", builtin_model)
    at = installation(request.param, shared_folder / "engines")
    engine = Engine(root / "home", folder, at, name="standard", more={"reasoning_parser": "qwen3"})
    engine.start()
    yield engine
    engine.stop(1)


@pytest.fixture(scope="module")
def gateway(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    thinks = Defaults(max_tokens=ROOM, thinking=True, thinking_budget=BUDGET)
    made = Gateway(
        home=tmp_path_factory.mktemp("gateway"),
        tiers=[
            Tier("standard", engine.tier, thinks),
            Tier("fast", engine.tier, replace(thinks, thinking=False)),
            Tier("longctx", engine.tier, Defaults(max_tokens=6, thinking=False, temperature=2.0, top_k=200)),
        ],
        secrets={"LITELLM_MASTER_KEY": KEY, "MLXQ_TIER_KEY": KEY},
        programs={"standard": engine.at.engine},
        templates={"standard": serving.template(engine.tier, model_facts.read(engine.weights))},
    )
    made.start()
    yield made
    made.stop()


def post(gateway: Gateway, path: str, tier: str, *, key: str = KEY, **fields: Any) -> Any:
    """Return an answer; of a stream its events."""
    said = {} if path == "responses" else {"messages": USER}
    body = {"model": tier, **said, "temperature": 0} | fields
    answer = loopback.post(
        f"{gateway.url}/v1/{path}", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=240
    )
    assert answer.status_code == 200, answer.text
    if not fields.get("stream"):
        return answer.json()
    return [json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data: {")]


def begun(gateway: Gateway, path: str, tier: str, count: int, **fields: Any) -> list[str]:
    """Return the kinds of a stream's first items, and leave it: the half thousand tokens of its last one are many."""
    said = {} if path == "responses" else {"messages": USER}
    body = {"model": tier, **said, "temperature": 0, "stream": True} | fields
    kinds: list[str] = []
    with loopback.stream(
        "POST", f"{gateway.url}/v1/{path}", json=body, headers=AUTHORIZED, timeout=240
    ) as answer:  # fmt: skip
        assert answer.status_code == 200, answer.read()
        for row in answer.iter_lines():
            event = json.loads(row[5:]) if row.startswith("data: {") else {}
            if event.get("type") in {"content_block_start", "response.output_item.added"}:
                kinds.append((event.get("content_block") or event["item"])["type"])
            if len(kinds) == count:
                break
    return kinds


def chat(gateway: Gateway, tier: str, *, stream: bool = False, **fields: Any) -> tuple[str, str, dict[str, Any]]:
    """Return thoughts, answer and usage."""
    more = {"stream_options": {"include_usage": True}} if stream else {}
    answer = post(gateway, "chat/completions", tier, stream=stream, **fields, **more)
    if not stream:
        message = answer["choices"][0]["message"]
        return message.get("reasoning_content") or "", message["content"] or "", answer["usage"]
    deltas = [choice["delta"] for chunk in answer for choice in chunk["choices"]]
    assert len({chunk["id"] for chunk in answer}) == 1
    thoughts, words = ("".join(delta.get(name) or "" for delta in deltas) for name in ("reasoning_content", "content"))
    return thoughts, words, answer[-1]["usage"]


@pytest.mark.parametrize(
    ("tools", "stream", "fields"),
    [
        (False, False, {}),
        (False, True, {"max_tokens": SHORT, "thinking_token_budget": BUDGET}),
        (True, False, {"max_tokens": SHORT, "thinking_token_budget": BUDGET, "tools": TOOLS}),
        (True, True, {"max_tokens": SHORT, "thinking_token_budget": BUDGET, "tools": TOOLS}),
    ],
    ids=["alone-whole", "alone-stream", "tools-whole", "tools-stream"],
)
def test_standard_answers_after_its_budget_of_thoughts(
    gateway: Gateway, tools: bool, stream: bool, fields: dict[str, Any]
):
    """Whether the engine ends them or the gateway does. The answer ends at the limit that is left."""
    thoughts, words, usage = chat(gateway, "standard", stream=stream, **fields)

    assert thoughts
    assert words
    assert "think>" not in words
    assert BUDGET < usage["completion_tokens"] <= fields.get("max_tokens", ROOM)
    if tools:
        assert usage["completion_tokens_details"]["reasoning_tokens"] == BUDGET


@pytest.mark.parametrize("tools", [False, True], ids=["alone", "tools"])
def test_fast_answers_at_once_unless_asked(gateway: Gateway, tools: bool):
    fields: dict[str, Any] = {"tools": TOOLS} if tools else {}
    thoughts, words, _ = chat(gateway, "fast", max_tokens=20, **fields)
    assert (thoughts, bool(words)) == ("", True)
    for wish in ({"reasoning_effort": "low"}, {"chat_template_kwargs": {"enable_thinking": True}}):
        thoughts, words, _ = chat(gateway, "fast", max_tokens=60, **fields, **wish)
        assert (bool(thoughts), bool(words)) == (True, True), wish


@pytest.mark.parametrize(
    "wish",
    [{"reasoning_effort": "none"}, {"enable_thinking": False}, {"chat_template_kwargs": {"enable_thinking": False}}],
)
def test_standard_answers_at_once_when_asked(gateway: Gateway, wish: dict[str, Any]):
    thoughts, words, _ = chat(gateway, "standard", max_tokens=20, **wish)
    assert (thoughts, bool(words)) == ("", True)


@pytest.mark.parametrize(
    ("wish", "limit", "kinds"),
    [
        ({"thinking": {"type": "adaptive"}}, ROOM, ["thinking", "text"]),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, SHORT, ["thinking", "text"]),
        ({"thinking": {"type": "disabled"}}, SHORT, ["text"]),
    ],
)
def test_messages_think_as_they_say(gateway: Gateway, wish: dict[str, Any], limit: int, kinds: list[str]):
    """A whole answer with room for thoughts by default takes seconds: of it a stream's beginning is looked at."""
    tools = [{"name": "look", "input_schema": {"type": "object", "properties": {}}}]
    asked = {"max_tokens": limit, "tools": tools, **wish}
    if limit == ROOM:
        assert begun(gateway, "messages", "standard", len(kinds), **asked) == kinds
    else:
        answer = post(gateway, "messages", "standard", **asked)
        assert [block["type"] for block in answer["content"]] == kinds


@pytest.mark.parametrize(
    ("tier", "wish", "limit", "kinds"),
    [
        ("standard", {}, ROOM, ["reasoning", "message"]),
        ("fast", {}, SHORT, ["message"]),
        ("fast", {"reasoning": {"effort": "low"}}, SHORT, ["reasoning", "message"]),
        ("standard", {"reasoning": {"effort": "none"}}, SHORT, ["message"]),
    ],
)
def test_responses_think_as_they_say(gateway: Gateway, tier: str, wish: dict[str, Any], limit: int, kinds: list[str]):
    """Streamed, thoughts are an item of their own, with its parts begun before what is in them."""
    if limit == ROOM:
        assert begun(gateway, "responses", tier, len(kinds), input=USER, max_output_tokens=limit, **wish) == kinds
        return  # how such an answer ends, the others say with fewer tokens
    for stream in (False, True):
        answer = post(gateway, "responses", tier, input=USER, max_output_tokens=limit, stream=stream, **wish)
        response = responses_events.check(answer) if stream else answer
        assert response["status"] == "incomplete", "its tokens were used up"
        assert [item["type"] for item in response["output"]] == kinds, stream
        assert all(item["summary"][0]["text"] for item in response["output"] if item["type"] == "reasoning")


def said(answer: Any) -> tuple[list[dict[str, Any]], int]:
    """Return the turn of a whole answer without its thoughts, and the tokens of its prompt."""
    if "choices" in answer:
        message = answer["choices"][0]["message"]
        return [{"role": "assistant", "content": message["content"]}], answer["usage"]["prompt_tokens"]
    if "output" in answer:
        return [item for item in answer["output"] if item["type"] != "reasoning"], answer["usage"]["input_tokens"]
    blocks = [block for block in answer["content"] if block["type"] != "thinking"]
    told = answer["usage"]
    return [{"role": "assistant", "content": blocks}], told["input_tokens"] + told["cache_read_input_tokens"]


def thought(answer: Any) -> list[dict[str, Any]]:
    """Return the whole turn, as a client has it that sends thoughts back."""
    if "choices" in answer:
        message = answer["choices"][0]["message"]
        return [{"role": "assistant", **{name: message[name] for name in ("content", "reasoning_content")}}]
    return answer.get("output") or [{"role": "assistant", "content": answer["content"]}]


@pytest.mark.parametrize("path", ["chat/completions", "messages", "responses"])
def test_the_prompt_is_the_same_whether_a_client_sends_thoughts_back_or_not(gateway: Gateway, path: str):
    """A turn whose answer the client changed gets nothing."""
    limit, said_by = ("max_output_tokens", "input") if path == "responses" else ("max_tokens", "messages")
    first = post(gateway, path, "standard", **{said_by: USER, limit: SHORT}, **THINK[path])
    turn, begun = said(first)
    more = {"role": "user", "content": "And then?"}

    def prompt(turn: list[dict[str, Any]]) -> int:
        return said(post(gateway, path, "standard", **{limit: 8, said_by: [*USER, *turn, more]}))[1]

    without, with_thoughts = prompt(turn), prompt(thought(first))
    assert without == with_thoughts
    changed = {"role": "assistant", "content": "Other words."}
    assert prompt([changed]) < begun + 30 < without


def test_nothing_is_kept_of_a_key_that_stores_nothing(gateway: Gateway, engine: Engine):
    """Neither its thoughts here nor its prompts on the engine's disk."""
    mark = prompt_cache.folder(Home(gateway.home), engine.name) / prompt_cache.NO_STORE
    assert not mark.exists()
    key, other = (keys.create(keys.file(Home(gateway.home)), name, store=name == "b") for name in "ab")
    turn, _ = said(post(gateway, "chat/completions", "standard", key=key, max_tokens=SHORT, reasoning_effort="low"))
    assert mark.exists()
    more = {"role": "user", "content": "And then?"}
    asked = {"max_tokens": 8, "messages": [*USER, *turn, more]}
    prompts = {said(post(gateway, "chat/completions", "standard", key=name, **asked))[1] for name in (key, other)}
    assert len(prompts) == 1, "as of a key that was never told them"


def test_a_growing_conversation_is_read_once(gateway: Gateway, engine: Engine):
    """Of a client that sends no thoughts back."""
    if not reuses(engine.at.engine, ModelKind.HYBRID):
        pytest.skip("it keeps nothing of a hybrid, as tests/contract/test_engine_adapters.py shows")
    rules = " ".join(f"Rule {number}: check file {number} before you write." for number in range(40))
    messages: list[dict[str, Any]] = [{"role": "system", "content": rules}, *USER]
    before, shares = 0, list[float]()
    for number in range(3):
        answer = post(
            gateway, "chat/completions", "standard", max_tokens=SHORT, messages=messages, tools=TOOLS,
            reasoning_effort="low",
        )  # fmt: skip
        turn, prompt = said(answer)
        if before:
            shares.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"] / before)
        before = prompt
        messages += [*turn, {"role": "user", "content": f"And number {number}?"}]
    print(f"{engine.at.name}: {', '.join(f'{share:.1%}' for share in shares)} of the prompt before")
    assert min(shares) >= 0.95


def test_each_name_of_an_engine_has_its_own_defaults(gateway: Gateway):
    """Thinking, the longest answer and sampling: at temperature 0 all answers are one, at 2 no two are alike."""

    def ask(tier: str, **fields: Any) -> dict[str, Any]:
        body = {"model": tier, "messages": USER} | fields
        answer = loopback.post(f"{gateway.url}/v1/chat/completions", json=body, headers=AUTHORIZED, timeout=240)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-mlxq-tier"] == tier
        return answer.json()

    short = [ask("longctx") for _ in range(4)]
    assert {answer["usage"]["completion_tokens"] for answer in short} == {6}
    assert {answer["choices"][0]["finish_reason"] for answer in short} == {"length"}
    assert len({answer["choices"][0]["message"]["content"] for answer in short}) > 1
    same = [ask("fast", max_tokens=6, temperature=0) for _ in range(2)]
    assert same[0]["choices"][0]["message"]["content"] == same[1]["choices"][0]["message"]["content"]
    assert same[0]["choices"][0]["message"].get("reasoning_content") is None


def test_a_batch_that_is_cancelled_leaves_its_engine_at_once(gateway: Gateway, engine: Engine):
    """The engine drops the lines in flight, which would take a minute, and each request has its end in the results."""
    home = batching(gateway)
    body = {"model": "fast", "messages": USER, "max_tokens": 1500}
    batch = home.batch(file_of(line(f"c{n}", body=body) for n in range(5)))
    worker = threading.Thread(target=home.work)
    worker.start()
    with closing(open_database(home.home)) as db:
        until(lambda: engine.status().num_running)
        control.cancel(db, batch)
        worker.join(30)
        until(lambda: not engine.status().num_running, 15)
        ended = batches.get(db, batch.id)
    output, errors = home.results(ended)
    assert (ended.status, output) == ("cancelled", [])
    assert sorted(row["custom_id"] for row in errors) == [f"c{n}" for n in range(5)]
    assert {row["error"]["code"] for row in errors} == {"batch_cancelled"}
    home.db.close()


def test_a_dead_engine_is_asked_once_for_all_its_names(gateway: Gateway, engine: Engine):
    """The last test here: it kills the engine. There is no other that could answer."""
    process.stop(engine.identity, 0)
    body = {"model": "standard", "messages": USER, "max_tokens": 4}

    answer = loopback.post(f"{gateway.url}/v1/chat/completions", json=body, headers=AUTHORIZED, timeout=60)

    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_tier_available"
    assert answer.json()["error"]["message"].count("standard") == 1
    assert "fast" not in answer.json()["error"]["message"], "the same engine is not asked by another name"
