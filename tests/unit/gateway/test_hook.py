"""The gateway hook's pure parts; what they do around the real proxy is in tests/contract/test_gateway_hook.py."""

import asyncio
import contextvars
import stat
import threading
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from state import keys
from state.errors import Damaged, NotFound, UsageProblem
from tasks.gateway import context_limit, document_links, errors, litellm_patch, sse
from tasks.gateway.api_keys import Ring, secret_of
from tasks.gateway.litellm_executor import Executor
from tasks.gateway.poison_requests import FORGET_S, Guard
from tasks.gateway.priority import LONGEST_WAIT_S, Queue
from tasks.gateway.request_context import Call
from tasks.gateway.stop_strings import Scanner

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


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=9), st.integers(1, 7))
def test_events_are_whole_however_the_network_cuts(payloads: list[bytes], size: int):
    sent = [b"data: " + payload.replace(b"\n", b"") + b"\n\n" for payload in payloads]
    raw = b"".join(sent)

    async def cut() -> AsyncIterator[bytes]:
        for at in range(0, len(raw), size):
            yield raw[at : at + size]

    async def collect() -> list[bytes]:
        return [event async for event in sse.events(cut())]

    assert asyncio.run(collect()) == sent


def test_a_heartbeat_is_no_payload():
    assert sse.data(b": heartbeat\n\n") is None


@pytest.mark.parametrize(
    ("payload", "speaks"),
    [
        ({"choices": [{"delta": {"role": "assistant"}}]}, False),
        ({"choices": [{"delta": {"role": "assistant", "content": ""}}]}, False),
        ({"choices": [{"delta": {"content": "a"}}]}, True),
        ({"choices": [{"delta": {"reasoning_content": "hm"}}]}, True),
        ({"choices": [{"delta": {"role": "assistant", "tool_calls": [{"index": 0}]}}]}, True),
        ({"choices": [{"text": ""}]}, False),
        ({"choices": [{"text": "a"}]}, True),
        ({"choices": [], "usage": {"total_tokens": 3}}, False),
    ],
)
def test_an_event_speaks_when_it_has_words(payload: dict[str, Any], speaks: bool):
    assert sse.speaks(sse.encode(payload)) == speaks


@pytest.mark.parametrize("event", [b": heartbeat\n\n", b"data: [DONE]\n\n"])
def test_an_event_of_the_protocol_does_not_speak(event: bytes):
    assert not sse.speaks(event)


LINK = "HTTPS://example.org/a.pdf"


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": LINK}}]}]},
        {"messages": [{"content": [{"type": "document", "source": {"type": "url", "url": LINK}}]}]},
        {
            "messages": [
                {"content": [{"type": "tool_result", "content": [{"type": "document", "source": {"url": LINK}}]}]}
            ]
        },
        {"input": [{"type": "message", "content": [{"type": "input_file", "file_url": LINK}]}]},
        {"input": [{"type": "function_call_output", "output": [{"type": "input_file", "file_url": LINK}]}]},
    ],
)
def test_a_documents_link_is_found(body: dict[str, Any]):
    assert document_links.followed(body) == LINK


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": f"read {LINK}"}]},
        {"messages": [{"role": "user", "content": LINK}]},
        {"messages": [{"content": [{"type": "file", "file": {"file_data": "data:application/pdf;base64,aa"}}]}]},
        {"input": LINK, "messages": 7},
        {},
    ],
)
def test_words_and_data_are_no_link(body: dict[str, Any]):
    assert document_links.followed(body) is None


def test_no_depth_breaks_the_search_for_links():
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert document_links.followed({"messages": deep}) is None


def test_tool_calls_survive_being_folded():
    fold = sse.Fold()
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


@pytest.mark.parametrize(
    ("told", "plain"),
    [
        ("litellm.BadRequestError: OpenAIException - too hot. Received Model Group=fast\nAvailable Model", "too hot"),
        ("litellm.Timeout: Connection timed out", "Connection timed out"),
        ("simple words", "simple words"),
    ],
)
def test_litellms_wrapping_is_taken_off(told: str, plain: str):
    assert errors.plain(told) == plain


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"detail": [{"loc": ["body"], "msg": "missing"}]}', '[{"loc":["body"],"msg":"missing"}]'),
        (b'{"detail": "API key required"}', "API key required"),
        (b'{"error": {"message": "m"}}', "m"),
        (b'{"error": "m"}', "m"),
        (b"Internal Server Error", "Internal Server Error"),
        (b"", "The request failed."),
        (b"[1]", "[1]"),
        (b"null", "null"),
    ],
)
def test_an_error_of_any_shape_has_a_message(content: bytes, message: str):
    assert errors.told(content)["message"] == message


def test_each_dialect_gets_its_own_shape():
    refusal = errors.Refusal(429, "slow down", "rate_limit_exceeded")
    assert b'"type":"error"' in refusal.body("/v1/messages")
    assert b'"code":"rate_limit_exceeded"' in refusal.body("/v1/chat/completions")


