"""Install engines, change which version is used, and take a version back that fails."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from catalog.engines import FALLBACK, entries, entry
from state import event, secrets, service, settings
from state.errors import Busy, EngineFailed, NotFound, UsageProblem
from state.paths import Home
from state.service import ROUTED
from state.stack import Tier
from tasks import kinds, stack_jobs
from tasks.engines import install, installed, model_facts, serving
from tasks.engines.base import Installation, Served
from tasks.plan import health
from tasks.queue import Context, job
from tasks.supervision import lifecycle
from tasks.system import ports
from tasks.system.child import run_child
from tasks.weights import builtin

SMOKE = "engine"
"""Of the process that proves an engine, as a service and as a model; also the name of its log."""
SLOWER = 0.9
"""A new version that reaches less than this share of the old one's speed is not taken."""
ROUNDS = {"runs": 3, "prompt_tokens": 256, "gen_tokens": 48, "concurrency": [1]}
MIB = 2**20


@job("install_engine")
def install_engine(context: Context, engine: str, version: str | None = None, *, force: bool = False) -> dict[str, Any]:
    """Make sure a version of an engine is here and proven; the tiers that it serves best go over to it one by one.

    `force`: make its environment again. What is here already is kept.
    Gives {"engine", "version", "installed", "proof", "tiers"}. Raises NotFound, UsageProblem, Offline, Damaged,
    DoesNotFit, EngineFailed.
    """
    wanted = version or _known(engine).version
    release, fresh = _ensure(context, engine, wanted, force=force)
    if installed.wish(context.db, engine).version is None or wanted == version:
        installed.use(context.db, engine, wanted)
    tiers = _go_over(context, engine, wanted)
    return {"engine": engine, "version": wanted, "installed": fresh, "proof": release.proof, "tiers": tiers}


@job("upgrade_engine")
def upgrade_engine(context: Context, engine: str) -> dict[str, Any]:
    """Install the newest version beside the one in use, time both, and use the new one unless it is slower.

    Gives {"engine", "version", "before", "speeds", "used", "tiers"}; speeds in tokens/s by version. Raises as
    `install_engine` does.
    """
    newest = _known(engine).version
    before = next(
        (installation for installation in installed.used(context.db, context.home) if installation.engine == engine),
        None,
    )
    release, _ = _ensure(context, engine, newest)
    result: dict[str, Any] = {"engine": engine, "version": newest, "before": before.version if before else None}
    if before is None or before.version == newest:
        installed.use(context.db, engine, newest)
        return result | {"speeds": {}, "used": True, "tiers": _go_over(context, engine, newest)}
    speeds = {installation.version: _speed(context, installation) for installation in (before, release.installation)}
    used = speeds[newest] >= SLOWER * speeds[before.version]
    if used:
        installed.use(context.db, engine, newest)
    tiers = _go_over(context, engine, newest) if used else []
    return result | {"speeds": speeds, "used": used, "tiers": tiers}


@job("settle_engine")
def settle_engine(context: Context, engine: str, version: str) -> dict[str, Any]:
    """Look whether the tiers that went over to a version serve; take the version back when one does not.

    Gives {"engine", "version", "failed", "now"}.
    """
    name = f"{engine} {version}"
    rows = service.listing(context.db)
    failed = [row.name for row in rows if row.release == name and row.desired == "up" and row.state not in ROUTED]
    if not failed:
        return {"engine": engine, "version": version, "failed": [], "now": version}
    return _take_back(context, engine, version, f"{' and '.join(failed)} did not come up on it.") | {"failed": failed}


@job("rollback_engine")
def rollback_engine(context: Context, engine: str, version: str | None = None, reason: str = "asked") -> dict[str, Any]:
    """Use the version of an engine that was used before, or without one the engine that is always there.

    `version`: the one that failed; by default the one in use. Gives {"engine", "version", "now"}. Raises NotFound.
    """
    failed = version or installed.wish(context.db, engine).version
    if failed is None:
        raise NotFound(f"No version of {engine} is in use.", hint="mlxq engine list")
    return _take_back(context, engine, failed, reason)


@job("remove_engine")
def remove_engine(context: Context, engine: str, version: str) -> dict[str, Any]:
    """Delete a version of an engine. Gives {"bytes"}. Raises NotFound, Busy while a tier runs on it, UsageProblem."""
    folder = _folder(context.home, engine, version)
    name = f"{engine} {version}"
    running = [row.name for row in service.listing(context.db) if row.release == name and lifecycle.running(row)]
    if running:
        raise Busy(
            f"{name} serves {' and '.join(running)}.",
            hint=f"mlxq config set engine {FALLBACK}",
        )
    freed = install.size(folder)
    (folder / installed.PROOF).unlink(missing_ok=True)  # first, so that a removal cut short leaves no engine
    shutil.rmtree(folder)
    return {"bytes": freed}


