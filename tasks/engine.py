"""Install engines, change which version is used, and take a version back that fails."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from catalog import units
from catalog.engines import FALLBACK, EngineEntry, entry
from state import event, files, service, settings
from state.errors import Busy, Damaged, DoesNotFit, EngineFailed, EngineUnproven, NotFound, Offline, UsageProblem
from state.paths import Home
from state.service import ROUTED
from tasks import stack_jobs
from tasks.engines import environments, faults, install, installed, smoke
from tasks.engines.base import Installation
from tasks.plan import bench, notices
from tasks.queue import Context, job, tick
from tasks.runtime import runtime
from tasks.supervision import engine_faults, lifecycle
from tasks.system.child import Later
from tasks.weights import builtin, model_dir

LOOK_S = 300.0
WEIGHTS_S = 1.0
"""When a job looks again whether the built-in model is here, which takes a few seconds from uv's cache."""


@job("install_engine")
def install_engine(context: Context, engine: str, version: str | None = None, *, force: bool = False) -> dict[str, Any]:
    """Make sure a version of an engine is here and proven; the tiers that it serves best change to it one by one.

    `force`: make its environment again; what runs from the old one keeps running. What is here already is kept.
    Where no engine is here it serves as soon as it answers, and `prove_reuse` measures later what it reads again.
    Returns {"engine", "version", "installed", "proof", "tiers"}. Raises NotFound, UsageProblem, Offline, Damaged,
    DoesNotFit, EngineUnproven.
    """
    wanted = version or _known(engine).version
    release, fresh = _ensure(context, engine, wanted, force=force, soon=installed.lacking(context.home) is not None)
    if installed.wish(context.db, engine).version is None or wanted == version:
        installed.use(context.db, engine, wanted)
    if force:
        faults.clear(context.db, engine)
    tiers = _swap(context, engine, wanted)
    return {"engine": engine, "version": wanted, "installed": fresh, "proof": release.proof, "tiers": tiers}


@job("add_engine")
def add_engine(context: Context, engine: str) -> dict[str, Any]:
    """Install the engine that a chosen model needs, before the tiers start; without it they serve all the same.

    Returns {"engine", "version", "installed": whether it can be used now, "why": what was in the way}.
    """
    version = _known(engine).version
    result: dict[str, Any] = {"engine": engine, "version": version, "installed": True, "why": None}
    try:
        _ensure(context, engine, version)
    except (Damaged, DoesNotFit, EngineFailed, NotFound, Offline) as problem:
        return result | {"installed": False, "why": problem.message}
    if installed.wish(context.db, engine).version is None:
        installed.use(context.db, engine, version)
    return result


@job("upgrade_engine")
def upgrade_engine(context: Context, engine: str) -> dict[str, Any]:
    """Install the newest version beside the one in use, time both, and use the new one unless it is slower.

    Returns {"engine", "version", "before", "speeds", "used", "why", "tiers"}; "speeds": version -> {"decode_tps",
    "prompt_tps"}. "why" says what speaks against the new version. Raises as `install_engine` does.
    """
    _known(engine)
    newest = install.versions(context.home.engines, engine)[-1]
    used = installed.used(context.db, context.home)
    before = next((installation for installation in used if installation.engine == engine), None)
    result: dict[str, Any] = {
        "engine": engine,
        "version": newest,
        "before": before.version if before else None,
        "speeds": {},
        "used": False,
        "tiers": [],
    }
    if failure := installed.wish(context.db, engine).bad.get(newest):
        return result | {"why": failure}
    release, _ = _ensure(context, engine, newest)
    if before and before.version != newest:
        result["speeds"] = _speeds(context, [before, release.installation])
        failure = bench.slower(result["speeds"][before.version], result["speeds"][newest])
    if failure:
        installed.take_back(context.db, engine, newest, failure)
        event.record(context.db, "engine_refused", engine=engine, version=newest, cause=failure)
        return result | {"why": failure}
    installed.use(context.db, engine, newest)
    return result | {"used": True, "why": None, "tiers": _swap(context, engine, newest)}


