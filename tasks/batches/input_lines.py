"""Reads the lines of a batch's file, one at a time whatever its size, and says what is wrong with each.

Codes are those that OpenAI's Batch API answers with.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

LARGEST_LINE = 16 * 2**20
"""Bytes of one request: a few pictures."""
LONGEST_ID = 512
PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class InputLine:
    """One line as it is in the file."""

    n: int
    """Its number, from 1."""
    offset: int
    text: bytes | None
    """None for one of more than LARGEST_LINE bytes, which is passed over."""


@dataclass(frozen=True)
class LineFault:
    """Why a line cannot be answered."""

    code: str
    message: str
    line: int | None
    param: str | None = None


def read(file: BinaryIO) -> Generator[InputLine]:
    """Yield the lines that are not blank. Raises OSError."""
    n, offset = 0, 0
    while text := file.readline(LARGEST_LINE + 1):
        n += 1
        size = len(text)
        if size > LARGEST_LINE and not text.endswith(b"\n"):
            size += _rest_of_line(file)
            yield InputLine(n, offset, None)
        elif text.strip():
            yield InputLine(n, offset, text)
        offset += size


def _rest_of_line(file: BinaryIO) -> int:
    """Pass over the rest of a line; return its bytes."""
    size = 0
    while piece := file.readline(PIECE_BYTES):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return size


def request(line: InputLine, endpoint: str) -> dict[str, Any] | LineFault:
    """Return the request in a line, {"custom_id", "method", "url", "body"}, or what is wrong with it."""
    entry = parse(line)
    return entry if isinstance(entry, LineFault) else _fault(entry, endpoint, line.n) or entry


def parse(line: InputLine) -> dict[str, Any] | LineFault:
    """Return the JSON object in a line, or why there is none."""
    if line.text is None:
        message = f"This line has more than {LARGEST_LINE // 2**20} MiB, the most that a request may have."
        return LineFault("line_too_long", message, line.n)
    try:
        parsed: Any = json.loads(line.text)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        return LineFault("invalid_json_line", "This line is not a JSON object.", line.n)
    return cast("dict[str, Any]", parsed)


def _fault(entry: Mapping[str, Any], endpoint: str, n: int) -> LineFault | None:
    custom_id, body = entry.get("custom_id"), entry.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= LONGEST_ID:
        message = f"`custom_id` must be a text of 1 to {LONGEST_ID} characters."
        return LineFault("invalid_custom_id", message, n, "custom_id")
    if entry.get("method", "POST") != "POST":
        return LineFault("invalid_method", "`method` must be POST.", n, "method")
    if entry.get("url") != endpoint:
        message = f"`url` must be the endpoint of the batch, {endpoint}."
        return LineFault("mismatched_endpoint", message, n, "url")
    if not isinstance(body, dict):
        return LineFault("invalid_body", "`body` must be an object.", n, "body")
    if not isinstance(cast("dict[str, Any]", body).get("model"), str):
        return LineFault("missing_required_parameter", "`body.model` must be a text.", n, "body.model")
    return None
