"""The gateway's pure parts; what they do in the real process is in tests/contract/test_gateway*.py."""

import asyncio
import json
import stat
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.calls import called
from support.clock import Clock

from catalog import images
from catalog.engines import abilities
from state import keys
from state.errors import Damaged, NotFound, UsageProblem
from state.paths import Home
from tasks.gateway import errors
from tasks.gateway.admission import context_limit, priority
from tasks.gateway.admission.api_keys import KeyRing, secret_of
from tasks.gateway.admission.poison_requests import FORGET_S, PROBE_S, PoisonGuard, lift, record_of
from tasks.gateway.admission.priority import LONGEST_WAIT_S, Queue
from tasks.gateway.cooldown import COOLDOWN_S, Cooldown
from tasks.gateway.dialects import anthropic_chat, checks, json_schema, outputs, plans, schemas, sse
from tasks.gateway.dialects.chat_stream import Fold, first_call_only
from tasks.gateway.dialects.dialect import BY_PATH, CHAT, MESSAGES, RESPONSES
from tasks.gateway.dialects.outputs import Exchange
from tasks.gateway.dialects.stop_strings import Scanner
from tasks.gateway.egress import Wall
from tasks.gateway.engine_client import EngineDown
from tasks.gateway.errors import Refusal
from tasks.gateway.request_context import Call
from tasks.gateway.reuse_meter import ReportedReuse

VLLM_MLX, RAPID_MLX = abilities("vllm-mlx", "cpu"), abilities("rapid-mlx", "cpu")

# Stop strings


def shown(pieces: Sequence[str], stops: Sequence[str]) -> tuple[str, str | None]:
    scanner = Scanner(stops)
    text = "".join(scanner.feed(piece) for piece in pieces)
    return (text if scanner.hit else text + scanner.rest()), scanner.hit


@given(
    st.lists(st.text("ab\n", max_size=4), max_size=12),
    st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4),
)
def test_a_stream_stops_where_the_whole_text_would(pieces: list[str], stops: list[str]):
    """However the text is cut into pieces, it ends before the first stop string, or not at all."""
    whole = "".join(pieces)
    text, hit = shown(pieces, stops)
    if hit is None:
        assert text == whole
        assert not any(stop in whole for stop in stops)
    else:
        assert whole.startswith(text + hit)
        assert not any(stop in text for stop in stops)


def test_text_is_held_back_no_longer_than_needed():
    scanner = Scanner(["</end>"])
    assert [scanner.feed(piece) for piece in ["a <", "/e", "m> b"]] == ["a ", "", "</em> b"]


# Events


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=9), st.integers(1, 7), st.sampled_from([b"\n", b"\r\n"]))
def test_events_are_whole_however_the_network_cuts(payloads: list[bytes], size: int, newline: bytes):
    clean = [payload.translate(None, b"\r\n").strip() for payload in payloads]
    raw = b"".join(b"data: " + payload + newline * 2 for payload in clean)

    async def cut() -> AsyncIterator[bytes]:
        for at in range(0, len(raw), size):
            yield raw[at : at + size]

    async def collect() -> list[bytes]:
        return [event async for run in sse.whole_events(cut()) for event in sse.split(run)]

    assert [sse.data(event) for event in asyncio.run(collect())] == clean


def test_an_event_that_was_cut_off_is_none():
    async def cut() -> AsyncIterator[bytes]:
        yield b"data: a\n\ndata: b"

    async def collect() -> list[bytes]:
        return [run async for run in sse.whole_events(cut())]

    assert asyncio.run(collect()) == [b"data: a\n\n"]


def test_the_payload_of_a_named_event_is_found():
    assert sse.data(b"event: ping\ndata: {}\n\n") == b"{}"
    assert sse.data(b": heartbeat\n\n") is None


