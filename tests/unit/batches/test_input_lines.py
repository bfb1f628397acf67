"""What is wrong with a line is said in OpenAI's codes; a file of any size is read in little memory."""

from __future__ import annotations

import io
import tracemalloc
from typing import Any

import pytest
from support.batching import CHAT, line

from tasks.batches import input_lines
from tasks.batches.input_lines import LARGEST_LINE, InputLine, LineFault


def fault(text: str | bytes) -> str | None:
    encoded = text.encode() if isinstance(text, str) else text
    found = input_lines.request(InputLine(1, 0, encoded), CHAT)
    return found.code if isinstance(found, LineFault) else None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (line("a"), None),
        (line("a", method="POST"), None),
        ("no json", "invalid_json_line"),
        ("[]", "invalid_json_line"),
        (b"\xff\xfe", "invalid_json_line"),
        (b"\x1f\x8b\x08\x00binary", "invalid_json_line"),
        ("[" * 5000, "invalid_json_line"),
        (line(""), "invalid_custom_id"),
        (line("x" * 513), "invalid_custom_id"),
        (line("a", custom_id=7), "invalid_custom_id"),
        (line("a", method="GET"), "invalid_method"),
        (line("a", url="/v1/embeddings"), "mismatched_endpoint"),
        (line("a", url="http://127.0.0.1/v1/chat/completions"), "mismatched_endpoint"),
        (line("a", body=[]), "invalid_body"),
        (line("a", body={}), "missing_required_parameter"),
    ],
)
def test_a_line_is_a_request_or_has_a_code(text: str | bytes, code: str | None) -> None:
    assert fault(text) == code


class Endless(io.RawIOBase):
    """A line of 200 MB and a good one behind it, made as they are read."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._last = b"\n" + line("a").encode()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            piece, self._last = self._last[: len(buffer)], self._last[len(buffer) :]
        else:
            piece = b"x" * min(len(buffer), self._left)
            self._left -= len(piece)
        buffer[: len(piece)] = piece
        return len(piece)


def test_a_line_of_200_mb_is_passed_over_in_little_memory() -> None:
    tracemalloc.start()
    first, second = input_lines.read(io.BufferedReader(Endless(200_000_000), 1 << 20))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (first.text, second.n, second.offset) == (None, 2, 200_000_001)
    assert fault(second.text or b"") is None
    assert peak < 3 * LARGEST_LINE
