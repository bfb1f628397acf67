"""What a tier's defaults fill in where a request says nothing, in every dialect."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.gateway.dialects.defaults import fill
from tasks.gateway.dialects.dialect import CHAT, COMPLETIONS, COUNT_TOKENS, EMBEDDINGS, MESSAGES, RESPONSES, Dialect

OWN = {"max_tokens": 512, "temperature": 0.2, "top_p": 0.9, "top_k": 20}


@pytest.mark.parametrize(
    ("dialect", "filled"),
    [
        (CHAT, OWN),
        (COMPLETIONS, OWN),
        (MESSAGES, {"temperature": 0.2, "top_p": 0.9, "top_k": 20}),
        (RESPONSES, {"temperature": 0.2, "top_p": 0.9, "top_k": 20, "max_output_tokens": 512}),
        (EMBEDDINGS, {}),
        (COUNT_TOKENS, {}),
    ],
)
def test_a_request_that_says_nothing_gets_all(dialect: Dialect, filled: dict[str, Any]) -> None:
    assert fill(dialect, {"model": "fast"}, OWN) == {"model": "fast"} | filled


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (CHAT, {"temperature": 0, "top_p": 1, "top_k": 1, "max_tokens": 7}),
        (CHAT, {"temperature": 0, "top_p": 1, "top_k": 1, "max_completion_tokens": 7}),
        (COMPLETIONS, {"temperature": 0, "top_p": 1, "top_k": 1, "max_tokens": 7}),
        (MESSAGES, {"temperature": 0, "top_p": 1, "top_k": 1, "max_tokens": 7}),
        (RESPONSES, {"temperature": 0, "top_p": 1, "top_k": 1, "max_output_tokens": 7}),
    ],
)
def test_what_a_request_says_stands(dialect: Dialect, body: dict[str, Any]) -> None:
    assert fill(dialect, body, OWN) == body


def test_each_field_is_filled_by_itself() -> None:
    assert fill(CHAT, {"temperature": 1.5}, OWN) == {"temperature": 1.5, "top_p": 0.9, "top_k": 20, "max_tokens": 512}
    assert fill(CHAT, {"messages": []}, {}) == {"messages": []}


def test_a_messages_temperature_ends_where_anthropics_does() -> None:
    assert fill(MESSAGES, {}, {"temperature": 1.4}) == {"temperature": 1.0}
    assert fill(CHAT, {}, {"temperature": 1.4}) == {"temperature": 1.4}