def test_tool_calls_survive_being_folded():
    fold = Fold()
    for delta in (
        {"role": "assistant"},
        {"reasoning_content": "hm"},
        {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "look", "arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
    ):
        fold.add({"id": "1", "choices": [{"delta": delta}]})
    fold.add({"choices": [{"delta": {}, "finish_reason": "tool_calls"}], "usage": {"prompt_tokens": 3}})
    whole = fold.answer()
    assert whole["choices"][0] == {
        "index": 0,
        "finish_reason": "tool_calls",
        "message": {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [{"type": "function", "id": "c1", "function": {"name": "look", "arguments": '{"a": 1}'}}],
        },
    }
    assert whole["usage"] == {"prompt_tokens": 3}


# Errors


def test_each_dialect_gets_its_own_shape():
    refusal = Refusal(429, "slow down", "rate_limit_exceeded", "model")
    assert json.loads(refusal.body(anthropic=True)) == {
        "type": "error",
        "error": {"type": "rate_limit_error", "message": "slow down"},
    }
    assert json.loads(refusal.body(anthropic=False))["error"] == {
        "message": "slow down",
        "type": "rate_limit_error",
        "param": "model",
        "code": "rate_limit_exceeded",
    }


@pytest.mark.parametrize(
    ("words", "long"),
    [
        (b"This model's maximum context length is 9 tokens", True),
        (b'{"error": {"code": "context_length_exceeded"}}', True),
        (b"max_tokens must be positive", False),
        (b"unknown token", False),
    ],
)
def test_only_a_prompt_that_is_too_long_is_taken_to_another_tier(words: bytes, long: bool):
    assert errors.about_length(words) == long


# The guard


def test_one_death_leaves_the_request_another_try():
    guard = PoisonGuard()
    guard.crashed("a", "standard")
    guard.crashed("a", "standard")
    assert guard.killers(lambda: "a") == set()


def test_two_tiers_deaths_end_it_until_forgotten():
    now = [0.0]
    guard = PoisonGuard(clock=lambda: now[0])
    guard.crashed("a", "standard")
    guard.crashed("a", "fast")
    assert guard.killers(lambda: "a") == {"standard", "fast"}
    assert guard.killers(lambda: "b") == set()
    now[0] = FORGET_S
    assert guard.killers(lambda: "a") == set()


def test_the_second_death_of_the_only_engine_ends_it():
    """Tiers that share one engine have no other to be taken to; every retry would take it down again."""
    now = [0.0]
    guard = PoisonGuard(clock=lambda: now[0], engines=1)
    guard.crashed("a", "standard")
    assert guard.killers(lambda: "a") == set()
    guard.crashed("a", "standard")
    assert guard.killers(lambda: "a") == {"standard"}
    now[0] = PROBE_S
    assert guard.killers(lambda: "a") == set()
    guard.crashed("a", "standard")
    assert guard.killers(lambda: "a") == {"standard"}


def test_one_request_in_a_while_is_let_through_to_see():
    """Tiers may have died of something else, as of a person's kill; a death by the probe closes it again."""
    now = [0.0]
    guard = PoisonGuard(clock=lambda: now[0])
    guard.crashed("a", "standard")
    guard.crashed("a", "fast")
    now[0] = PROBE_S - 1
    assert guard.killers(lambda: "a")
    now[0] = PROBE_S
    assert guard.killers(lambda: "a") == set()
    guard.crashed("a", "longctx")
    assert guard.killers(lambda: "a")


def test_a_refusal_is_lifted_by_up(home: Home):
    guard = PoisonGuard(record=record_of(home))
    for tier in ("standard", "fast"):
        guard.crashed("a", tier)
    assert guard.killers(lambda: "a") == {"standard", "fast"}
    assert record_of(home).read_text() == '[["fast", "standard"]]'

    assert lift(home) == [["fast", "standard"]]

    assert guard.killers(lambda: "a") == set()
    assert lift(home) == []


def test_the_record_of_an_earlier_gateway_and_of_what_was_answered_is_gone(home: Home):
    guard = PoisonGuard(record=record_of(home))
    for tier in ("standard", "fast"):
        guard.crashed("a", tier)
    guard.answered(lambda: "a")
    assert lift(home) == []
    for tier in ("standard", "fast"):
        guard.crashed("a", tier)
    PoisonGuard(record=record_of(home))
    assert lift(home) == []


def test_a_death_among_many_requests_is_blamed_on_none():
    guard = PoisonGuard()
    for tier in ("standard", "fast"):
        guard.crashed("a", tier, alone=False)
    assert guard.killers(lambda: "a") == set()


def test_an_answer_clears_the_name():
    guard = PoisonGuard()
    guard.crashed("a", "standard")
    guard.answered(lambda: "a")
    guard.crashed("a", "fast")
    assert guard.killers(lambda: "a") == set()


def test_the_guard_does_not_grow_for_ever():
    guard = PoisonGuard()
    for number in range(1000):
        guard.crashed(str(number), "fast")
    assert len(guard._deaths) <= 256


# Background requests


def test_background_is_never_starved():
    async def run() -> float:
        queue = Queue(longest_wait_s=0.05)
        async with queue.turn(background=False), queue.turn(background=True) as waited:
            return waited

    assert asyncio.run(run()) >= 0.05


def test_background_does_not_wait_for_nobody():
    async def run() -> float:
        async with Queue().turn(background=True) as waited:
            return waited

    assert asyncio.run(run()) < LONGEST_WAIT_S


def test_a_request_interrupts_a_line_of_a_batch_which_begins_again_and_is_never_starved(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(priority, "time", SimpleNamespace(monotonic=clock))

    async def run() -> list[str]:
        queue, events = Queue(pause_s=0.0), list[str]()
        working = asyncio.Event()

        async def line() -> None:
            events.append("begun")
            working.set()
            if "overdue" not in events:
                await asyncio.Event().wait()
            events.append("answered")

        answering = asyncio.create_task(queue.in_spare_time(Call("/v1/chat/completions", batch=True), line))
        await working.wait()
        working.clear()
        async with queue.turn(background=False):
            events.append("request done")
        await working.wait()
        clock.now += LONGEST_WAIT_S - 0.05
        async with queue.turn(background=False):
            events.append("overdue")
            await answering
        return events

    assert asyncio.run(run()) == ["begun", "request done", "begun", "overdue", "begun", "answered"]


def test_a_request_goes_on_when_the_lines_that_it_interrupts_have_left_the_engine(monkeypatch: pytest.MonkeyPatch):
    """The engine reads its prompt alone then. A line that does not end does not hold it up."""

    async def run(*, ends: bool) -> list[str]:
        queue, events = Queue(), list[str]()
        begun, answered = asyncio.Semaphore(0), asyncio.Event()

        async def line() -> None:
            begun.release()
            try:
                await asyncio.Event().wait()
            finally:
                await (asyncio.sleep(0) if ends else answered.wait())
                events.append("left")

        lines = [asyncio.create_task(queue.in_spare_time(Call("/", batch=True), line)) for _ in range(3)]
        for _ in lines:
            await begun.acquire()
        async with queue.turn(background=False):
            events.append("request")
            answered.set()
            for task in lines:
                task.cancel()
            await asyncio.gather(*lines, return_exceptions=True)
        return events

    monkeypatch.setattr(priority, "LONGEST_STOP_S", 600.0)
    assert asyncio.run(run(ends=True)) == ["left", "left", "left", "request"]
    monkeypatch.setattr(priority, "LONGEST_STOP_S", 0.1)
    assert asyncio.run(run(ends=False))[0] == "request"


def test_two_requests_at_once_interrupt_a_line_once():
    """The line takes a moment to end: a limit that has passed and cannot be set again must not fail a request."""

    async def run() -> int:
        queue, begun = Queue(longest_wait_s=5.0, pause_s=0.0), asyncio.Event()
        answered = 0

        async def line() -> None:
            begun.set()
            await asyncio.sleep(0.0 if answered else 10)

        async def ending_slowly() -> None:
            try:
                await line()
            except asyncio.CancelledError:
                await asyncio.sleep(0.02)
                raise

        answering = asyncio.create_task(queue.in_spare_time(Call("/v1/chat/completions", batch=True), ending_slowly))
        await begun.wait()
        for _ in range(3):
            async with queue.turn(background=False):
                await asyncio.sleep(0.005)
                answered += 1
        await answering
        return answered

    assert asyncio.run(run()) == 3


def test_a_line_begins_when_no_request_has_followed_for_a_while(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(priority, "time", SimpleNamespace(monotonic=clock))

    async def run() -> list[str]:
        queue, events = Queue(pause_s=0.1), list[str]()

        async def line() -> None:
            events.append("line")

        answering: asyncio.Task[None] | None = None
        for _ in range(3):
            async with queue.turn(background=False):
                answering = answering or asyncio.create_task(queue.in_spare_time(Call("/", batch=True), line))
                await asyncio.sleep(0)
                events.append("turn")
            await asyncio.sleep(0)
        assert answering
        clock.now += 0.2
        await answering
        return events

    assert asyncio.run(run()) == ["turn", "turn", "turn", "line"]


def test_a_line_that_has_waited_for_too_long_does_not_wait_for_a_pause():
    async def run() -> list[str]:
        queue, events = Queue(longest_wait_s=0.01, pause_s=3600.0), list[str]()

        async def line() -> None:
            events.append("line")

        async with queue.turn(background=False):
            pass
        async with asyncio.timeout(60):
            await queue.in_spare_time(Call("/", batch=True), line)
        return events

    assert asyncio.run(run()) == ["line"]


# The length of a prompt


def test_all_words_are_counted_and_no_pictures_bytes():
    body = {
        "system": [{"type": "text", "text": "be brief"}],
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "see"}, {"type": "image", "source": {"data": "aaaa"}}],
            }
        ],
        "tools": [{"name": "look"}],
    }
    text, extra = context_limit.words(body)
    assert {"be brief", "see", "look"} <= set(text.split("\n"))
    assert "aaaa" not in text
    assert extra == images.tokens(images.IMAGE_PIXELS, 1) + context_limit.MESSAGE_TOKENS


