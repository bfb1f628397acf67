"""How long one answer of an engine may take. Pure."""

from __future__ import annotations

from state.stack import ANSWER_TIMEOUT_S

LONGEST_ANSWER_S = 1800
"""The most. Who waits longer has gone."""
SLOWER = 1.5
"""How much slower a prompt may be read than predicted: nine of ten are within half as long again."""


def answer_timeout_s(reading_s: float, decode: float, tokens: int) -> int:
    """Return the seconds one answer may take on an engine that reads a full window in `reading_s`.

    It must have time to read that window and then to write `tokens` at `decode` tokens/s.
    """
    needed = SLOWER * (reading_s + tokens / max(decode, 1.0))
    return int(min(LONGEST_ANSWER_S, max(ANSWER_TIMEOUT_S, needed)))
