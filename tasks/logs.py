"""Keep the logs, and what the engines keep of old prompts on disk, within the sizes that the user set."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from state import ledger, on_demand, secrets, service, settings, stack
from state.db import Database
from state.errors import EngineFailed, StateUnavailable
from state.paths import Home
from tasks.kinds import new
from tasks.queue import Context, job, tick
from tasks.runtime import runtime
from tasks.supervision import lifecycle, probe
from tasks.system import log_rotation, process, prompt_cache

LOOK_S = 60.0
MB, GB = 10**6, 10**9
WORKER = "worker"
"""The name of the worker's own log."""


@job("rotate")
def rotate_logs(context: Context, name: str | None = None) -> dict[str, Any]:
    """Rotate one log, or all that are too big; hold the prompt caches to their size. Gives bytes moved and freed."""
    keep: int = settings.load(context.home)["log-max-files"]
    moved: dict[str, int] = {}
    for log in [name] if name else too_big(context.home):
        context.check()
        moved[log] = _rotate(context.db, context.home, log, keep)
    freed = sum(prompt_cache.cap(folder, limit) for folder, limit in _caches(context.db, context.home).items())
    return {"rotated": moved, "freed_bytes": freed}


def too_big(home: Home) -> list[str]:
    """Return the names of the logs beyond the setting log-max-size-mb."""
    limit = settings.load(home)["log-max-size-mb"] * MB
    return sorted(log.stem for log in home.logs.glob("*.log") if _size(log) > limit)


def _size(log: Path) -> int:
    """Return its bytes; 0 once it is gone, as the log of a gateway that was tested is before the next test."""
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


def _rotate(db: Database, home: Home, name: str, keep: int) -> int:
    if name == WORKER:
        return log_rotation.rotate(home.log(name), keep, _own_silence)
    row = service.find(db, name)
    identity = lifecycle.running(row) if row else None
    writers = process.members(identity) if identity else []
    return log_rotation.rotate(home.log(name), keep, lambda: log_rotation.held(writers))


@contextmanager
def _own_silence() -> Generator[None]:
    """Keep the threads of this worker from logging."""
    with runtime.logging:
        yield


def _caches(db: Database, home: Home) -> dict[Path, int]:
    """Return each engine's folder of old prompts and the bytes it may hold; an engine that is gone may hold none.

    A quarter more than the engine holds in memory: the tokens and an index lie beside. All together hold what the
    setting cache-max-gb allows; the folders that were written last come first.
    """
    engines = [*stack.engines(db), *(entry.engine for entry in on_demand.models(db))]
    wanted = {engine.name: engine.cache_bytes * 5 // 4 for engine in engines}
    rest, limits = settings.load(home)["cache-max-gb"] * GB, dict[Path, int]()
    for folder in sorted(prompt_cache.folders(home), key=prompt_cache.written_at, reverse=True):
        limits[folder] = min(wanted.get(folder.name, 0), rest)
        rest -= min(prompt_cache.size(folder), limits[folder])
    return limits


@job("prune_cache")
def prune_cache(context: Context) -> dict[str, int]:
    """Have every engine drop its old prompts, in memory and on disk. Returns {"bytes": freed on disk}."""
    key = secrets.read(context.home.secrets).get(secrets.TIER, "")
    for row in service.listing(context.db):
        if row.kind == "engine" and lifecycle.running(row):
            with suppress(EngineFailed):
                probe.purge(row.port, key, release=row.release)
    return {"bytes": sum(prompt_cache.cap(folder, 0) for folder in prompt_cache.folders(context.home))}


@tick("logs", LOOK_S)
def look() -> None:
    """Have the logs rotated when one is too big, or a cache of prompts is."""
    db, home = runtime.database(), runtime.home
    full = any(prompt_cache.size(folder) > limit for folder, limit in _caches(db, home).items())
    if full or too_big(home):
        with suppress(StateUnavailable):  # the disk is full; the next look comes in a minute
            ledger.enqueue(db, new("rotate"), source="watchdog")
