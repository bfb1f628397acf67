"""The tables of `mlxq top`: figures are whole or not there, in whatever width. A column gives way before it is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.text import Text

    Cell = Text | str

GAP = 2
"""Characters between two columns."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    head: str
    rank: int
    """Which column gives way first where there is no room: that of the highest rank; 0 never does."""
    justify: Literal["left", "right"] = "right"
    least: int | None = None
    """Characters to which it may be cut; None for figures, which may not."""


def fitting(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[int]:
    """Return the places of the columns that there is room for. `widths`, `room`: in characters."""
    visible = sorted(range(len(columns)), key=lambda index: columns[index].rank)
    while (
        columns[visible[-1]].rank
        and _needed([columns[index] for index in visible], [widths[index] for index in visible]) > room
    ):
        visible.pop()
    return sorted(visible)


def _needed(columns: Sequence[Column], widths: Sequence[int]) -> int:
    """Return the characters that columns take at least."""
    return sum(_least(column, width) + GAP for column, width in zip(columns, widths, strict=True)) - GAP


def _least(column: Column, width: int) -> int:
    return width if column.least is None else min(width, column.least)


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[Cell]], room: int, marked: int | None = None
) -> list[Text]:
    """Return rows under heads, a line each, in `room` characters; the row `marked` is reversed over its whole width.

    Without rows there is no line.
    """
    if not rows:
        return []
    widths = [max(map(_length, [column.head, *cells])) for column, cells in zip(columns, _turned(rows), strict=True)]
    visible = fitting(columns, widths, room)
    shown = _shares([columns[index] for index in visible], [widths[index] for index in visible], room)
    lines = [_line([row[index] for index in visible], shown) for row in ([column.head for column in columns], *rows)]
    lines[0].stylize("bright_black")
    if marked is not None:
        lines[marked + 1].pad_right(max(0, room - lines[marked + 1].cell_len))
        lines[marked + 1].stylize("reverse")
    return lines


def _shares(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[tuple[Column, int]]:
    """Return the columns with their widths: what is left of the room goes to those that may be cut, from the left."""
    slack, shares = max(0, room - _needed(columns, widths)), list[tuple[Column, int]]()
    for column, whole in zip(columns, widths, strict=True):
        least = _least(column, whole)
        shares.append((column, least + min(whole - least, slack)))
        slack -= shares[-1][1] - least
    return shares


def _line(cells: Sequence[Cell], shown: Sequence[tuple[Column, int]]) -> Text:
    from rich.text import Text

    line = Text(no_wrap=True, overflow="ellipsis")
    for cell, (column, width) in zip(cells, shown, strict=True):
        text = Text(cell) if isinstance(cell, str) else cell.copy()
        text.truncate(width, overflow="ellipsis")
        text.align(column.justify, width)
        line.append_text(text).append(" " * GAP)
    line.rstrip()
    return line


def _turned(rows: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    return [list(cells) for cells in zip(*rows, strict=True)]


def _length(cell: Cell) -> int:
    from rich.cells import cell_len

    return cell_len(cell) if isinstance(cell, str) else cell.cell_len
