r"""What a terminal is shown: text that came from a model, a file name or a log cannot move its cursor or set its title.

An allow-list: line breaks, tabs and the colors that mlxq itself paints with. All other control characters are written
as Python escapes (`\x1b`), also those that turn the direction of text. A pipe gets every byte as it is.
"""

from __future__ import annotations

import re
from typing import Any, TextIO

_COLOR = r"\x1b\[(?:0|1|2|3[0-79]|9[0-7])m"
_SPECIAL = rf"(?P<color>{_COLOR})|[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
"""The colors of click.style, and every character that changes how others are shown; compiled where it is needed."""


def printable(text: str) -> str:
    """Return the text with all that is special in it escaped, colors too."""
    return re.sub(_SPECIAL, lambda match: _escaped(match[0]), text)


def _escaped(text: str) -> str:
    return "".join(repr(letter)[1:-1] if not letter.isprintable() else letter for letter in text)


class Terminal:
    """A stream that leads to a terminal; it lets colors through."""

    def __init__(self, stream: TextIO) -> None:
        self.raw = stream

    def write(self, text: str) -> int:
        """Write, with what is special in it escaped."""
        self.raw.write(re.sub(_SPECIAL, lambda match: match["color"] or _escaped(match[0]), text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        """Return what the stream has of that name: it is one in all else."""
        return getattr(self.raw, name)


def raw(stream: Any) -> Any:
    """Return the stream itself, for a view that moves the cursor and shows nothing but `printable` text."""
    return stream.raw if isinstance(stream, Terminal) else stream
