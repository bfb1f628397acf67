"""A log as it grows, for the page: the last lines, then each new one, as server-sent events.

Text of a log is text: the colors that programs write are dropped, and every other control character is shown escaped.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncGenerator
from pathlib import Path

from mlxq.terminal import printable
from state.errors import NotFound
from state.paths import Home

LOOK_S = 0.5
"""How often a log is looked at while a reader is there; files have no wake-up that Linux and macOS share."""
FIRST_BYTES = 64 * 1024
MOST_BYTES = 256 * 1024
"""Of one look; what a log grows by beyond it is skipped, and that is said."""
LINE_CHARS = 2000
BEAT_LOOKS = 40
"""A comment is sent after as many looks without news, so that a closed connection is noticed."""
_COLORS = re.compile(r"\x1b\[[0-9;:?]*[ -/]*[@-~]")
"""ECMA-48's control sequences, of which colors are the usual ones."""


def names(home: Home) -> list[str]:
    """Return the names of the logs there are."""
    return sorted(path.stem for path in home.logs.glob("*.log"))


def clean(line: str) -> str:
    """Return a line of a log as text that can be shown anywhere."""
    return printable(_COLORS.sub("", line)[:LINE_CHARS])


class _Reader:
    """Where in a log a reader is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset: int | None = None
        self._rest = b""

    def read(self) -> list[str]:
        """Return the lines that were written since the last call; a log that was rotated is read from its start."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                skipped = self._skip(size)
                file.seek(self._offset or 0)
                return [*skipped, *self._lines(file.read(MOST_BYTES))]
        except OSError:
            return []

    def _skip(self, size: int) -> list[str]:
        """Set where to read on, and say what is left out."""
        if self._offset is None:
            self._offset = max(0, size - FIRST_BYTES)
        elif size < self._offset:
            self._offset, self._rest = 0, b""
        elif size - self._offset > MOST_BYTES:
            skipped = size - self._offset - MOST_BYTES
            self._offset, self._rest = size - MOST_BYTES, b""
            return [f"[{skipped:,} bytes skipped]"]
        return []

    def _lines(self, content: bytes) -> list[str]:
        self._offset = (self._offset or 0) + len(content)
        *whole, rest = (self._rest + content).split(b"\n")
        self._rest = rest[-MOST_BYTES:]
        return [clean(line.decode("utf-8", "replace").rstrip("\r")) for line in whole]


def check(home: Home, name: str) -> str:
    """Return the name of a log that is there. Raises NotFound; a name is never a path."""
    if name not in names(home):
        raise NotFound(f"There is no log {name!r}.", hint="mlxq logs")
    return name


def follow(home: Home, name: str, closed: asyncio.Event) -> AsyncGenerator[bytes]:
    """Return the last lines of a log and then new ones until `closed`, as events. Raises NotFound."""
    return _stream(_Reader(home.log(check(home, name))), closed)


async def _stream(reader: _Reader, closed: asyncio.Event) -> AsyncGenerator[bytes]:
    quiet = 0
    while not closed.is_set():
        lines = await asyncio.to_thread(reader.read)
        quiet = 0 if lines else quiet + 1
        if lines:
            yield f"event: lines\ndata: {json.dumps(lines)}\n\n".encode()
        elif quiet % BEAT_LOOKS == 0:
            yield b": beat\n\n"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await closed.wait()
