"""Server-sent events: cut from an engine's bytes, read and written."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import orjson

DONE = b"[DONE]"
END = b"\n\n"
COMMENT = b": waiting\n\n"
"""A comment that keeps a connection open; every client skips it."""


async def whole_events(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield runs of whole events, each with its blank line, however the network cut the bytes.

    A rest without a blank line at the end of the stream is no event (HTML standard, 9.2.6) and is dropped.
    """
    rest = b""
    async for chunk in chunks:
        run = rest + chunk if rest else chunk
        if b"\r" in run:  # JSON holds none, so it only ends a line
            run = run.replace(b"\r\n", b"\n")
        if run.endswith(END):
            rest = b""
            yield run
            continue
        cut = run.rfind(END) + len(END)
        if cut >= len(END):
            rest = run[cut:]
            yield run[:cut]
        else:
            rest = run


def split(run: bytes) -> list[bytes]:
    """Return the events of a run, each with its blank line."""
    return [event + END for event in run.split(END) if event]


def data(event: bytes) -> bytes | None:
    """Return an event's payload; None for a comment, such as an engine's heartbeat."""
    if event.startswith(b"data:"):
        return event[5:].strip()
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def encode(payload: Any, name: str = "") -> bytes:
    """Return one event, with its name where the dialect names events."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + orjson.dumps(payload) + END
