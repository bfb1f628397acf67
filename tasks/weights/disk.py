"""Room for weights: known before the first byte, with all fetches that run counted together."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

from catalog import units
from state.errors import DoesNotFit
from state.files import replace_private
from tasks.system import free_space
from tasks.weights import staging
from tasks.weights.source import FLOOR_BYTES

PROMISE = ".promise"
"""In a staging folder: how many bytes it will hold."""


def require(models: Path, need_bytes: int, *, floor_bytes: int = FLOOR_BYTES) -> None:
    """Make sure `need_bytes` more fit beside what other fetches still have to bring. Raises DoesNotFit with the sum."""
    free = free_space.available(existing(models))
    reserved = promised(models)
    if need_bytes + reserved + floor_bytes <= free:
        return
    short = need_bytes + reserved + floor_bytes - free
    also = f", {units.files(reserved)} for other pulls" if reserved else ""
    raise DoesNotFit(
        f"The download needs {units.files(need_bytes)}{also} and {units.files(floor_bytes)} kept free; "
        f"{models} has {units.files(free)}: {units.files(short)} too little.",
        done="Nothing was fetched.",
        hint="mlxq prune",
    )


def reserve(folder: Path, total_bytes: int, *, floor_bytes: int = FLOOR_BYTES) -> None:
    """Claim room for a staging folder that will hold `total_bytes`, counting what it holds. Raises DoesNotFit.

    One process at a time looks and claims, so that two fetches cannot both take the last gigabytes.
    """
    models = folder.parent
    with (models / staging.LOCKS / "room").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / PROMISE).unlink(missing_ok=True)
        require(models, max(0, total_bytes - staging.used(folder)), floor_bytes=floor_bytes)
        replace_private(folder / PROMISE, json.dumps(total_bytes))


def promised(models: Path) -> int:
    """Return the bytes that running fetches still have to bring; abandoned staging folders do not count."""
    return sum(
        max(0, _total(folder) - staging.used(folder))
        for folder in models.glob("*" + staging.SUFFIX)
        if staging.held(folder.with_name(folder.name.removesuffix(staging.SUFFIX)))
    )


def _total(folder: Path) -> int:
    try:
        return int(json.loads((folder / PROMISE).read_text()))
    except (OSError, ValueError):
        return 0


def existing(folder: Path) -> Path:
    """Return the nearest folder above that exists: the one to be made lies on its disk."""
    return next(path for path in (folder, *folder.parents) if path.exists())