def test_no_depth_breaks_the_search_for_words():
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert context_limit.words({"messages": deep}) == ("", 0)


# Cooldown


def test_a_tier_that_failed_is_asked_last_for_a_moment_and_never_left_out():
    now = [0.0]
    cooldown = Cooldown(clock=lambda: now[0])
    chain = ["standard", "fast", "longctx"]
    cooldown.failed("standard")
    assert cooldown.order(chain, str) == ["fast", "longctx", "standard"]
    cooldown.failed("fast")
    cooldown.failed("longctx")
    assert cooldown.order(chain, str) == chain
    now[0] = COOLDOWN_S
    assert cooldown.order(chain, str) == chain


# Bodies


def read(schema: type[Any], **body: Any) -> Any:
    return checks.read(schema, json.dumps(body).encode())


USER = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 0}, "`max_tokens` must be at least 1."),
        ({"max_tokens": "x"}, "`max_tokens` must be a whole number."),
        ({"max_tokens": True}, "`max_tokens` must be a whole number."),
        ({"temperature": 5}, "`temperature` must be at most 2."),
        ({"temperature": "hot"}, "`temperature` must be a number."),
        ({"top_p": -1}, "`top_p` must be at least 0."),
        ({"stream": "yes"}, "`stream` must be true or false."),
        ({"stop": 7}, "`stop` must be a string or a list."),
        ({"messages": []}, "`messages` must have at least one message."),
        ({"messages": "hi"}, "`messages` must be a list."),
        ({"messages": [{"role": "king", "content": "x"}]}, "`messages[0].role` must be 'system', 'developer', 'user'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "`messages[0].content[0].text` is missing."),
        ({"messages": [{"role": "user", "content": 7}]}, "`messages[0].content` must be a string or a list."),
        ({"model": 7}, "`model` must be a string."),
        ({"model": ""}, "`model` must not be empty."),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "`tools[0].function.name` must match"),
    ],
)
def test_a_wrong_field_is_named_in_one_sentence(fields: dict[str, Any], message: str):
    refusal = read(schemas.Chat, **{"model": "standard", "messages": USER, **fields})
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400
    assert refusal.message.startswith(message)


