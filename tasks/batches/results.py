"""The result files of a batch: lines are appended, then counted in the transaction that ends them.

The row says how much of each file is valid. What a process that died wrote behind that is cut off before the next line
is written, so that every custom_id is in the results once.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

from state import files
from state.batches import lines, stored_files
from state.batches.batches import Batch
from state.batches.lines import BatchLine
from state.db import Database
from state.errors import Damaged
from state.paths import Home
from tasks.batches.gateway_lines import LineAnswer

_OK = 200


@dataclass(frozen=True)
class LineResult:
    """How a line ended."""

    line: BatchLine
    answer: LineAnswer | None
    """None where there is none."""
    code: str = ""
    """Why not: batch_expired, batch_cancelled, or another code of an error."""
    message: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether the line has its answer."""
        return self.answer is not None and self.answer.status == _OK


class ResultFiles:
    """Output and errors of one batch, open for appending."""

    def __init__(self, db: Database, batch: Batch, fence: Callable[[], object] = lambda: None) -> None:
        """Open both and cut off what no row knows. Raises OSError, and Damaged where valid lines are gone.

        `fence` raises where another worker has the job of the batch now.
        """
        assert batch.output_file
        assert batch.error_file
        self._db = db
        self._batch = batch
        self._fence = fence
        self._sizes = [batch.output_bytes, batch.error_bytes]
        with ExitStack() as opened:
            self._files = [
                opened.enter_context(_opened(db.home, name, size))
                for name, size in zip((batch.output_file, batch.error_file), self._sizes, strict=True)
            ]
            self._close = opened.pop_all().close

    def close(self) -> None:
        """Close both."""
        self._close()

    def write(self, results: Sequence[LineResult]) -> None:
        """Add lines that have ended. Raises OSError, StateUnavailable: none of them has ended then; and Fenced."""
        sizes = list(self._sizes)
        for result in results:
            text = _encoded(_shape(self._batch, result))
            at = 0 if result.succeeded or self._batch.dialect == "anthropic" else 1
            _write(self._files[at], text, sizes[at])
            sizes[at] += len(text)
        for file, before, after in zip(self._files, self._sizes, sizes, strict=True):
            if after > before:
                files.sync(file.fileno())
        self._end(results, (sizes[0], sizes[1]))
        self._sizes = sizes

    def _end(self, results: Sequence[LineResult], sizes: tuple[int, int]) -> None:
        """Record the lines as ended, unless another worker has the job now."""
        db = self._db
        with db.transaction():
            self._fence()
            for result in results:
                lines.end(db, self._batch, result.line)
            succeeded = sum(result.succeeded for result in results)
            unanswered = sum(result.code in NOT_ANSWERED for result in results)
            errored = len(results) - succeeded - unanswered
            lines.count(db, self._batch, succeeded=succeeded, errored=errored, unanswered=unanswered, sizes=sizes)


NOT_ANSWERED = frozenset({"batch_expired", "batch_cancelled"})
"""Codes of lines that ended with their batch."""


def _opened(home: Home, name: str, size: int) -> BinaryIO:
    path = stored_files.path(home, name)
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
    if path.stat().st_size < size:
        file.close()
        raise Damaged(f"{path} is shorter than the answers that were written to it.", hint=f"ls -l {path}")
    file.truncate(size)
    return file


LINE_ENDS = {"\x85": b"\\u0085", "\u2028": b"\\u2028", "\u2029": b"\\u2029"}
"""Characters that JSON may hold as they are, and at which str.splitlines() would break a line."""


def _encoded(shape: dict[str, Any]) -> bytes:
    """Return one line of JSON, whichever way it is split from the next."""
    text = orjson.dumps(shape, option=orjson.OPT_APPEND_NEWLINE)
    for character, escaped in LINE_ENDS.items():
        text = text.replace(character.encode(), escaped)
    return text


def _write(file: BinaryIO, text: bytes, offset: int) -> None:
    """Write all of a line; a full disk may take a part of it first. Raises OSError."""
    while text:
        count = os.pwrite(file.fileno(), text, offset)
        text, offset = text[count:], offset + count


def _shape(batch: Batch, result: LineResult) -> dict[str, Any]:
    """Return a line of the results as the reference of the batch's dialect has it."""
    if batch.dialect == "anthropic":
        return {"custom_id": result.line.custom_id, "result": _anthropic(result)}
    answer = result.answer
    response = answer and {
        "status_code": answer.status,
        "request_id": answer.request_id,
        "body": _body(answer),
    }
    error = None if answer else {"code": result.code, "message": result.message}
    return {
        "id": f"batch_req_{secrets.token_hex(12)}",
        "custom_id": result.line.custom_id,
        "response": response,
        "error": error,
    }


def _anthropic(result: LineResult) -> dict[str, Any]:
    if result.answer is None:
        kind = {"batch_expired": "expired", "batch_cancelled": "canceled"}.get(result.code)
        error = {"type": "error", "error": {"type": "api_error", "message": result.message}}
        return {"type": kind} if kind else {"type": "errored", "error": error}
    if result.succeeded:
        return {"type": "succeeded", "message": _body(result.answer)}
    return {"type": "errored", "error": _body(result.answer)}


def _body(answer: LineAnswer) -> Any:
    """Return an answer's body; what is no JSON is its own error."""
    try:
        return orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        return {"error": {"message": "The answer is not valid JSON.", "type": "api_error", "param": None, "code": None}}
