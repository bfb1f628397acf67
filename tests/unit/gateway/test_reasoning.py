"""Thoughts that are put back: whose, where, for how long and how many."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import Clock

from tasks.gateway.dialects import turns
from tasks.gateway.dialects.reasoning import ENTRY_BYTES, KEPT_S, ReasoningStore

USER = {"role": "user", "content": "hi"}


def call(name: str, arguments: str, id: str = "call_1") -> dict[str, Any]:  # noqa: A002 - the field's name
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def turn(content: Any = "yes", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def restored(store: ReasoningStore, answer: dict[str, Any], key: str = "me", before: Any = USER) -> str:
    """Return the thoughts that a turn after `before` gets."""
    return turns.thoughts(store.put_back(key, [before, answer])[1])


@pytest.mark.parametrize(
    ("answer", "echo"),
    [
        (turn("yes"), turn(" yes\n")),
        (turn("yes"), turn([{"type": "text", "text": "yes"}])),
        (
            turn("", tool_calls=[call("look", '{"a": 1, "b": 2}')]),
            turn(None, tool_calls=[call("look", '{"b":2,"a":1}', "x")]),
        ),
    ],
)
def test_a_turn_is_recognized_however_its_client_writes_it(answer: dict[str, Any], echo: dict[str, Any]):
    store = ReasoningStore()
    store.keep("me", [USER], answer, "hm")
    assert restored(store, echo) == "hm"


@pytest.mark.parametrize(
    ("key", "before", "answer"),
    [
        ("other", USER, turn()),
        ("me", {"role": "user", "content": "ho"}, turn()),
        ("me", USER, turn("no")),
        ("me", USER, turn(tool_calls=[call("look", "{}")])),
    ],
)
def test_another_key_history_or_answer_gets_nothing(key: str, before: dict[str, Any], answer: dict[str, Any]):
    store = ReasoningStore()
    store.keep("me", [USER], turn(), "hm")
    assert restored(store, answer, key, before) == ""


def test_what_a_client_sends_itself_stays():
    store = ReasoningStore()
    store.keep("me", [USER], turn(), "hm")
    assert restored(store, turn(reasoning_content="mine")) == "mine"


def test_thoughts_are_forgotten_after_their_last_use():
    clock = Clock()
    store = ReasoningStore(clock)
    store.keep("me", [USER], turn(), "hm")
    clock.now += KEPT_S - 1
    assert restored(store, turn()) == "hm"
    clock.now += KEPT_S - 1
    assert restored(store, turn()) == "hm"
    clock.now += KEPT_S + 1
    assert restored(store, turn()) == ""
    assert store.size == 0


ROOM, ROOM_OF_A_KEY = 4000, 1000


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 9), st.integers(1, ROOM_OF_A_KEY)), max_size=40))
def test_no_key_and_not_all_together_take_more_than_their_room(kept: list[tuple[str, int, int]]):
    """Whatever comes: the sizes are those of what is there, and the last one is, where it has room at all."""
    store = ReasoningStore(largest=ROOM, largest_of_a_key=ROOM_OF_A_KEY)
    for key, number, size in kept:
        store.keep(key, [USER], turn(str(number)), "t" * size)
        assert store.size <= ROOM
        assert store.size_of(key) <= ROOM_OF_A_KEY
        assert restored(store, turn(str(number)), key) == ("t" * size if size + ENTRY_BYTES <= ROOM_OF_A_KEY else "")


def test_the_least_recently_used_goes_first():
    store = ReasoningStore(largest_of_a_key=2 * (ENTRY_BYTES + 2))
    for text in ("a", "b"):
        store.keep("me", [USER], turn(text), "hm")
    assert restored(store, turn("a")) == "hm"
    store.keep("me", [USER], turn("c"), "hm")
    assert [restored(store, turn(text)) for text in "abc"] == ["hm", "", "hm"]


def test_thoughts_stand_at_the_start_of_a_turns_text():
    calls = [call("look", "{}")]
    given = [USER, turn("yes", reasoning_content=" hm\n"), turn(None, reasoning="ho", tool_calls=calls), turn("plain")]
    assert turns.with_thoughts_inside(given) == [
        USER,
        turn("<think>\nhm\n</think>\n\nyes"),
        turn("<think>\nho\n</think>\n\n", tool_calls=calls),
        turn("plain"),
    ]


def test_a_text_that_holds_thoughts_already_gets_no_second_ones():
    written = turn("<think>\nhm\n</think>\n\nyes", reasoning_content="hm")
    assert turns.with_thoughts_inside([written]) == [turn("<think>\nhm\n</think>\n\nyes")]
