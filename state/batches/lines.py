"""The lines of a batch: where each is in its file, and whether it has ended. They are deleted when the batch ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from state.batches.batches import Batch
from state.db import Database

PAGE = 200
"""Lines read at once."""


@dataclass(frozen=True)
class BatchLine:
    """One request of a batch."""

    n: int
    """Its number in the file, from 1."""
    custom_id: str
    offset: int
    """Of its first byte in the file."""
    bytes: int


def clear(db: Database, batch: Batch) -> None:
    """Forget all lines of a batch."""
    db.run("DELETE FROM batch_lines WHERE batch = ?", (batch.number,))


def add(db: Database, batch: Batch, new: Sequence[BatchLine]) -> list[BatchLine]:
    """Add lines in one transaction; return those whose custom_id the batch has already."""
    sql = (
        "INSERT INTO batch_lines (batch, n, custom_id, offset, bytes) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (batch, custom_id) DO NOTHING"
    )
    with db.transaction():
        return [
            line for line in new if not db.run(sql, (batch.number, line.n, line.custom_id, line.offset, line.bytes))
        ]


def unanswered(db: Database, batch: Batch, after: int, limit: int = PAGE) -> list[BatchLine]:
    """Return the next lines after number `after` that have not ended."""
    rows = db.rows(
        "SELECT n, custom_id, offset, bytes FROM batch_lines WHERE batch = ? AND NOT ended AND n > ?"
        " ORDER BY n LIMIT ?",
        (batch.number, after, limit),
    )
    return [BatchLine(**dict(row)) for row in rows]


def end(db: Database, batch: Batch, line: BatchLine) -> None:
    """Record that a line has ended; its answer is in the result files."""
    db.run("UPDATE batch_lines SET ended = 1 WHERE batch = ? AND n = ?", (batch.number, line.n))


def count(db: Database, batch: Batch, *, succeeded: int, errored: int, unanswered: int, sizes: tuple[int, int]) -> None:
    """Count lines that ended, and record how much of output and errors is valid, in bytes."""
    db.run(
        "UPDATE batches SET succeeded = succeeded + ?, errored = errored + ?, unanswered = unanswered + ?,"
        " output_bytes = ?, error_bytes = ? WHERE number = ?",
        (succeeded, errored, unanswered, *sizes, batch.number),
    )
