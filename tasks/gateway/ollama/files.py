"""What `pull` and `delete` of Ollama's API come to: jobs, for keys that may change what is on the disk."""

from __future__ import annotations

from typing import Any

from catalog.problems import UnknownModel
from state import on_demand, weights
from state.db import Database
from state.errors import Busy
from state.job import Job, JobState, NewJob
from state.keys import Key
from tasks import recommend
from tasks.gateway.admission.api_keys import MASTER_NAME
from tasks.gateway.errors import Refusal
from tasks.kinds import new


def not_allowed(key: Key, name: str, *, deletes: bool) -> Refusal | None:
    """Return the refusal of a key that may not change what is on the disk."""
    if key.name == MASTER_NAME or key.manage:
        return None
    command = f"mlxq {'rm' if deletes else 'pull'} {name[:100]}"
    message = f"The key {key.name} may not download or delete models. On this machine: {command}"
    return Refusal(403, message, "not_allowed")


def download(db: Database, name: str) -> NewJob | Refusal:
    """Return the job that downloads a model of the catalog, or a repository on the Hub: no folder, no other site."""
    try:
        source = recommend.source_named(db.home, name)
    except UnknownModel:
        return unknown(name)
    return new("pull", {"source": source, "revision": None, "force": False, "code": False})


def removal(db: Database, name: str) -> NewJob | Refusal:
    """Return the job that deletes the files of a model that the list has; it fails where they are served."""
    if entry := on_demand.model(db, name):
        return new("remove_weights", {"folder": entry.engine.weights, "force": False})
    wanted = recommend.sources_named(db.home, name)
    row = next((row for row in weights.listing(db) if row.source in wanted), None)
    if row is None:
        return unknown(name)
    return new("remove_weights", {"folder": row.folder, "force": False})


def unknown(name: str) -> Refusal:
    """Return the refusal of a name that no model has."""
    return Refusal(404, f"The model {name[:100]!r} was not found.", "model_not_found", "model")


def progress(row: Job) -> dict[str, Any]:
    """Return the line of a stream that says how far a job is."""
    line: dict[str, Any] = {"status": row.phase or "waiting"}
    if row.progress.get("unit") == "bytes" and row.progress.get("total"):
        digest = {"digest": f"job:{row.id}"}
        line |= digest | {"total": row.progress["total"], "completed": row.progress.get("done", 0)}
    return line


def ending(row: Job) -> dict[str, Any]:
    """Return the last line: Ollama's word for success, or the error."""
    if row.state is JobState.SUCCEEDED:
        return {"status": "success"}
    return {"error": row.error or f"job {row.id} was {row.state}"}


def failure(row: Job) -> Refusal | None:
    """Return the refusal that a job which failed comes to."""
    if row.state is JobState.SUCCEEDED:
        return None
    return Refusal(409 if row.error_code == Busy.code else 500, ending(row)["error"], "job_failed")
