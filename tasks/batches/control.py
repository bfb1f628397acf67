"""Create and cancel batches: a row and its job in one transaction. The gateway and the command line ask so."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from state import job, ledger
from state.batches import batches, stored_files
from state.batches.batches import Batch, BatchRequest, BatchStatus
from state.batches.stored_files import StoredFile
from state.db import Database, atomic
from state.errors import NotFound, UsageProblem
from state.job import Job
from tasks.batches import input_lines
from tasks.batches.input_lines import LineFault
from tasks.kinds import new

OWNER = "mlxq"
"""The owner of what the command line creates: the master key's name."""
ENDPOINTS = ("/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/completions")
"""What OpenAI's batches may ask for, as far as the gateway has it."""
HELP = "mlxq batch run --help"


@atomic
def create(db: Database, request: BatchRequest) -> Batch:
    """Add a batch over a file that its owner has, enqueue its job, and return it."""
    batch = batches.insert(db, request)
    enqueue(db, batch)
    return batch


def create_from(db: Database, source: Path | BinaryIO, *, tier: str | None = None, cloud: bool = False) -> Batch:
    """Store a file of requests and create a batch of mlxq's own, for the endpoint of its first line.

    Raises NotFound, UsageProblem, DiskFull.
    """
    name = source.name if isinstance(source, Path) else "standard input"
    file = _stored(db, source, name)
    try:
        endpoint = _endpoint(db, file.id, name)
    except UsageProblem:
        stored_files.delete(db, file.id, OWNER)
        raise
    return create(db, BatchRequest(OWNER, "openai", endpoint, file.id, tier=tier, cloud=cloud))


def _stored(db: Database, source: Path | BinaryIO, name: str) -> StoredFile:
    """Store what is to be read. Raises NotFound, UsageProblem, DiskFull."""
    if not isinstance(source, Path):
        return stored_files.store(db, source, OWNER, name)
    try:
        file = source.open("rb")
    except OSError as problem:
        raise NotFound(f"Cannot read {source}: {problem.strerror}.", hint=f"ls -l {source}") from problem
    with file:
        return stored_files.store(db, file, OWNER, name)


def _endpoint(db: Database, file_id: str, name: str) -> str:
    """Return the endpoint that the first line of a file names. Raises UsageProblem."""
    with stored_files.path(db.home, file_id).open("rb") as file:
        first = next(input_lines.read(file), None)
    if first is None:
        raise UsageProblem(f"{name} is empty.", hint=HELP)
    entry = input_lines.parse(first)
    if isinstance(entry, LineFault):
        raise UsageProblem(f"Line {first.n} of {name} is no request. {entry.message}", hint=HELP)
    if (endpoint := entry.get("url")) not in ENDPOINTS:
        raise UsageProblem(
            f"Line {first.n} of {name} is no request: its `url` is none of {', '.join(ENDPOINTS)}.", hint=HELP
        )
    return endpoint


def newest(db: Database) -> list[Batch]:
    """Return the newest batches of all keys."""
    return batches.listing(db, limit=50)


def job_of(db: Database, batch: Batch) -> Job | None:
    """Return the newest job of a batch; None where it was pruned."""
    number = db.value(
        "SELECT max(id) FROM jobs WHERE kind = 'batch' AND json_extract(args, '$.batch') = ?", (batch.id,)
    )
    return job.get(db, number) if number else None


get = batches.get


def enqueue(db: Database, batch: Batch) -> int:
    """Have the job of a batch run, at once where it waits; return its id."""
    return ledger.enqueue(db, new("batch", {"batch": batch.id}))[0]


@atomic
def cancel(db: Database, batch: Batch) -> Batch:
    """Have a batch stopped unless it ends by itself at this moment; return it as it is now."""
    if batches.advance(db, batch, BatchStatus.CANCELLING):
        enqueue(db, batch)
    return batches.get(db, batch.id)
