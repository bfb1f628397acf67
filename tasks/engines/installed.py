"""Which engines are on this machine: one in mlxq's own environment, where there is one, and those below its home.

A checkout has vllm-mlx beside mlxq; mlxq's wheel comes without an engine, and setup installs one. In MLXQ_HOME/engines
a folder `NAME-VERSION` counts when `engine.json` is in it: a version that was never proven is no engine. A hidden
folder is one in the making (tasks/engines/environments.py).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from catalog.engines import FALLBACK, entries
from state import facts
from state.classes import dataclass
from state.db import Database
from state.files import replace_private
from state.paths import Home
from tasks.engines.base import Installation

FACT = "engines"
"""The fact that holds which version of each engine is used: {name: a RequestedEngine}."""
PROOF = "engine.json"


@dataclass(frozen=True)
class Release:
    """One version of an engine that was installed and proven."""

    installation: Installation
    folder: Path | None
    """None for the engine in mlxq's own environment."""
    proof: dict[str, Any]
    """What its smoke test found."""
    whole: bool
    """Whether its interpreter is still there: a Python that was upgraded takes the environment with it."""


def own() -> Installation | None:
    """Return the engine in mlxq's own environment; None where there is none."""
    try:
        return Installation(FALLBACK, version(entries()[FALLBACK].package), sys.executable)
    except PackageNotFoundError:
        return None


def installable() -> list[str]:
    """Return the engines that can be installed: each that is not in mlxq's own environment."""
    bundled = own()
    return [name for name in entries() if bundled is None or name != bundled.engine]


def lacking(home: Home) -> str | None:
    """Return the engine without which no tier can start: the fallback, where no engine is here."""
    return None if any(release.whole for release in releases(home)) else FALLBACK


def fallback(home: Home) -> Installation:
    """Return the engine that serves where no other one does: mlxq's own, or the one that setup installs."""
    release = entries()[FALLBACK].version
    return own() or Installation(FALLBACK, release, str(python(folder(home, FALLBACK, release))))


def mlxq_version() -> str:
    """Return the release of mlxq."""
    return version("mlxq")


def folder(home: Home, name: str, release: str) -> Path:
    """Return where a version of an engine lives."""
    return home.engines / f"{name}-{release}"


def python(environment: Path) -> Path:
    """Return the interpreter of an engine's environment."""
    return environment / "venv" / "bin" / "python"


def releases(home: Home) -> list[Release]:
    """Return every version that was proven: the one in mlxq's own environment first, then the oldest version first."""
    bundled = own()
    proven = [Release(bundled, None, {}, whole=True)] if bundled else []
    if home.engines.is_dir():
        folders = [folder for folder in home.engines.iterdir() if not folder.name.startswith(".")]
        proven += sorted(filter(None, map(_release, folders)), key=lambda release: order(release.installation.version))
    return proven


def _release(environment: Path) -> Release | None:
    try:
        proof: dict[str, Any] = json.loads((environment / PROOF).read_bytes())
    except (OSError, ValueError):
        return None
    if proof.get("engine") not in entries():
        return None
    installation = Installation(proof["engine"], str(proof["version"]), str(python(environment)))
    return Release(installation, environment, proof, whole=runs(environment, proof))


def runs(environment: Path, proof: dict[str, Any]) -> bool:
    """Return whether the environment's Python is the one it was made for: its link leads there, or to a patch of it.

    A Python that was removed leaves a dead link; one that was upgraded to another minor version has other packages.
    """
    link = python(environment)
    if not os.access(link, os.X_OK):
        return False
    actual = Path(os.path.realpath(link))
    minor = re.fullmatch(r"python(\d+\.\d+)t?", actual.name)
    return minor[1] == proof.get("python", minor[1]) if minor else str(actual) == proof.get("interpreter", str(actual))


def interpreter(environment: Path) -> dict[str, str]:
    """Return {"python", "interpreter"} for the proof: the minor version of this Python, and its file."""
    return {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "interpreter": os.path.realpath(python(environment)),
    }


def order(release: str) -> list[int]:
    """Return the key by which versions are sorted."""
    return [int(part) if part.isdigit() else 0 for part in release.split(".")]


def mlx(home: Home, release: str) -> str:
    """Return the release of MLX that an engine runs on; empty where that is not known."""
    bundled = own()
    if bundled and release == bundled.name:
        return version("mlx")
    matches = (candidate for candidate in releases(home) if candidate.installation.name == release)
    return str(next((candidate.proof.get("mlx", "") for candidate in matches), ""))


