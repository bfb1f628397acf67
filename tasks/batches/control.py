"""Create and cancel batches: a row and its job in one transaction. The gateway and the command line ask so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from state import ledger
from state.batches import batches
from state.batches.batches import Batch, BatchDialect, BatchStatus
from state.db import Database, atomic
from tasks.kinds import new


@atomic
def create(
    db: Database,
    owner: str,
    dialect: BatchDialect,
    endpoint: str,
    input_file: str,
    *,
    metadata: Mapping[str, Any] | None = None,
    tier: str | None = None,
    cloud: bool = False,
    total: int = 0,
) -> Batch:
    """Add a batch over a file that its owner has, enqueue its job, and return it."""
    batch = batches.insert(
        db, owner, dialect, endpoint, input_file, metadata=metadata, tier=tier, cloud=cloud, total=total
    )
    enqueue(db, batch)
    return batch


def enqueue(db: Database, batch: Batch) -> int:
    """Have the job of a batch run, at once where it waits; return its id."""
    return ledger.enqueue(db, new("batch", {"batch": batch.id}))[0]


@atomic
def cancel(db: Database, batch: Batch) -> Batch:
    """Have a batch stopped unless it ends by itself at this moment; return it as it is now."""
    if batches.advance(db, batch, BatchStatus.CANCELLING):
        enqueue(db, batch)
    return batches.get(db, batch.id)
