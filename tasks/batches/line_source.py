"""The lines of a batch that have no answer yet, in order, read from its file one at a time."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, BinaryIO, Self

import orjson

from state.batches import lines, stored_files
from state.batches.batches import Batch
from state.batches.lines import BatchLine
from state.db import Database


class LineSource:
    """Hands out each line once. A file that was deleted meanwhile is read on only while it is open."""

    def __init__(self, db: Database, batch: Batch) -> None:
        self._db = db
        self._batch = batch
        self._last = 0
        self._page: list[BatchLine] = []
        self._file: BinaryIO | None = None
        self.model = ""
        """What the latest line asks for."""

    def __enter__(self) -> Self:
        try:
            self._file = stored_files.path(self._db.home, self._batch.input_file).open("rb")
        except FileNotFoundError:
            self._file = None
        for line in lines.unanswered(self._db, self._batch, 0, 1):
            self.body(line)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def next(self) -> BatchLine | None:
        """Return the next line, or None at the end."""
        if not self._page:
            self._page = lines.unanswered(self._db, self._batch, self._last)[::-1]
        if not self._page:
            return None
        line = self._page.pop()
        self._last = line.n
        return line

    def body(self, line: BatchLine) -> bytes | None:
        """Return a line's request, for the batch's tier where it has one; None where its file was deleted."""
        if self._file is None:
            return None
        text = os.pread(self._file.fileno(), line.bytes, line.offset)
        try:
            body: dict[str, Any] = orjson.loads(text)["body"]
        except (orjson.JSONDecodeError, KeyError, TypeError):  # another file is in its place
            return None
        if self._batch.tier:
            body["model"] = self._batch.tier
        self.model = str(body.get("model", ""))
        return orjson.dumps(body)