def write_proof(environment: Path, proof: dict[str, Any]) -> None:
    """Write down that the engine in `environment` was proven; from then on it may be used."""
    replace_private(environment / PROOF, json.dumps(proof, indent=1, sort_keys=True))


def discard(environment: Path) -> None:
    """Have an environment count no more, because something is missing from it; what runs from there keeps running."""
    (environment / PROOF).unlink(missing_ok=True)


@dataclass(frozen=True)
class RequestedEngine:
    """Which version of an engine is to be used."""

    version: str | None = None
    since: float = 0.0
    """Unix seconds at which it was taken into use."""
    previous: str | None = None
    """The one that was used before it."""
    bad: Mapping[str, str] = field(default_factory=dict[str, str])
    """Versions that failed in use, and why; they are not used unless the user asks for them."""


def used(db: Database, home: Home) -> list[Installation]:
    """Return one version of each engine: the one that was requested, else the one before it, else the newest here.

    Versions that failed in use are left out. Where no engine is here yet, it is the one that setup installs.
    """
    requested = _requested(db)
    versions: dict[str, Installation] = {}
    for release in releases(home):
        installation, wish = release.installation, requested.get(release.installation.engine, RequestedEngine())
        if release.whole and installation.version not in wish.bad:
            other = versions.get(installation.engine)
            if other is None or _rank(installation, wish) >= _rank(other, wish):
                versions[installation.engine] = installation
    return list(versions.values()) or [fallback(home)]


def host(db: Database, home: Home) -> Installation:
    """Return the vllm-mlx that is used, or that setup installs: mlx-embeddings is in its environment."""
    candidates = (installation for installation in used(db, home) if installation.engine == FALLBACK)
    return next(candidates, fallback(home))


def _rank(installation: Installation, wish: RequestedEngine) -> int:
    """Return how much a version is wanted; of those that were never requested the newest comes last."""
    return (installation.version == wish.version) * 2 + (installation.version == wish.previous)


def missing(db: Database, home: Home) -> dict[str, str]:
    """Return the version of each engine that was requested and is not here, or not whole."""
    whole = {release.installation.name for release in releases(home) if release.whole}
    wanted = {
        name: wish.version for name, wish in _requested(db).items() if wish.version and wish.version not in wish.bad
    }
    return {name: version for name, version in wanted.items() if f"{name} {version}" not in whole}


def wish(db: Database, name: str) -> RequestedEngine:
    """Return which version of an engine is to be used; all of it empty where none was requested."""
    return _requested(db).get(name, RequestedEngine())


def use(db: Database, name: str, release: str) -> RequestedEngine:
    """Write down that a version of an engine is used from now on; return what was used before."""
    with db.transaction():
        before = wish(db, name)
        bad = {failed: reason for failed, reason in before.bad.items() if failed != release}
        if before.version != release:
            _write(db, name, RequestedEngine(release, db.now(), before.version or before.previous, bad))
        elif bad != before.bad:
            _write(db, name, replace(before, bad=bad))
    return before


def take_back(db: Database, name: str, release: str, reason: str) -> RequestedEngine:
    """Write down that a version failed, and that the one before it is used again; return the new wish."""
    with db.transaction():
        before = wish(db, name)
        bad = {**before.bad, release: reason}
        after = replace(before, bad=bad)
        if before.version == release:
            version = before.previous if before.previous not in bad else None
            after = RequestedEngine(version, db.now(), None, bad)
        _write(db, name, after)
    return after


def forget(db: Database, name: str, release: str) -> None:
    """Write down that a version is gone for good; one before it is used in its place."""
    with db.transaction():
        before = wish(db, name)
        bad = {failed: reason for failed, reason in before.bad.items() if failed != release}
        previous = before.previous if before.previous != release else None
        if before.version == release:
            _write(db, name, RequestedEngine(previous, db.now(), None, bad))
        else:
            _write(db, name, replace(before, previous=previous, bad=bad))


def _write(db: Database, name: str, wanted: RequestedEngine) -> None:
    facts.put(db, FACT, facts.get(db, FACT) | {name: asdict(wanted)})


def _requested(db: Database) -> dict[str, RequestedEngine]:
    return {name: _wish(row) for name, row in facts.get(db, FACT).items()}


def _wish(row: Mapping[str, Any]) -> RequestedEngine:
    bad: dict[str, str] = row["bad"] or {}
    return RequestedEngine(row["version"], float(row["since"]), row["previous"], bad)