EVIL = {
    "user_config": {"model_list": []},
    "api_base": "http://evil",
    "custom_llm_provider": "maritalk",
    "fallbacks": [{"model": "fast"}],
    "timeout": 0.001,
    "extra_headers": {"authorization": "x"},
    "extra_body": {"a": 1},
    "metadata": {"a": "os.environ/LITELLM_MASTER_KEY"},
    "mock_response": "x",
    "num_retries": 9,
}


@pytest.mark.parametrize(
    ("dialect", "fields"),
    [
        (CHAT, {"messages": USER}),
        (RESPONSES, {"input": "hi"}),
        (MESSAGES, {"messages": USER, "max_tokens": 9}),
    ],
)
@pytest.mark.parametrize("can", [VLLM_MLX, RAPID_MLX], ids=["vllm", "rapid"])
def test_no_field_passes_that_no_schema_names(dialect: Any, fields: dict[str, Any], can: Any):
    request = read(dialect.schema, model="standard", **fields, **EVIL)
    assert not EVIL.keys() & plans.plan(dialect, request, "standard", can).body.keys()


def test_the_catalog_calls_the_dialects_as_the_gateway_does():
    """engines.yaml is the one table of abilities; a name in it that no route has would be lost in silence."""
    known = {dialect.name for dialect in BY_PATH.values()}
    for able in (VLLM_MLX, RAPID_MLX):
        assert able.dialects <= known


def test_nothing_inside_a_message_passes_that_no_schema_names():
    message = {"role": "user", "content": [{"type": "text", "text": "hi", "video": "/etc/passwd", "cache_control": {}}]}
    body = plans.plan(CHAT, read(schemas.Chat, model="standard", messages=[message]), "standard", VLLM_MLX).body
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]


def test_a_tools_schema_passes_as_it_is():
    parameters = {"type": "object", "properties": {"a": {"enum": [None, 1], "default": None}}, "x": [{}]}
    tools = [{"type": "function", "function": {"name": "look", "parameters": parameters}}]
    request = read(schemas.Chat, model="standard", messages=USER, tools=tools)
    assert plans.plan(CHAT, request, "standard", VLLM_MLX).body["tools"] == tools


@pytest.mark.parametrize(
    ("field", "value", "vllm", "rapid"),
    [
        ("top_k", -1, {"top_k": 0}, {"top_k": 0}),
        ("top_p", 0, {"top_p": 0.01}, {"top_p": 0.01}),
        ("reasoning_effort", "max", {"reasoning_effort": "xhigh"}, {"reasoning_effort": "xhigh"}),
        ("thinking_token_budget", 9, {"thinking_token_budget": 9}, {"reasoning_max_tokens": 9}),
        ("enable_thinking", False, {"enable_thinking": False}, {"enable_thinking": False}),
        ("frequency_penalty", 0, {}, {"frequency_penalty": 0}),
        ("logit_bias", {}, {}, {}),
    ],
)
def test_a_chats_fields_are_those_that_its_engine_reads(
    field: str, value: Any, vllm: dict[str, Any], rapid: dict[str, Any]
):
    request = read(schemas.Chat, model="standard", messages=USER, **{field: value})
    for can, wanted in ((VLLM_MLX, vllm), (RAPID_MLX, rapid)):
        body = plans.plan(CHAT, request, "standard", can).body
        assert body == {"model": "standard", "messages": USER, **wanted}


