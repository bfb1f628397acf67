"""Reads a request's body, within limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.types import Receive

from tasks.gateway.errors import Refusal

READ_S = 30.0
LARGEST_BYTES = 32 * 2**20


class Gone(Exception):
    """The client left before its request was whole."""


async def read(receive: Receive, headers: Iterable[tuple[bytes, bytes]], limit: int) -> bytes | Refusal:
    """Return the body, or why it is not read to its end: 413 beyond `limit` bytes, 408 after READ_S. Raises Gone."""
    announced = next((value for name, value in headers if name == b"content-length"), b"")
    if announced.isdigit() and int(announced) > limit:
        return _too_large(limit)
    try:
        async with asyncio.timeout(READ_S):
            return await _read(receive, limit)
    except TimeoutError:
        return Refusal(408, f"The request was not whole within {READ_S:.0f} s.", "request_timeout")


async def _read(receive: Receive, limit: int) -> bytes | Refusal:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            return _too_large(limit)
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _too_large(limit: int) -> Refusal:
    return Refusal(
        413, f"The request has more than {limit} bytes, the most that this gateway takes.", "request_too_large"
    )
