"""Anthropic's Message Batches over state.db."""

from __future__ import annotations

from typing import Any

import orjson

from state.batches import batches, stored_files
from state.batches.batches import BatchRequest
from state.db import Database
from tasks.batches import control
from tasks.gateway.batches import shapes
from tasks.gateway.batches.calls import BatchCall, Outcome, unknown
from tasks.gateway.batches.openai_routes import cancelled
from tasks.gateway.batches.requests import MessageRequest, NewMessageBatch, page_query
from tasks.gateway.errors import Refusal, invalid


def create(db: Database, call: BatchCall, wanted: NewMessageBatch) -> Outcome:
    """Create a batch; its requests become a file with a line each."""
    names = {request.custom_id for request in wanted.requests}
    if len(names) < len(wanted.requests):
        return invalid("Each `custom_id` of a batch must be unique.", "requests")
    lines = (orjson.dumps(_line(request), option=orjson.OPT_APPEND_NEWLINE) for request in wanted.requests)
    file = stored_files.store(db, lines, call.owner, "requests.jsonl", "message_batch")
    request = BatchRequest(call.owner, "anthropic", "/v1/messages", file.id, total=len(wanted.requests))
    batch = control.create(db, request)
    return shapes.message_batch(batch, call.host)


def _line(request: MessageRequest) -> dict[str, Any]:
    return {"custom_id": request.custom_id, "method": "POST", "url": "/v1/messages", "body": request.params}


def list_batches(db: Database, call: BatchCall) -> Outcome:
    """Return a page of the caller's batches."""
    query = page_query(call.scope["query_string"], anthropic=True, default=20)
    if isinstance(query, Refusal):
        return query
    rows = batches.listing(db, call.owner, "anthropic", after=query.after, before=query.before, limit=query.limit + 1)
    more = len(rows) > query.limit
    rows = rows[-query.limit :] if query.before else rows[: query.limit]
    return shapes.page([shapes.message_batch(row, call.host) for row in rows], more=more, anthropic=True)


def show(db: Database, call: BatchCall) -> Outcome:
    """Return one batch."""
    batch = batches.find(db, call.id, call.owner, "anthropic")
    return unknown("batch", call.id) if batch is None else shapes.message_batch(batch, call.host)


def cancel(db: Database, call: BatchCall) -> Outcome:
    """Have a batch stopped."""
    batch = cancelled(db, call, "anthropic")
    return batch if isinstance(batch, Refusal) else shapes.message_batch(batch, call.host)


def results(db: Database, call: BatchCall) -> Outcome:
    """Return where the results of an ended batch are."""
    batch = batches.find(db, call.id, call.owner, "anthropic")
    if batch is None:
        return unknown("batch", call.id)
    file = stored_files.find(db, batch.output_file or "", call.owner) if batch.ended else None
    if file is None:
        return Refusal(404, f"The batch {batch.id} has no results yet, or they have expired.", "not_found")
    return stored_files.path(db.home, file.id)


def delete(db: Database, call: BatchCall) -> Outcome:
    """Delete an ended batch, its requests and its results."""
    batch = batches.find(db, call.id, call.owner, "anthropic")
    if batch is None:
        return unknown("batch", call.id)
    if not batch.ended:
        return invalid(f"The batch {batch.id} has not ended. Cancel it first.", code="batch_not_ended")
    stored_files.delete(db, batch.input_file, call.owner)
    batches.delete(db, batch)
    return {"id": batch.id, "type": "message_batch_deleted"}
