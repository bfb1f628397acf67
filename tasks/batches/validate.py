"""Checks a batch's file and notes where its lines are: rows, never the file as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import BinaryIO

from state.batches import batches, lines, stored_files
from state.batches.batches import Batch, BatchStatus
from state.batches.lines import BatchLine
from state.errors import NotFound
from tasks.batches import input_lines
from tasks.batches.gateway_lines import GatewayLines
from tasks.batches.input_lines import InputLine, LineFault
from tasks.queue import Context

AT_ONCE = 500
"""Lines of one transaction."""
MOST_LINES = 100_000
MOST_ERRORS = 100
"""Faults that a batch tells; what has more is not read to its end."""
DELETED = LineFault("file_deleted", "The input file was deleted.", None, "input_file_id")
_NOT_FOUND = 404


class Validation:
    """What is known of a file so far."""

    def __init__(self, context: Context, batch: Batch) -> None:
        self._context = context
        self._batch = batch
        self.model: str | None = None
        """What the lines ask for; one batch asks for one model."""
        self.total = 0
        self.errors: list[LineFault] = []

    def run(self, file: BinaryIO) -> None:
        """Read the file and keep its lines. Raises OSError, and as context.check does."""
        lines.clear(self._context.db, self._batch)
        source = input_lines.read(file)
        while chunk := list(islice(source, AT_ONCE)):
            self._add([line for line in map(self._checked, chunk) if line])
            size = os.fstat(file.fileno()).st_size
            self._context.report("checks the lines", done=file.tell(), total=size, unit="bytes")
            if len(self.errors) >= MOST_ERRORS or self.total > MOST_LINES:
                break
        self.errors += _about_count(self.total, self.errors)

    def _add(self, new: list[BatchLine]) -> None:
        self.total += len(new)
        for line in lines.add(self._context.db, self._batch, new):
            message = f"The custom_id {line.custom_id[:100]!r} is the same as that of another line."
            self.errors.append(LineFault("duplicate_custom_id", message, line.n, "custom_id"))

    def _checked(self, line: InputLine) -> BatchLine | None:
        """Return where a line is, or keep its fault."""
        request = input_lines.request(line, self._batch.endpoint)
        fault = request if isinstance(request, LineFault) else self._other_model(line, request["body"]["model"])
        if fault is not None or isinstance(request, LineFault) or line.text is None:
            self.errors += [fault] if fault else []
            return None
        return BatchLine(line.n, request["custom_id"], line.offset, len(line.text))

    def _other_model(self, line: InputLine, model: str) -> LineFault | None:
        self.model = self.model or model
        if model == self.model or self._batch.tier or self._batch.dialect == "anthropic":
            return None
        message = f"The model {model[:100]!r} is not {self.model[:100]!r} as before; a batch asks for one model."
        return LineFault("mismatched_model", message, line.n, "body.model")


def _about_count(total: int, errors: list[LineFault]) -> Iterator[LineFault]:
    if total > MOST_LINES:
        yield LineFault("too_many_requests", f"The file has more than {MOST_LINES} requests.", None)
    elif not total and not errors:
        yield LineFault("empty_file", "The file has no requests.", None)


def validate(context: Context, batch: Batch, gateway: GatewayLines) -> None:
    """Check a batch's file; the batch is in progress then, or has failed. Raises as context.check does."""
    validation = Validation(context, batch)
    try:
        file = stored_files.get(context.db, batch.input_file, batch.owner)
        with stored_files.path(context.home, file.id).open("rb") as content:
            validation.run(content)
    except (OSError, NotFound):
        validation.errors = [DELETED]
    faults = validation.errors or _unknown_model(batch, validation, gateway)
    with context.db.transaction():
        if faults:
            lines.clear(context.db, batch)
            batches.fail(context.db, batch, [asdict(fault) for fault in faults[:MOST_ERRORS]])
        else:
            batches.advance(context.db, batch, BatchStatus.IN_PROGRESS, total=validation.total)


def _unknown_model(batch: Batch, validation: Validation, gateway: GatewayLines) -> list[LineFault]:
    """Return the fault of a model that the owner cannot ask for. While the gateway does not answer, none is known."""
    model = batch.tier or validation.model or ""
    if batch.dialect == "anthropic" or gateway.model_status(model) != _NOT_FOUND:
        return []
    message = f"There is no model {model[:100]!r} here for this key."
    return [LineFault("model_not_found", message, 1, "body.model")]