@pytest.mark.parametrize("can", [VLLM_MLX, RAPID_MLX], ids=["vllm", "rapid"])
def test_the_wish_to_think_reaches_the_engine_in_every_dialect(can: Any):
    chat = read(schemas.Chat, model="m", messages=USER, enable_thinking=True)
    message = read(schemas.Messages, model="m", messages=USER, max_tokens=9, thinking={"type": "disabled"})
    response = read(schemas.Responses, model="m", input="hi", enable_thinking=True, chat_template_kwargs={"a": 1})
    assert plans.plan(CHAT, chat, "m", can).body["enable_thinking"] is True
    assert plans.plan(MESSAGES, message, "m", can).body["enable_thinking"] is False
    body = plans.plan(RESPONSES, response, "m", can).body
    assert (body["chat_template_kwargs"], body["enable_thinking"]) == ({"a": 1}, True)


def test_max_completion_tokens_is_max_tokens():
    request = read(schemas.Chat, model="standard", messages=USER, max_completion_tokens=2)
    assert plans.plan(CHAT, request, "standard", VLLM_MLX).body["max_tokens"] == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"modalities": ["text", "audio"]}, "audio"),
        ({"functions": [{"name": "a"}]}, "functions"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0]"),
    ],
)
def test_what_is_not_carried_out_is_refused(fields: dict[str, Any], param: str):
    request = read(schemas.Chat, model="standard", messages=USER, **fields)
    refusal = checks.not_carried_out(request, "standard", VLLM_MLX, vision=False)
    assert refusal
    assert (refusal.status, refusal.code, refusal.param) == (400, "unsupported_parameter", param)


@pytest.mark.parametrize("fields", [{"n": 1}, {"logprobs": False}, {"frequency_penalty": 0}, {"modalities": ["text"]}])
def test_what_clients_send_by_default_is_no_fault(fields: dict[str, Any]):
    request = read(schemas.Chat, model="standard", messages=USER, **fields)
    assert checks.not_carried_out(request, "standard", VLLM_MLX, vision=False) is None
    body = plans.plan(CHAT, request, "standard", VLLM_MLX).body
    assert body == {"model": "standard", "messages": USER}


# What engines say of an answer


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        (b'{"error": {"message": "tool_choice forced a call to weather but"}}', 422, "tool_call_missing"),
        (b'{"error": {"message": "Forced", "code": "tool_choice_violation"}}', 422, "tool_call_missing"),
        (b'{"error": {"code": "strict_schema_violation"}}', 422, "schema_mismatch"),
        (b'{"detail": {"error": "invalid_response_format_output"}}', 422, "schema_mismatch"),
        (b'{"error": {"code": "invalid_strict_schema"}}', 400, "invalid_json_schema"),
    ],
)
def test_a_model_that_does_not_do_as_told_is_no_engines_failure(said: bytes, status: int, code: str):
    refusal = errors.about_answer(said)
    assert refusal
    assert (refusal.status, refusal.code) == (status, code)
    assert errors.about_answer(b'{"detail": "Internal server error during generation"}') is None


