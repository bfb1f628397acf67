"""OpenAI's Files and Batch APIs over state.db."""

from __future__ import annotations

from state.batches import batches, stored_files
from state.batches.batches import Batch, BatchDialect, BatchRequest, BatchStatus
from state.db import Database
from tasks.batches import control
from tasks.gateway.batches import shapes
from tasks.gateway.batches.calls import BatchCall, Outcome, unknown
from tasks.gateway.batches.requests import CLOUD, NewBatch, page_query
from tasks.gateway.errors import Refusal, invalid

FILES_PAGE = 10_000


def list_files(db: Database, call: BatchCall) -> Outcome:
    """Return a page of the caller's files."""
    query = page_query(call.scope["query_string"], anthropic=False, default=FILES_PAGE, longest=FILES_PAGE)
    if isinstance(query, Refusal):
        return query
    shown = stored_files.listing(
        db,
        call.owner,
        purpose=query.purpose,
        after=query.after,
        limit=query.limit + 1,
        oldest_first=query.oldest_first,
    )
    return shapes.page([shapes.file_object(file) for file in shown[: query.limit]], more=len(shown) > query.limit)


def show_file(db: Database, call: BatchCall) -> Outcome:
    """Return one file."""
    file = stored_files.find(db, call.id, call.owner)
    return unknown("file", call.id) if file is None else shapes.file_object(file)


def file_content(db: Database, call: BatchCall) -> Outcome:
    """Return where the bytes of a file are."""
    file = stored_files.find(db, call.id, call.owner)
    return unknown("file", call.id) if file is None else stored_files.path(db.home, file.id)


def delete_file(db: Database, call: BatchCall) -> Outcome:
    """Delete a file."""
    if not stored_files.delete(db, call.id, call.owner):
        return unknown("file", call.id)
    return {"id": call.id, "object": "file", "deleted": True}


def create(db: Database, owner: str, wanted: NewBatch) -> Outcome:
    """Create a batch over a file of the same owner."""
    file = stored_files.find(db, wanted.input_file_id, owner)
    if file is None:
        return Refusal(404, f"There is no file {wanted.input_file_id[:100]}.", "not_found", "input_file_id")
    if file.purpose != "batch":
        return invalid(f"{file.id} has the purpose {file.purpose}, not batch.", "input_file_id")
    cloud = (wanted.metadata or {}).get(CLOUD)
    if cloud not in {None, "allow"}:
        return invalid(f"`metadata.{CLOUD}` must be allow.", f"metadata.{CLOUD}")
    request = BatchRequest(owner, "openai", wanted.endpoint, file.id, metadata=wanted.metadata, cloud=cloud == "allow")
    return shapes.batch_object(control.create(db, request))


def list_batches(db: Database, call: BatchCall) -> Outcome:
    """Return a page of the caller's batches."""
    query = page_query(call.scope["query_string"], anthropic=False, default=20, longest=100)
    if isinstance(query, Refusal):
        return query
    rows = batches.listing(db, call.owner, "openai", after=query.after, limit=query.limit + 1)
    return shapes.page([shapes.batch_object(row) for row in rows[: query.limit]], more=len(rows) > query.limit)


def show_batch(db: Database, call: BatchCall) -> Outcome:
    """Return one batch."""
    batch = batches.find(db, call.id, call.owner, "openai")
    return unknown("batch", call.id) if batch is None else shapes.batch_object(batch)


def cancel(db: Database, call: BatchCall) -> Outcome:
    """Have a batch stopped."""
    batch = cancelled(db, call, "openai")
    return batch if isinstance(batch, Refusal) else shapes.batch_object(batch)


def cancelled(db: Database, call: BatchCall, dialect: BatchDialect) -> Batch | Refusal:
    """Have a batch stopped; one that is being stopped already, or has been, stays as it is."""
    batch = batches.find(db, call.id, call.owner, dialect)
    if batch is None:
        return unknown("batch", call.id)
    if batch.ended and batch.status is not BatchStatus.CANCELLED:
        return Refusal(409, f"The batch is {batch.status}; it cannot be cancelled.", "batch_ended")
    return control.cancel(db, batch)
