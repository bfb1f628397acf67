"""Batches: what was asked, how far it is, and the steps between their states. One job answers a batch."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from state.batches import stored_files
from state.classes import DocumentedEnum
from state.db import Database, Row, json_mapping, known_columns
from state.errors import NotFound

BatchDialect = Literal["openai", "anthropic"]
WINDOW_S = 86400.0
"""The one completion window that OpenAI's reference has, 24h; Anthropic's batches expire after 24 hours too."""
PREFIXES: Mapping[BatchDialect, str] = {"openai": "batch_", "anthropic": "msgbatch_"}


class BatchStatus(DocumentedEnum):
    """Where a batch stands, in OpenAI's words."""

    VALIDATING = "validating", "its lines are being checked, or wait for that"
    IN_PROGRESS = "in_progress", "its lines are being answered"
    FINALIZING = "finalizing", "every line has its answer; the files are being completed"
    COMPLETED = "completed", "done; each line is in the output or in the errors"
    FAILED = "failed", "its file is no valid batch, or it could not be answered to its end"
    EXPIRED = "expired", "not done within its completion window; what was answered is in the output"
    CANCELLING = "cancelling", "being stopped on request"
    CANCELLED = "cancelled", "stopped on request; what was answered is in the output"


FINAL = frozenset({BatchStatus.COMPLETED, BatchStatus.FAILED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})
BEFORE: Mapping[BatchStatus, Collection[BatchStatus]] = {
    BatchStatus.IN_PROGRESS: {BatchStatus.VALIDATING},
    BatchStatus.FINALIZING: {BatchStatus.IN_PROGRESS},
    BatchStatus.COMPLETED: {BatchStatus.FINALIZING},
    BatchStatus.FAILED: {BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING},
    BatchStatus.EXPIRED: {BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS},
    BatchStatus.CANCELLING: {BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS},
    BatchStatus.CANCELLED: {BatchStatus.CANCELLING},
}
"""Status -> those that lead to it."""


@dataclass(frozen=True)
class Batch:
    """One batch."""

    number: int
    id: str
    owner: str
    """The name of the key that created it."""
    dialect: BatchDialect
    endpoint: str
    """The path that its lines are posted to, such as /v1/chat/completions."""
    input_file: str
    status: BatchStatus
    tier: str | None
    """The tier that answers instead of the lines' own models."""
    cloud: bool
    """Whether its lines may be answered by the cloud where no tier can."""
    metadata: dict[str, Any] | None
    created_at: float
    expires_at: float
    in_progress_at: float | None
    finalizing_at: float | None
    completed_at: float | None
    failed_at: float | None
    expired_at: float | None
    cancelling_at: float | None
    cancelled_at: float | None
    total: int
    """Lines."""
    succeeded: int
    errored: int
    """Lines that are in the errors with the reason for which they have no answer."""
    unanswered: int
    """Lines that were not answered before the batch was cancelled or expired."""
    output_bytes: int
    """What is valid of the output; anything behind it was written by a process that died."""
    error_bytes: int
    output_file: str | None
    """Ids of the result files; they can be downloaded once the batch has ended."""
    error_file: str | None
    errors: list[dict[str, Any]]
    """Why its file is no valid batch: {"code", "message", "param", "line"}."""

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.status in FINAL

    @property
    def ended_at(self) -> float | None:
        """When it ended, in unix seconds."""
        return self.completed_at or self.failed_at or self.expired_at or self.cancelled_at


@dataclass(frozen=True)
class BatchRequest:
    """What a batch is asked for with."""

    owner: str
    dialect: BatchDialect
    endpoint: str
    input_file: str
    """The id of a file that its owner has."""
    metadata: Mapping[str, Any] | None = None
    tier: str | None = None
    """Answers whatever model the lines name."""
    cloud: bool = False
    """Whether the cloud may answer."""
    total: int = 0
    """Lines, where they are counted already."""


def insert(db: Database, request: BatchRequest) -> Batch:
    """Add a batch over a file that its owner has, and return it; its job belongs into the same transaction."""
    now = db.now()
    batch_id = stored_files.new_id(PREFIXES[request.dialect])
    values = vars(request) | {
        "id": batch_id,
        "status": BatchStatus.VALIDATING,
        "cloud": int(request.cloud),
        "metadata": None if request.metadata is None else json.dumps(dict(request.metadata)),
        "created_at": now,
        "expires_at": now + WINDOW_S,
        "output_file": stored_files.new_id("file-"),
        "error_file": stored_files.new_id("file-"),
    }
    db.insert("batches", values)
    return get(db, batch_id)


