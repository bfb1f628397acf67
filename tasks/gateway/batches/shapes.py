"""Files and batches as OpenAI's and Anthropic's references show them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from state.batches.batches import Batch, BatchStatus
from state.batches.stored_files import StoredFile

STEPS = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


def file_object(file: StoredFile) -> dict[str, Any]:
    """Return OpenAI's file object."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        "expires_at": int(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }


def page(entries: Sequence[Mapping[str, Any]], *, more: bool, anthropic: bool = False) -> dict[str, Any]:
    """Return one page of a list."""
    first, last = (entries[0]["id"], entries[-1]["id"]) if entries else (None, None)
    shown: dict[str, Any] = {"data": list(entries), "first_id": first, "last_id": last, "has_more": more}
    return shown if anthropic else {"object": "list", **shown}


def batch_object(batch: Batch) -> dict[str, Any]:
    """Return OpenAI's batch object; its result files are named once it has ended."""
    times = {f"{step}_at": getattr(batch, f"{step}_at") for step in STEPS}
    unanswered = batch.unanswered if batch.status is not BatchStatus.CANCELLED else 0
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        "input_file_id": batch.input_file,
        "completion_window": "24h",
        "status": str(batch.status),
        "output_file_id": batch.output_file if batch.ended and batch.output_bytes else None,
        "error_file_id": batch.error_file if batch.ended and batch.error_bytes else None,
        "created_at": int(batch.created_at),
        "expires_at": int(batch.expires_at),
        **{name: None if at is None else int(at) for name, at in times.items()},
        "request_counts": {
            "total": batch.total,
            "completed": batch.succeeded,
            "failed": batch.errored + unanswered,
        },
        "metadata": batch.metadata,
    }


def message_batch(batch: Batch, host: str) -> dict[str, Any]:
    """Return Anthropic's message batch. Its counts leave `processing` when it ends; `host`: where it was asked for."""
    status = "ended" if batch.ended else "canceling" if batch.status is BatchStatus.CANCELLING else "in_progress"
    results = f"{host}/v1/messages/batches/{batch.id}/results"
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": status,
        "request_counts": _counts(batch),
        "created_at": _text(batch.created_at),
        "expires_at": _text(batch.expires_at),
        "ended_at": _text(batch.ended_at),
        "cancel_initiated_at": _text(batch.cancelling_at),
        "archived_at": None,
        "results_url": results if batch.ended else None,
    }


def _counts(batch: Batch) -> dict[str, int]:
    counts = {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    if not batch.ended:
        return counts | {"processing": batch.total}
    unanswered = {BatchStatus.CANCELLED: "canceled", BatchStatus.EXPIRED: "expired"}.get(batch.status, "errored")
    counts |= {"succeeded": batch.succeeded, "errored": batch.errored}
    counts[unanswered] += batch.unanswered
    return counts


def _text(at: float | None) -> str | None:
    """Return a time as RFC 3339 has it."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