class Said:
    """An engine's answer, in the pieces in which it came."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces

    async def read(self) -> bytes:
        return b"".join(self._pieces)

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece

    async def resume(self, thoughts: str) -> AsyncIterator[bytes]:
        raise AssertionError(thoughts)


WORDS = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
RAW = (
    *(b'data: {"a": \x00no JSON\n\n', b"data: \xff\xfe\n\n", b"data: {\n\n", b'data: {"a":1}}\n\n', b"data: 7\n\n"),
    *(b'data: {"error":{"message":"x"}}\n\n', b"data:\n\n", b'data: {"a":1}{"b":2}\n\n', b"data: [DONE]\n\n"),
)


@given(st.lists(st.sampled_from((WORDS, b": beat\n\n", *RAW)), max_size=6), st.integers(1, 60), st.integers(0, 60))
def test_what_is_no_chunk_ends_a_stream_however_the_network_cuts(events: list[bytes], size: int, first: int):
    """All before it reaches the client, and nothing of it or after it; of comments none before the first words."""
    raw = b"".join((WORDS, *events, LAST))
    broken = next((at for at, event in enumerate(events) if event in RAW), None)
    good = [WORDS, *events[:broken]]
    request = read(schemas.Chat, model="standard", messages=USER, stream=True)
    plan = plans.plan(CHAT, request, "standard", RAPID_MLX)
    runs: list[bytes] = []

    async def take() -> None:
        source = Said(*(raw[max(0, at) : at + size] for at in range(-(first % size), len(raw), size)))
        stream = outputs.stream(Exchange(plan, source, lambda _: asyncio.sleep(0), ReportedReuse(), "1"))
        runs.append(await stream.opening())
        async for run in stream.rest():
            runs.append(run)  # noqa: PERF401 - those before a failure count

    if broken is None:
        asyncio.run(take())
    else:
        with pytest.raises(EngineDown):
            asyncio.run(take())
    sent = b"".join(runs).replace(b',"finish_reason":null', b"")
    assert sent == b"".join(good) + (LAST if broken is None else b"")


def test_a_chunk_always_has_a_finish_reason():
    """rapid-mlx leaves the null out; text that looks like a chunk's end is left alone."""
    odd = json.dumps("}}]}\n\n")
    pieces = [f'data: {{"choices":[{{"index":0,"delta":{{"content":{text}}}}}]}}\n\n' for text in ('"a"', odd, '"c"')]
    last = 'data: {"choices":[{"index":0,"delta":{"content":"d"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    request = read(schemas.Chat, model="standard", messages=USER, stream=True)
    plan = plans.plan(CHAT, request, "standard", RAPID_MLX)

    async def sent() -> bytes:
        source = Said(pieces[0].encode(), "".join([*pieces[1:], last]).encode())
        stream = outputs.stream(Exchange(plan, source, lambda _: asyncio.sleep(0), ReportedReuse(), "1"))
        return await stream.opening() + b"".join([run async for run in stream.rest()])

    choices = [json.loads(line[6:])["choices"][0] for line in asyncio.run(sent()).decode().split("\n\n") if "{" in line]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert [choice["delta"]["content"] for choice in choices] == ["a", "}}]}\n\n", "c", "d"]


def test_at_most_one_call_where_parallel_ones_are_not_wanted():
    piece = {"function": {"name": "a", "arguments": "{}"}}
    deltas = [{"tool_calls": [{"index": 0, "id": "1", **piece}, {"index": 1, "id": "2", **piece}]}]
    deltas += [{"tool_calls": [{"index": 1, **piece}]}, {"content": "b"}]

    async def chunks() -> AsyncIterator[dict[str, Any]]:
        for delta in deltas:
            yield {"choices": [{"delta": delta}]}

    async def kept() -> list[Any]:
        return [chunk["choices"][0]["delta"] async for chunk in first_call_only(chunks())]

    assert asyncio.run(kept()) == [
        {"tool_calls": [{"index": 0, "id": "1", **piece}]},
        {"tool_calls": []},
        {"content": "b"},
    ]


# Anthropic's messages through a chat


def test_tools_and_their_results_become_a_chats():
    body = {
        "model": "standard",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "be brief"}],
        "messages": [
            {"role": "user", "content": "look"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "text", "text": "I look"},
                    {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "seen"}]},
                    {"type": "text", "text": "and?"},
                ],
            },
        ],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tool_choice": {"type": "any"},
    }
    chat = anthropic_chat.to_chat(body)
    assert [message["role"] for message in chat["messages"]] == ["system", "user", "assistant", "tool", "user"]
    assert chat["messages"][2]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at":1}'}
    assert chat["messages"][2]["reasoning_content"] == "hm"
    assert chat["messages"][3] == {"role": "tool", "tool_call_id": "t1", "content": "seen"}
    assert (chat["enable_thinking"], chat["thinking_token_budget"], chat["tool_choice"]) == (True, 1024, "required")


