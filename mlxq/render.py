"""How things look: tables and times for people, JSON for programs. No queries, no decisions.

Results go to stdout, everything else to stderr. Plain text by hand, because importing rich takes as long as a whole
command may; the live view of jobs, where a user waits anyway, uses it (job_view.py).
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

import click

from state.classes import dataclass
from state.errors import MlxqError

SCHEMA_VERSION = 1
"""Of every JSON document that mlxq prints; grows when a key goes or changes its meaning."""
MINUTE_S = 60
HOUR_S = 3600
DAY_S = 86400
GAP = "  "
NARROWEST = 40
"""Of a last column that is folded into more than two lines; in less room, long cells stand below their rows."""
BELOW = "    "
"""The indent of such cells."""
COLORS: Mapping[str, str] = {
    **dict.fromkeys(("healthy", "succeeded", "running"), "green"),
    **dict.fromkeys(("degraded", "down", "queued", "hung"), "yellow"),
    **dict.fromkeys(("crashed", "failed"), "red"),
    **dict.fromkeys(("stopped", "cancelled", "blocked"), "bright_black"),
}
"""How the words for states are painted, on a terminal that takes colors."""


class Output:
    """What the command line asked of the output."""

    quiet = False
    """Results and errors only."""
    no_color = False


output = Output()


def say(text: str = "") -> None:
    """Print something that is no result, unless --quiet was given."""
    if not output.quiet:
        _echo(text, err=True)


def _echo(text: str, *, err: bool) -> None:
    click.echo(text, err=err, color=forced_color())


def forced_color() -> bool | None:
    """Return True where FORCE_COLOR asks for colors also without a terminal (force-color.org), else None."""
    return True if os.environ.get("FORCE_COLOR") and not refuses_color() else None


def refuses_color() -> bool:
    """Return whether --no-color or NO_COLOR (no-color.org) forbids colors."""
    return output.no_color or bool(os.environ.get("NO_COLOR"))


def data(payload: Mapping[str, Any]) -> None:
    """Print one JSON document for programs."""
    import json

    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **payload}, indent=2, ensure_ascii=False))


def line(payload: Mapping[str, Any]) -> None:
    """Print one JSON document on one line, for programs that follow."""
    import json

    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **payload}, ensure_ascii=False))


def problem(error: MlxqError) -> None:
    """Print an error: what failed, what mlxq did already, what to run next."""
    done = f" {error.done}" if error.done else ""
    _echo(f"{paint('Error:', 'red', sys.stderr)} {error.message}{done}", err=True)
    if error.hint:
        _echo(_next(error.hint), err=True)


def next_step(command: str) -> None:
    """Name the one command to run next."""
    say(_next(command))


def _next(command: str) -> str:
    return f"Next: {paint(command, 'cyan', sys.stderr)}"


def table(
    headers: Sequence[str], rows: Sequence[Sequence[Any]], *, right: Sequence[int] = (), err: bool = False
) -> None:
    """Print rows in columns; columns named in `right` hold numbers. `err`: it is no result, so it goes to stderr.

    On a terminal the last column is folded to the width that is left, or goes below its row; a pipe gets a line a row.
    """
    stream = sys.stderr if err else sys.stdout
    cells = [[_cell(value) for value in row] for row in rows]
    layout = _laid_out([headers, *cells], right, terminal=stream.isatty())
    for row in [layout.heads(headers), *cells]:
        for text in layout.lines(row):
            _echo(_painted(text, row, stream), err=err)


def _cell(value: Any) -> str:
    return "-" if value is None or value == "" else str(value)


@dataclass(frozen=True, eq=False)
class _Layout:
    """Where the columns of a table stand. Widths in characters."""

    widths: Sequence[int]
    right: Sequence[int]
    room: float
    """The width of the last column; no end of it in a pipe."""

    @property
    def below(self) -> bool:
        """Whether a last cell that is longer stands below its row."""
        return self.room < min(NARROWEST, self.widths[-1] / 2)

    def heads(self, headers: Sequence[str]) -> list[str]:
        """Return the headers; the last one has no place where its cells stand below."""
        last = "" if self.below and len(headers[-1]) > self.room else headers[-1]
        return [*headers[:-1], last]

    def lines(self, cells: Sequence[str]) -> list[str]:
        """Lay one row out."""
        padded = [
            cell.rjust(width) if column in self.right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells[:-1], self.widths[:-1], strict=True))
        ]
        before = "".join(cell + GAP for cell in padded)
        if len(cells[-1]) <= self.room:
            return [(before + cells[-1]).rstrip()]
        if self.below:
            return [before.rstrip(), *_folded(cells[-1], BELOW, BELOW)]
        return _folded(cells[-1], before, " " * len(before))


def _laid_out(rows: Sequence[Sequence[str]], right: Sequence[int], *, terminal: bool) -> _Layout:
    """Return each column the width of its longest cell, and the last one what is left of the terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = columns() - sum(widths[:-1]) - len(GAP) * (len(widths) - 1) if terminal else math.inf
    return _Layout(widths, right, room)


def _folded(text: str, first: str, rest: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, columns(), initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)


def prose(text: str, before: str = "", *, err: bool = False) -> None:
    """Print sentences behind `before`, on a terminal folded under their own beginning; `err`: to stderr."""
    import textwrap

    terminal = (sys.stderr if err else sys.stdout).isatty()
    for line in text.splitlines():
        words = line.lstrip()
        head = before or line[: len(line) - len(words)]
        indent = " " * len(click.unstyle(head))
        folded = textwrap.wrap(words, columns() - len(indent), break_on_hyphens=False) if terminal else [words]
        _echo(head + f"\n{indent}".join(folded), err=err)


def _painted(text: str, cells: Sequence[str], stream: IO[str]) -> str:
    """Color the cells that start with a state."""
    for cell in cells:
        color = COLORS.get(cell.partition(",")[0])
        if color:
            text = text.replace(f"{GAP}{cell}", f"{GAP}{paint(cell, color, stream)}", 1)
    return text


def paint(text: str, color: str, stream: IO[str]) -> str:
    """Return the text in a color, where the stream takes colors."""
    return click.style(text, fg=color) if takes_color(stream) else text


def takes_color(stream: IO[str]) -> bool:
    """Return whether colors may go there: NO_COLOR, then FORCE_COLOR, then whether it is a terminal."""
    if refuses_color():
        return False
    return bool(forced_color()) or (stream.isatty() and os.environ.get("TERM") != "dumb")


def columns() -> int:
    """Return the terminal's width in characters; 80 when there is none. As shutil, whose import takes 3 ms."""
    named = os.environ.get("COLUMNS", "")
    if named.isdecimal() and int(named):
        return int(named)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno()).columns or 80  # type: ignore[union-attr]
    except (AttributeError, ValueError, OSError):
        return 80


def span(seconds: float | None) -> str:
    """Return a length of time in at most two units, such as 1h02m."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    if seconds < 10:  # noqa: PLR2004 (only short times need a fraction)
        return f"{max(0.0, seconds):.1f}s"
    if whole < MINUTE_S:
        return f"{whole}s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S}m{whole % MINUTE_S:02}s"
    if whole < DAY_S:
        return f"{whole // HOUR_S}h{whole % HOUR_S // MINUTE_S:02}m"
    return f"{whole // DAY_S}d{whole % DAY_S // HOUR_S:02}h"


def ago(at: float | None) -> str:
    """Return how long ago a time in unix seconds was."""
    return "-" if at is None else f"{span(max(0.0, time.time() - at))} ago"


def clock(at: float) -> str:
    """Return a time in unix seconds as the user's own date and time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
