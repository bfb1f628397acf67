"""A text is cut at the first stop string, however it comes in pieces, and little of it is held back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tasks.gateway.dialects.stop_strings import Scanner

LETTERS = st.text("ab", min_size=1, max_size=4)
"""Two letters, so that stop strings overlap each other and the text."""


def starts(stops: list[str]) -> set[str]:
    return {stop[:end] for stop in stops for end in range(1, len(stop))}


@given(st.lists(LETTERS, max_size=5), st.lists(st.text("abc", max_size=5), max_size=8))
def test_it_shows_all_that_cannot_be_the_start_of_a_stop_string(stops: list[str], pieces: list[str]):
    scanner, text, shown = Scanner(stops), "", ""
    for piece in pieces:
        text += piece
        shown += scanner.feed(piece)
        hits = [text.find(stop) for stop in stops if stop in text]
        if hits:
            assert shown == text[: min(hits)]
            assert scanner.hit is not None
            assert text.startswith(scanner.hit, min(hits))
            return
        held = max((len(end) for end in starts(stops) if text.endswith(end)), default=0)
        assert shown == text[: len(text) - held]
    assert shown + scanner.rest() == text
