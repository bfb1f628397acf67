"""Keys of a terminal, one at a time, without Enter and without an echo."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import tty
from types import TracebackType
from typing import Self

UP, DOWN, ESCAPE = "up", "down", "escape"
SEQUENCES = {"\x1b[A": UP, "\x1bOA": UP, "\x1b[B": DOWN, "\x1bOB": DOWN, "\x1b": ESCAPE}
"""What terminals send for the keys that have no character (ECMA-48)."""
_KEY = re.compile(r"\x1b(?:[\[O][0-9;]*[A-Za-z~])?|.", re.DOTALL)


def keys(text: str) -> list[str]:
    """Return the keys of what a terminal sent; those without a meaning here by what was sent."""
    typed: list[str] = _KEY.findall(text)
    return [SEQUENCES.get(key, key) for key in typed]


class Keyboard:
    """The terminal of stdin in cbreak mode (termios(3)), in which Ctrl-C still interrupts. Used as a context."""

    def __enter__(self) -> Self:
        """Change the mode, if stdin is a terminal."""
        self._terminal = sys.stdin.fileno() if sys.stdin.isatty() else None
        if self._terminal is not None:
            self._before = termios.tcgetattr(self._terminal)
            tty.setcbreak(self._terminal)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        """Restore the mode."""
        if self._terminal is not None:
            termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._before)

    def wait(self, other: int, timeout_s: float) -> list[str]:
        """Wait for keys, or until the descriptor `other` can be read; return the keys."""
        files = [other] if self._terminal is None else [other, self._terminal]
        ready, _, _ = select.select(files, [], [], max(0.0, timeout_s))
        if self._terminal is None or self._terminal not in ready:
            return []
        sent = os.read(self._terminal, 1024)
        if not sent:  # the terminal is gone
            raise KeyboardInterrupt
        return keys(sent.decode(errors="replace"))