def test_a_chats_stream_becomes_a_messages():
    encoder = anthropic_chat.MessageEncoder("1", "standard")
    raw = encoder.start()
    for delta in (
        {"role": "assistant"},
        {"reasoning_content": "hm"},
        {"content": "I look"},
        {"tool_calls": [{"index": 0, "id": "t1", "function": {"name": "look", "arguments": '{"at"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
    ):
        raw += encoder.feed({"choices": [{"delta": delta}]})
    raw += encoder.feed({"choices": [{"delta": {}, "finish_reason": "tool_calls"}], "usage": {"prompt_tokens": 3}})
    raw += encoder.end(None)
    events = [json.loads(sse.data(event) or b"") for event in sse.split(raw)]
    kinds = [event["type"].removeprefix("content_block_") for event in events]
    assert kinds == [
        "message_start",
        *("start", "delta", "stop"),
        *("start", "delta", "stop"),
        *("start", "delta", "delta", "stop"),
        *("message_delta", "message_stop"),
    ]
    assert [event["index"] for event in events if "index" in event] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[-2]["usage"]["input_tokens"] == 3


def test_calls_that_interleave_become_blocks_that_do_not():
    encoder = anthropic_chat.MessageEncoder("1", "standard")
    raw = b""
    for at, name, arguments in ((0, "a", "{"), (1, "b", "{"), (0, None, "}"), (1, None, "}")):
        call = {"index": at, "function": {"name": name, "arguments": arguments}} | ({"id": f"t{at}"} if name else {})
        raw += encoder.feed({"choices": [{"delta": {"tool_calls": [call]}}]})
    raw += encoder.end(None)
    events = [json.loads(sse.data(event) or b"") for event in sse.split(raw)]
    blocks = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [(block["id"], block["name"]) for block in blocks] == [("t0", "a"), ("t1", "b")]
    pieces = [(event["index"], event["delta"]["partial_json"]) for event in events if "partial_json" in str(event)]
    assert pieces == [(0, "{"), (0, "}"), (1, "{"), (1, "}")]


def test_words_between_two_pieces_of_a_call_come_after_it():
    """A block that was left cannot be taken up again: its rest would have neither id nor name."""
    encoder = anthropic_chat.MessageEncoder("1", "standard")
    raw = b""
    for delta in (
        {"tool_calls": [{"index": 0, "id": "t0", "function": {"name": "a", "arguments": '{"x"'}}]},
        {"content": "and"},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
        {"content": " so"},
        {"reasoning_content": "hm"},
    ):
        raw += encoder.feed({"choices": [{"delta": delta}]})
    raw += encoder.end(None)
    events = [json.loads(sse.data(event) or b"") for event in sse.split(raw)]
    blocks = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [block["type"] for block in blocks] == ["tool_use", "text", "thinking"]
    assert [block.get("id") for block in blocks] == ["t0", None, None]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("partial_json", "") for delta in deltas) == '{"x": 1}'
    assert [delta["text"] for delta in deltas if "text" in delta] == ["and", " so"]


def test_words_after_a_whole_call_are_not_held_back():
    encoder = anthropic_chat.MessageEncoder("1", "standard")
    call = {"index": 0, "id": "t0", "function": {"name": "a", "arguments": "{}"}}
    encoder.feed({"choices": [{"delta": {"tool_calls": [call]}}]})
    assert b"done" in encoder.feed({"choices": [{"delta": {"content": "done"}}]})
    again = {"index": 0, "function": {"arguments": " "}}
    assert encoder.feed({"choices": [{"delta": {"tool_calls": [again]}}]}) == b""


# Schemas


def test_checking_a_schema_is_bounded():
    """Neither its regular expressions nor references that multiply take the gateway's time."""
    many = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)} | {"d40": {}}
    assert "too many steps" in (json_schema.mismatch("1", {"$defs": many, "$ref": "#/$defs/d0"}) or "")
    assert json_schema.mismatch(json.dumps("a" * 40 + "!"), {"type": "string", "pattern": "^(a+)+$"}) is None


def test_the_errors_of_a_schema_take_no_memory():
    """Each one quotes the answer."""
    schema = {"anyOf": [{"type": "integer"}] * 3000}
    assert "too many steps" in (json_schema.mismatch(json.dumps("a" * 100_000), schema) or "")


def test_a_check_leaves_no_memory_behind():
    """Errors of branches within branches once took 300 MB and 14 s."""
    levels: dict[str, Any] = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(22)}
    schema = {"$defs": {**levels, "d22": {"type": "integer"}}, "$ref": "#/$defs/d0"}
    tracemalloc.start()
    try:
        assert "too many steps" in (json_schema.mismatch("{}", schema) or "")
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    finally:
        tracemalloc.stop()


def test_the_errors_of_branches_that_do_not_count_are_let_go():
    kinds: list[dict[str, Any]] = [{"type": "string"}, {"type": "null"}, {"type": "object"}, {"type": "integer"}]
    assert json_schema.mismatch(json.dumps([1] * 8000), {"type": "array", "items": {"anyOf": kinds}}) is None


MOST_CALLS = 500_000
"""Calls that a check of 4,000 objects may make; jsonschema compares each with each, with 240 million."""

COMPARED = [{"a": number} for number in range(4000)]


@pytest.mark.parametrize(("more", "fault"), [([], ""), ([{"a": 1}], "equal items")])
def test_a_check_does_not_compare_each_with_each(more: list[Any], fault: str):
    calls, problem = called(lambda: json_schema.mismatch(json.dumps([*COMPARED, *more]), {"uniqueItems": True}))
    assert (problem or "").endswith(fault)
    assert bool(problem) == bool(fault)
    assert calls < MOST_CALLS


@pytest.mark.parametrize(
    ("answer", "schema"),
    [
        ([6999] * 400, {"items": {"enum": list(range(7000))}}),
        ([{}] * 400, {"items": {"properties": {f"p{number}": {} for number in range(5000)}}}),
    ],
)
def test_a_step_that_looks_at_many_members_counts_as_many(answer: Any, schema: dict[str, Any]):
    assert "too many steps" in (json_schema.mismatch(json.dumps(answer), schema) or "")
    assert json_schema.mismatch(json.dumps(answer[:40]), schema) is None