def _known(engine: str) -> Any:
    """Return the entry of an engine that can be installed. Raises UsageProblem."""
    installable = [name for name, details in entries().items() if details.environment == "own"]
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


def _ensure(context: Context, engine: str, version: str, *, force: bool = False) -> tuple[installed.Release, bool]:
    """Return a version that is here and proven, and whether it was made for this. Raises as `install_engine` does."""
    _known(engine)
    lock = install.lock(engine, version)
    if not force and (release := _proven(context.home, engine, version)):
        return release, False
    folder = installed.folder(context.home, engine, version)
    installation = Installation(engine, version, str(installed.python(folder)))
    weights = builtin.ensure(
        settings.load(context.home).models(context.home), lambda step: context.report(step["phase"]), context.cancelled
    )
    request = {
        "engine": engine,
        "release": installation.name,
        "folder": str(folder),
        "lock": str(lock),
        "smoke": _smoke(context, installation, weights),
    }
    (folder / installed.PROOF).unlink(missing_ok=True)
    proof = run_child(
        "tasks.engines.install",
        request,
        on_progress=lambda step: context.report(step["phase"]),
        cancelled=context.cancelled,
        timeout_s=context.remaining_s,
    )
    installed.write_proof(folder, {"engine": engine, "version": version, "at": context.db.now(), **proof})
    event.record(context.db, "engine_installed", engine=engine, version=version)
    release = _proven(context.home, engine, version)
    if release is None:
        raise EngineFailed(f"{installation.name} was installed, and its environment is not there.", hint="mlxq doctor")
    return release, True


def _proven(home: Home, engine: str, version: str) -> installed.Release | None:
    wanted = (engine, version)
    releases = (release for release in installed.releases(home) if release.folder and release.whole)
    return next(
        (release for release in releases if (release.installation.engine, release.installation.version) == wanted), None
    )


def _smoke(context: Context, installation: Installation, weights: Path) -> dict[str, Any]:
    """Describe the process that proves an engine, as tasks/engines/benchmark.py starts it."""
    tier = Tier(
        name=SMOKE,
        model="smollm2-135m",
        quant="int4",
        source=builtin.SOURCE,
        port=ports.spare(),
        context=4096,
        memory_bytes=2**30,
        cache_bytes=256 * MIB,
        concurrency=2,
        weights=str(weights),
    )
    key = secrets.ensure(context.home.secrets)[secrets.TIER]
    backend = serving.backend_of(context.db)
    launch = serving.launch_with(
        Served(tier, model_facts.read(weights), str(context.home.root), key, backend), installation
    )
    size = sum(file.stat().st_size for file in weights.glob("*.safetensors"))
    return {
        "argv": launch.argv,
        "environment": launch.environment(0),
        "log": str(context.home.log(SMOKE)),
        "port": tier.port,
        "key": key,
        "name": SMOKE,
        "release": launch.release,
        "start_limit_s": health.start_limit_s(size),
        "tools": False,
        "pid": None,
    }


def _speed(context: Context, installation: Installation) -> float:
    """Return the tokens/s of one answer of the built-in model on an engine. Raises EngineFailed."""
    weights = builtin.folder(settings.load(context.home).models(context.home))
    context.report(f"timing {installation.name}")
    result = run_child(
        "tasks.engines.benchmark",
        ROUNDS | _smoke(context, installation, weights),
        cancelled=context.cancelled,
        timeout_s=context.remaining_s,
    )
    return round(float(result["rounds"][0]["decode_tps"]), 2)


def _go_over(context: Context, engine: str, version: str) -> list[str]:
    """Have the tiers that another engine serves now restarted one after another, and looked at; return them."""
    names = stack_jobs.on_other_engines(context.db, context.home)
    for new in stack_jobs.restarts(context.db, names):
        context.then(new)
    if names:
        context.then(kinds.new("settle_engine", {"engine": engine, "version": version}, after=["configure"]))
    return names


def _take_back(context: Context, engine: str, version: str, reason: str) -> dict[str, Any]:
    """Use what was used before a version that failed, and say so."""
    after = installed.take_back(context.db, engine, version)
    now = after.version or FALLBACK
    event.record(context.db, "engine_taken_back", engine=engine, version=version, now=now, cause=reason)
    names = stack_jobs.on_other_engines(context.db, context.home)
    for new in stack_jobs.restarts(context.db, names):
        context.then(new)
    return {"engine": engine, "version": version, "now": now, "tiers": names}