def find(db: Database, batch_id: str, owner: str | None = None, dialect: BatchDialect | None = None) -> Batch | None:
    """Return a batch of an owner and a dialect, of any for None; None where there is none of this id."""
    row = db.row(
        "SELECT * FROM batches WHERE id = :id AND (:owner IS NULL OR owner = :owner)"
        " AND (:dialect IS NULL OR dialect = :dialect)",
        {"id": batch_id, "owner": owner, "dialect": dialect},
    )
    return None if row is None else _batch(row)


def get(db: Database, batch_id: str) -> Batch:
    """Return a batch. Raises NotFound."""
    batch = find(db, batch_id)
    if batch is None:
        raise NotFound(f"There is no batch {batch_id}.", hint="mlxq batch list")
    return batch


def listing(
    db: Database,
    owner: str | None = None,
    dialect: BatchDialect | None = None,
    *,
    after: str = "",
    before: str = "",
    limit: int = 20,
) -> list[Batch]:
    """Return batches, the newest first: those that follow the batch `after`, or the nearest ones ahead of `before`."""
    order = "ASC" if before else "DESC"
    rows = db.rows(
        "SELECT * FROM batches WHERE (:owner IS NULL OR owner = :owner) AND (:dialect IS NULL OR dialect = :dialect)"  # noqa: S608 (the words above)
        " AND (:after = '' OR number < (SELECT number FROM batches WHERE id = :after))"
        " AND (:before = '' OR number > (SELECT number FROM batches WHERE id = :before))"
        f" ORDER BY number {order} LIMIT :limit",
        {"owner": owner, "dialect": dialect, "after": after, "before": before, "limit": limit},
    )
    newest_first = rows[::-1] if before else rows
    return [_batch(row) for row in newest_first]


def unfinished(db: Database) -> list[Batch]:
    """Return the batches that have not ended."""
    marks = ", ".join("?" for _ in FINAL)
    rows = db.rows(f"SELECT * FROM batches WHERE status NOT IN ({marks}) ORDER BY number", sorted(FINAL))  # noqa: S608 (the marks above)
    return [_batch(row) for row in rows]


def advance(db: Database, batch: Batch, status: BatchStatus, **columns: Any) -> bool:
    """Move a batch on to a status, with these columns; False where another step was quicker."""
    values = {f"{status}_at": db.now(), **columns}
    names = ", ".join(f"{name} = :{name}" for name in values)
    sources = json.dumps(sorted(BEFORE[status]))
    moved = db.run(
        f"UPDATE batches SET status = :status, {names} WHERE number = :number"  # noqa: S608 (our own names)
        " AND status IN (SELECT value FROM json_each(:sources))",
        {**values, "status": status, "number": batch.number, "sources": sources},
    )
    db.announce()
    return moved > 0


def set_total(db: Database, batch: Batch, total: int) -> None:
    """Record how many lines a batch has."""
    db.run("UPDATE batches SET total = ? WHERE number = ?", (total, batch.number))


def fail(db: Database, batch: Batch, errors: Sequence[Mapping[str, Any]], **columns: Any) -> bool:
    """Record why a batch cannot be answered."""
    return advance(db, batch, BatchStatus.FAILED, errors=json.dumps([dict(error) for error in errors]), **columns)


def delete(db: Database, batch: Batch) -> None:
    """Forget an ended batch and delete its result files."""
    with db.transaction():
        for file_id in (batch.output_file, batch.error_file):
            if file_id:
                stored_files.delete(db, file_id, batch.owner)
        db.run("DELETE FROM batches WHERE number = ?", (batch.number,))


def prune(db: Database) -> int:
    """Forget batches that ended 30 days ago; return how many."""
    before = db.now() - stored_files.KEEP_S
    old = map(_batch, db.rows("SELECT * FROM batches WHERE created_at < ?", (before,)))
    expired = [batch for batch in old if (batch.ended_at or before) < before]
    for batch in expired:
        delete(db, batch)
    return len(expired)


def _batch(row: Row) -> Batch:
    values = known_columns(row, Batch)
    values["status"] = BatchStatus(values["status"])
    values["cloud"] = bool(values["cloud"])
    values["metadata"] = None if values["metadata"] is None else json_mapping(values["metadata"])
    values["errors"] = json.loads(values["errors"])
    return Batch(**values)