def test_a_check_that_branches_without_steps_ends():
    """Jsonschema follows dependentSchemas for unevaluatedProperties by itself: 40 levels would never end."""
    levels: dict[str, Any] = {
        f"d{n}": {"dependentSchemas": {key: {"$ref": f"#/$defs/d{n + 1}"} for key in "ab"}} for n in range(40)
    }
    schema = {"unevaluatedProperties": False, "$ref": "#/$defs/d0", "$defs": {**levels, "d40": {}}}
    assert "too many steps" in (json_schema.mismatch('{"a": 1, "b": 2}', schema) or "")


def test_a_schema_itself_is_judged_without_comparing_each_with_each():
    schema = {"$schema": "http://json-schema.org/draft-04/schema#", "enum": COMPARED}
    calls, problem = called(lambda: json_schema.faulty(schema))
    assert (problem, calls < MOST_CALLS) == (None, True)


@pytest.mark.parametrize("named", [[], {"a": 1}, 7, None, "http://[", "x", "http://json-schema.org/draft-07/schema#"])
def test_a_draft_that_is_none_is_the_newest(named: Any):
    schema = {"$schema": named, "type": "integer"}
    json_schema.faulty(schema)
    assert json_schema.mismatch("1", schema) is None
    assert json_schema.mismatch('"a"', schema)


def test_a_property_called_pattern_is_checked():
    schema = {"properties": {"pattern": {"type": "integer"}}}
    assert json_schema.mismatch('{"pattern": "x"}', schema)


@pytest.mark.parametrize("text", ['```json\n{"a": 1}\n```', ' {"a": 1}\n', '```\n{"a": 1}\n```'])
def test_a_fence_around_json_is_taken_off(text: str):
    assert json.loads(json_schema.bare(text)) == {"a": 1}


# The second wall


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        (("127.0.0.1", 8000), True),
        (("127.0.0.1", 8001), False),
        (("127.0.0.2", 8000), False),
        (("169.254.169.254", 80), False),
        (("::1", 8000), False),
    ],
)
def test_only_engines_are_behind_the_wall(address: tuple[str, int], allowed: bool):
    assert Wall([("127.0.0.1", 8000)], None).allows(*address) == allowed


def test_the_clouds_host_is_there_with_its_port_alone():
    wall = Wall([], "http://127.0.0.1:9000/api/v1")
    assert wall.allows("127.0.0.1", 9000)
    assert not wall.allows("127.0.0.1", 9001)


# Keys


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_the_file_holds_no_key_and_is_the_users_alone(path: Path):
    secret = keys.create(path, "app", tiers=("fast",), rpm=60, background=True)
    assert secret not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = keys.read(path)[keys.digest(secret)]
    assert (found.name, found.tiers, found.rpm, found.background) == ("app", ("fast",), 60, True)


def test_a_name_is_given_once(path: Path):
    keys.create(path, "app")
    with pytest.raises(UsageProblem, match="already"):
        keys.create(path, "app")


@pytest.mark.parametrize("name", ["", "App", "a b", "-a", "a" * 41, "a/b", "ключ"])
def test_an_odd_name_is_refused(path: Path, name: str):
    with pytest.raises(UsageProblem):
        keys.create(path, name)


def test_revoking_what_is_not_there_says_so(path: Path):
    with pytest.raises(NotFound, match="app"):
        keys.revoke(path, "app")


@pytest.mark.parametrize("text", ["", "[{}]", "{}x", '[{"name": 1}]', "[1]"])
def test_a_damaged_file_is_named(path: Path, text: str):
    path.write_text(text)
    with pytest.raises(Damaged, match=r"keys\.json"):
        keys.read(path)


def test_a_key_for_a_trial_opens_the_gateway_as_long_as_it_is_proven(path: Path):
    proving = True
    ring = KeyRing(path, "sk-master", "sk-trial", lambda: proving)
    assert ring.find("sk-trial") == ring.find("sk-master")

    proving = False

    assert ring.find("sk-trial") is None
    assert KeyRing(path, "sk-master").find("") is None


def test_the_ring_sees_changes_at_once(path: Path):
    ring = KeyRing(path, "sk-master")
    assert ring.find("sk-app") is None
    secret = keys.create(path, "app")
    assert ring.find(secret)
    keys.revoke(path, "app")
    assert ring.find(secret) is None


@given(st.text(max_size=60))
def test_no_other_text_is_the_master_key(text: str):
    assert KeyRing(Path("/nowhere/keys.json"), "sk-master").find(text) is None


@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"x-api-key", b"X-API-Key"]), st.binary(max_size=20))))
def test_no_header_breaks_the_reading_of_a_key(headers: list[tuple[bytes, bytes]]):
    assert isinstance(secret_of(headers), str | None)
