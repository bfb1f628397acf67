"""What set-up says of a tier that gave no answer."""

from __future__ import annotations

import pytest

from tasks.smoke_test import reason


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
