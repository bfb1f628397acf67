"""The end of a batch: its result files get their rows, its lines are forgotten."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from state.batches import batches, lines, stored_files
from state.batches.batches import Batch, BatchStatus
from state.batches.stored_files import KEEP_S, StoredFile
from state.db import Database


def finish(db: Database, batch: Batch, status: BatchStatus, errors: Sequence[Mapping[str, Any]] | None = None) -> None:
    """End a batch; again is harmless. `errors`: why it failed. Raises OSError, StateUnavailable."""
    new = [
        _stored(db, batch, name, suffix)
        for name, size, suffix in (
            (batch.output_file, batch.output_bytes, "output"),
            (batch.error_file, batch.error_bytes, "errors"),
        )
        if name and (size or not _discard(db, name))
    ]
    with db.transaction():
        reason = {} if errors is None else {"errors": json.dumps(list(errors))}
        if not batches.advance(db, batch, status, **reason):
            return
        for file in new:
            stored_files.insert(db, file)
        lines.clear(db, batch)


def _discard(db: Database, name: str) -> bool:
    """Delete a result file without a line in it."""
    stored_files.path(db.home, name).unlink(missing_ok=True)
    return True


def _stored(db: Database, batch: Batch, name: str, suffix: str) -> StoredFile:
    path, now = stored_files.path(db.home, name), db.now()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    purpose = "message_batch" if batch.dialect == "anthropic" else "batch_output"
    filename = f"{batch.id}_{suffix}.jsonl"
    return StoredFile(name, batch.owner, purpose, filename, path.stat().st_size, digest, now, now + KEEP_S)
