"""What is judged before a body is parsed: how many values it holds."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.gateway.dialects import checks, schemas
from tasks.gateway.errors import Refusal

WORDS = st.text(max_size=8)
VALUES = st.recursive(WORDS | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(WORDS, inner))


def counted(value: object) -> int:
    """Return the strings of a value, and the signs that open it or stand between its parts."""
    match value:
        case str():
            return 1
        case list():
            return 1 + max(0, len(value) - 1) + sum(map(counted, value))
        case dict():
            return 1 + max(0, len(value) - 1) + sum(1 + counted(inner) for inner in value.values())
        case _:
            return 0


@given(VALUES)
def test_a_body_is_overgrown_when_it_has_one_value_too_many(value: object):
    number = counted(value)
    content = json.dumps(value).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "MOST_VALUES", number)
        assert not checks.overgrown(content)
        patch.setattr(checks, "MOST_VALUES", max(0, number - 1))
        assert checks.overgrown(content) == (number > 0)


@pytest.mark.parametrize("text", [",[{" * 200_000, '\\"' * 300_000, '"' * 300_000])
def test_what_stands_in_a_string_is_one_value(text: str):
    assert not checks.overgrown(json.dumps({"content": text}).encode())


def test_the_first_fault_of_a_list_is_the_only_one():
    content = json.dumps({"model": "m", "messages": [{"role": "x"}, {"role": "y"}]}).encode()
    refusal = checks.read(schemas.Chat, content)
    assert isinstance(refusal, Refusal)
    assert refusal.param == "messages[0].role"