@job("prove_reuse")
def prove_reuse(context: Context, engine: str, version: str) -> dict[str, Any]:
    """Measure how much of a prompt an engine reads again, which was left for later when it was installed.

    Returns {"engine", "version", "reused"}. Raises NotFound, EngineFailed, EngineUnproven where that is too much.
    """
    _folder(context.home, engine, version)
    release = _proven(context.home, engine, version)
    if release is None or release.folder is None or release.proof["reused"] is not None:
        return {"engine": engine, "version": version, "reused": release and release.proof["reused"]}
    lock = install.lock(context.home.engines, engine, version)
    reused = _install(context, release.installation, release.folder, lock, reuse=True, proven=True)["reused"]
    installed.write_proof(release.folder, release.proof | {"reused": reused})
    if reused < install.LEAST_REUSE:
        raise EngineUnproven(
            f"{engine} {version} read {1 - reused:.0%} of a prompt again.",
            done="It stays in use; conversations become slow with their length.",
            hint="mlxq engine list",
        )
    return {"engine": engine, "version": version, "reused": reused}


@job("settle_engine")
def settle_engine(context: Context, engine: str, version: str, tier: str) -> dict[str, Any]:
    """Look whether a tier that was started on a version serves on it; take the version back from all where it does not.

    A tier that serves on another release is left alone: what speaks against this one was found at its start.
    Returns {"engine", "version", "tier", "now", "why"}.
    """
    row = service.find(context.db, tier)
    result = {"engine": engine, "version": version, "tier": tier, "now": version, "why": None}
    if row is None or row.desired == "down" or row.state in ROUTED or row.release != f"{engine} {version}":
        return result
    if version in installed.wish(context.db, engine).bad:
        return result
    cause = (row.cause or "it did not come up").rstrip(".")
    return result | _take_back(context, engine, version, f"{tier} did not serve on it: {cause}")


@job("rollback_engine")
def rollback_engine(context: Context, engine: str, version: str, reason: str = notices.BY_USER) -> dict[str, Any]:
    """Use the version of an engine that was used before `version`, or without one the engine that is always there.

    Returns {"engine", "version", "now", "tiers"}.
    """
    return _take_back(context, engine, version, reason)


@job("remove_engine")
def remove_engine(context: Context, engine: str, version: str) -> dict[str, Any]:
    """Delete a version of an engine. Returns {"bytes"}. Raises NotFound, Busy while a tier runs on it, UsageProblem."""
    folder = _folder(context.home, engine, version)
    name = f"{engine} {version}"
    running = [row.name for row in service.listing(context.db) if row.release == name and lifecycle.running(row)]
    if running:
        raise Busy(f"{name} serves {units.listed(running)}.", hint=_elsewhere(context, engine))
    freed = files.size(folder)
    installed.forget(context.db, engine, version)
    installed.discard(folder)  # before the rest, so that a removal cut short leaves no engine
    shutil.rmtree(folder)
    return {"bytes": freed}


def _elsewhere(context: Context, engine: str) -> str:
    """Return the command after which no tier runs on an engine."""
    names = [usable.engine for usable in installed.used(context.db, context.home) if usable.engine != engine]
    return f"mlxq engine use {names[0]}" if names else "mlxq down"


@tick("check engines", LOOK_S)
def check_engines() -> None:
    """Delete what killed installations left; have a version installed again whose environment is gone, or measured."""
    environments.sweep(runtime.home.engines)
    engine_faults.request_missing(runtime.database(), runtime.home)
    engine_faults.request_reuse(runtime.database(), runtime.home)


def _known(engine: str) -> EngineEntry:
    """Return the entry of an engine that can be installed. Raises UsageProblem."""
    installable = installed.installable()
    if engine not in installable:
        raise UsageProblem(f"{engine} cannot be installed; {', '.join(installable)} can.", hint="mlxq engine list")
    return entry(engine)


def _folder(home: Home, engine: str, version: str) -> Path:
    """Return the folder of a version that is here. Raises NotFound, UsageProblem."""
    _known(engine)
    releases = [
        release for release in installed.releases(home) if release.folder and release.installation.engine == engine
    ]
    folder = next((release.folder for release in releases if release.installation.version == version), None)
    if folder is None:
        versions = ", ".join(release.installation.version for release in releases) or "none"
        raise NotFound(f"{engine} {version} is not installed; {versions} is.", hint="mlxq engine list")
    return folder


