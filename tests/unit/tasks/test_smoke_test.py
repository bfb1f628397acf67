"""What set-up says of a tier that gave no answer."""

from __future__ import annotations

import pytest

from state.stack import Engine, alone
from tasks.smoke_test import LONGEST_TURN_S, expected_turn_s, reason


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"error": {"message": "No deployments\\n available.", "code": "429"}}', "No deployments available."),
        ('{"detail": "Not Found"}', '{"detail": "Not Found"}.'),
        ("<h1>Bad Gateway</h1>", "<h1>Bad Gateway</h1>."),
        ('{"error": "busy"}', '{"error": "busy"}.'),
        ("", "and it says no more."),
    ],
)
def test_an_error_is_told_in_the_words_of_whoever_answered(body: str, words: str) -> None:
    assert reason(body) == words


@pytest.mark.parametrize(("hello_s", "asked"), [(0.1, True), (7.0, False)])
def test_a_machine_without_a_gpu_is_not_asked_a_second_turn(hello_s: float, asked: bool) -> None:
    tier = alone(Engine("fast", "m", "int4", "file:/m", 8000, 8192, 1 << 30, cache_bytes=0, concurrency=1))

    assert (expected_turn_s(tier, hello_s) <= LONGEST_TURN_S) is asked
