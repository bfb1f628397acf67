"""Markdown on a terminal while it arrives: finished blocks are printed once, the one that grows is drawn again."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

from mlxq.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

FENCE = re.compile(r"^ {0,3}(?P<mark>`{3,}|~{3,})(?P<info>.*)$")
LEAST_S = 0.05
"""Seconds between two drawings: an engine makes tokens faster than a terminal needs them."""


def finished(text: str) -> int:
    """Return how many characters of the text are blocks that can grow no more: those before the last blank line.

    A blank line ends no fenced block, and a line that is not ended may still become anything.
    """
    end = position = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        position += len(line)
        mark = FENCE.match(line.rstrip("\n"))
        if fence:
            if mark and mark["mark"].startswith(fence) and not mark["info"].strip():
                fence = ""
        elif mark:
            fence = mark["mark"]
        elif not line.strip() and line.endswith("\n"):
            end = position
    return end


class MarkdownStream:
    """Draws one answer. Used as a context; what was drawn when it ends, or is interrupted, stays on the screen."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._pending = ""
        self._note = ""
        self._drawn_at = 0.0

    def __enter__(self) -> Self:
        """Begin."""
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        """Print the rest."""
        self._live.update("", refresh=True)
        self._live.stop()
        if self._pending.strip():
            self._console.print(_markdown(self._pending))

    def add(self, piece: str) -> None:
        """Draw one more piece of the answer."""
        self._note = ""
        self._pending += printable(piece)
        if end := finished(self._pending):
            block, self._pending = self._pending[:end], self._pending[end:]
            self._live.update("", refresh=True)
            self._console.print(_markdown(block), end="\n\n" if self._pending.strip() else "\n")
        self._draw()

    def note(self, text: str) -> None:
        """Show a line below the answer until more of it arrives: what is waited for."""
        self._note = printable(text)
        self._draw(at_once=True)

    def _draw(self, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._drawn_at >= LEAST_S:
            self._live.update(self._growing(), refresh=True)
            self._drawn_at = time.monotonic()

    def _growing(self) -> RenderableType:
        """Return the block that grows, its end alone where it is higher than the screen, and the note."""
        from rich.console import Group
        from rich.segment import Segment, Segments
        from rich.text import Text

        console = self._console
        lines = console.render_lines(_markdown(self._pending), pad=False) if self._pending.strip() else []
        shown = lines[-max(1, console.height - 3) :]
        segments = [part for line in shown for part in [*line, Segment.line()]]
        note = [Text(self._note, style="bright_black")] if self._note else []
        return Group(Segments(segments), *note)


def _markdown(text: str) -> RenderableType:
    """Return a block drawn as Markdown; a link is shown with its address, and leads nowhere by itself."""
    from rich.markdown import Heading, Markdown
    from rich.text import Text

    class PlainHeading(Heading):
        """A heading at the left; rich draws a box around some and centers the others."""

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
            self.text.justify = "left"
            yield self.text

    class PlainMarkdown(Markdown):
        elements: ClassVar = {**Markdown.elements, "heading_open": PlainHeading}

    return PlainMarkdown(text, hyperlinks=False, code_theme="ansi_dark")