def _ensure(
    context: Context, engine: str, version: str, *, force: bool = False, soon: bool = False
) -> tuple[installed.Release, bool]:
    """Return a version that is here and proven, and whether it was made for this. Raises as `install_engine` does.

    `soon`: what it reads of a prompt again is left to be measured later.
    """
    _known(engine)
    lock = install.lock(context.home.engines, engine, version)
    if not force and (release := _proven(context.home, engine, version)):
        return release, False
    folder = installed.folder(context.home, engine, version)
    staging = environments.StagedEnvironment(folder).folder
    installation = Installation(engine, version, str(installed.python(staging)))
    began = time.monotonic()
    try:
        _install(context, installation, folder, lock, reuse=not soon)
    except EngineUnproven as problem:
        event.record(context.db, "engine_refused", engine=engine, version=version, cause=problem.message)
        raise
    event.record(context.db, "engine_installed", engine=engine, version=version, s=round(time.monotonic() - began, 1))
    release = _proven(context.home, engine, version)
    if release is None:
        raise EngineFailed(f"{installation.name} was installed, and its environment is not there.", hint="mlxq doctor")
    return release, True


def _install(
    context: Context, installation: Installation, folder: Path, lock: Path, *, reuse: bool, proven: bool = False
) -> dict[str, Any]:
    """Have the child of tasks/engines/install.py make a version and prove it, or only prove it."""
    request = {
        "engine": installation.engine,
        "version": installation.version,
        "folder": str(folder),
        "lock": str(lock),
        "smoke": smoke.request(context.db, context.home, installation, _weights(context)),
        "reuse": reuse,
        "proven": proven,
    }
    try:
        return context.run_child("tasks.engines.install", request)
    finally:
        smoke.clean(context.home)


def _weights(context: Context) -> Path:
    """Return the folder of the built-in model, which is fetched first where it is not here.

    Raises Later while another job fetches it, as the pull of a setup does beside the installation of its engine.
    """
    models = settings.load(context.home).models(context.home)
    model_dir.claim(context.db, models)
    try:
        return builtin.ensure(models, lambda step: context.report(step["phase"]), context.cancelled)
    except Busy as busy:
        raise Later(busy.message, WEIGHTS_S) from busy


def _proven(home: Home, engine: str, version: str) -> installed.Release | None:
    wanted = (engine, version)
    releases = (release for release in installed.releases(home) if release.folder and release.whole)
    return next(
        (release for release in releases if (release.installation.engine, release.installation.version) == wanted), None
    )


def _speeds(context: Context, installations: list[Installation]) -> dict[str, dict[str, float]]:
    """Return the speeds of the built-in model on versions of an engine, asked in turn. Raises EngineFailed."""
    weights = _weights(context)
    request = {
        "sides": {
            installation.version: smoke.request(
                context.db, context.home, installation, weights, name=f"engine-{number}"
            )
            for number, installation in enumerate(installations)
        }
    }
    return context.run_child("tasks.engines.compare", request)


def _swap(context: Context, engine: str, version: str) -> list[str]:
    """Have the tiers that another release serves now restarted one after another, each looked at; return them."""
    names = stack_jobs.on_other_engines(context.db, context.home)
    for new in stack_jobs.swaps(context.db, names, engine, version):
        context.then(new)
    return names


def _take_back(context: Context, engine: str, version: str, reason: str) -> dict[str, Any]:
    """Use what was used before a version that failed."""
    after = installed.take_back(context.db, engine, version, reason)
    now = f"{engine} {after.version}" if after.version else FALLBACK
    event.record(context.db, "engine_taken_back", engine=engine, version=version, now=now, cause=reason)
    names = stack_jobs.on_other_engines(context.db, context.home)
    for new in stack_jobs.restarts(context.db, names):
        context.then(new)
    return {"engine": engine, "version": version, "now": now, "why": reason, "tiers": names}
