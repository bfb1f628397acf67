"""Stop strings, searched in a text that arrives in pieces."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Scanner:
    """Lets a text through piece by piece until one of the stop strings is complete.

    It holds back only the longest end of the text that may be the start of a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(stop for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._firsts = {stop[0] for stop in self._stops}
        self._held = ""
        self.hit: str | None = None

    def feed(self, piece: str) -> str:
        """Take the next piece and return what is safe to show. After a hit nothing more is."""
        if self.hit is not None:
            return ""
        text = self._held + piece
        if not self._firsts.intersection(text):
            self._held = ""
            return text
        hits = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if hits:
            at, self.hit = min(hits)
            self._held = ""
            return text[:at]
        keep = self._overlap(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """Return what was held back, when the text ended without a hit."""
        text, self._held = self._held, ""
        return text

    def _overlap(self, text: str) -> int:
        """Return the length of the longest end of `text` that is a start of a stop string.

        Of the sorted stop strings those that begin with an end stand where that end would: one look, not one a string.
        """
        ends = range(max(0, len(text) - self._longest + 1), len(text))
        return next((len(text) - at for at in ends if text[at] in self._firsts and self._starts(text[at:])), 0)

    def _starts(self, end: str) -> bool:
        at = bisect_left(self._stops, end)
        return at < len(self._stops) and self._stops[at].startswith(end)