# The guard


def test_one_death_leaves_the_request_another_try():
    guard = Guard()
    guard.crashed("a", "standard")
    guard.crashed("a", "standard")
    assert guard.killers(lambda: "a") == set()


def test_two_tiers_deaths_end_it_until_forgotten():
    now = [0.0]
    guard = Guard(clock=lambda: now[0])
    guard.crashed("a", "standard")
    guard.crashed("a", "fast")
    assert guard.killers(lambda: "a") == {"standard", "fast"}
    assert guard.killers(lambda: "b") == set()
    now[0] = FORGET_S
    assert guard.killers(lambda: "a") == set()


def test_an_answer_clears_the_name():
    guard = Guard()
    guard.crashed("a", "standard")
    guard.answered(lambda: "a")
    guard.crashed("a", "fast")
    assert guard.killers(lambda: "a") == set()


def test_the_guard_does_not_grow_for_ever():
    guard = Guard()
    for number in range(1000):
        guard.crashed(str(number), "fast")
    assert len(guard._deaths) <= 256


# Background requests


def test_background_is_never_starved():
    async def run() -> float:
        queue = Queue(longest_wait_s=0.05)
        async with queue.turn(background=False), queue.turn(background=True) as waited:
            return waited

    assert 0.05 <= asyncio.run(run()) < 5


def test_background_does_not_wait_for_nobody():
    async def run() -> float:
        async with Queue().turn(background=True) as waited:
            return waited

    assert asyncio.run(run()) < LONGEST_WAIT_S


# The length of a prompt


@pytest.mark.parametrize(("size", "counted"), [(1000, False), (1001, True)])
def test_only_what_could_be_too_long_is_counted(size: int, counted: bool):
    """A token is at least one byte; what is not counted may be of any shape."""
    body = {"messages": [{"role": "user", "content": "word " * 2000}]}
    excess = asyncio.run(context_limit.excess(Call("/v1/chat/completions"), b"x" * size, body, 1000))
    assert (excess is not None) == counted


def test_a_prompt_is_counted_once_for_all_tiers():
    call, content = Call("/v1/chat/completions"), b"x" * 9000
    body = {"messages": [{"role": "user", "content": "word " * 2000}]}
    first = asyncio.run(context_limit.excess(call, content, body, 1000))
    assert first == asyncio.run(context_limit.excess(call, content, {}, 1500))
    assert asyncio.run(context_limit.excess(call, content, {}, 4000)) is None


# What is replaced in LiteLLM


class Theirs:
    def known(self, a: int) -> str:
        return f"theirs {a}"


@pytest.mark.parametrize(("known", "answer"), [(("self", "a"), "ours"), (("self", "b"), "theirs 1"), ((), "theirs 1")])
def test_only_the_part_that_is_known_is_replaced(known: tuple[str, ...], answer: str):
    class Other(Theirs):
        """A class of this test alone."""

    assert litellm_patch.replace(Other, "known", known, lambda *_: "ours") == (answer == "ours")
    assert Other().known(1) == answer


def test_a_part_that_is_gone_is_no_trouble():
    assert not litellm_patch.replace(Theirs, "gone", ("self",), lambda *_: "ours")
    assert not hasattr(Theirs, "gone")


def prepare(*, acompletion: bool = False, fail: bool = False) -> int:
    """Say which thread this is."""
    assert not fail
    return threading.get_ident()


async def litellm_runs(prepared: partial[int]) -> int:
    """Do as LiteLLM's acompletion does."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(Executor())
    return await loop.run_in_executor(None, partial(contextvars.copy_context().run, prepared))


def test_only_a_chat_is_prepared_at_once():
    here = threading.get_ident()
    assert asyncio.run(litellm_runs(partial(prepare, acompletion=True))) == here
    assert asyncio.run(litellm_runs(partial(prepare))) != here


def test_what_fails_in_the_preparing_is_told():
    with pytest.raises(AssertionError):
        asyncio.run(litellm_runs(partial(prepare, acompletion=True, fail=True)))


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


def test_the_ring_sees_changes_at_once(path: Path):
    ring = Ring(path, "sk-master")
    assert ring.find("sk-app") is None
    secret = keys.create(path, "app")
    assert ring.find(secret)
    keys.revoke(path, "app")
    assert ring.find(secret) is None


@given(st.text(max_size=60))
def test_no_other_text_is_the_master_key(text: str):
    assert Ring(Path("/nowhere/keys.json"), "sk-master").find(text) is None


@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"x-api-key", b"X-API-Key"]), st.binary(max_size=20))))
def test_no_header_breaks_the_reading_of_a_key(headers: list[tuple[bytes, bytes]]):
    assert isinstance(secret_of(headers), str | None)
