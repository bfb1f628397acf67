"""Which engines are on this machine: the one in mlxq's own environment, and those below MLXQ_HOME/engines.

A folder `NAME-VERSION` counts once `engine.json` is in it, which is written last, after its smoke test: a version that
was never proven is no engine.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from catalog.engines import FALLBACK, entries
from state import facts
from state.db import Database
from state.files import replace_private
from state.paths import Home
from tasks.engines.base import Installation

FACT = "engines"
"""The fact that holds which version of each engine is used: {name: a Wish}."""
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


def own() -> Installation:
    """Return the engine in mlxq's own environment."""
    return Installation(FALLBACK, version(entries()[FALLBACK].package), sys.executable)


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
    """Return every version that was proven, the one in mlxq's own environment first."""
    proven = [Release(own(), None, {}, whole=True)]
    if home.engines.is_dir():
        proven += [release for environment in sorted(home.engines.iterdir()) if (release := _release(environment))]
    return proven


def _release(environment: Path) -> Release | None:
    try:
        proof: dict[str, Any] = json.loads((environment / PROOF).read_bytes())
    except (OSError, ValueError):
        return None
    if proof.get("engine") not in entries():
        return None
    runs = python(environment)
    installation = Installation(proof["engine"], str(proof["version"]), str(runs))
    return Release(installation, environment, proof, whole=os.access(runs, os.X_OK))


def mlx(home: Home, release: str) -> str:
    """Return the release of MLX that an engine runs on; empty where that is not known."""
    if release.startswith(f"{FALLBACK} "):
        return version("mlx")
    matches = (candidate for candidate in releases(home) if candidate.installation.name == release)
    return str(next((candidate.proof.get("mlx", "") for candidate in matches), ""))


def write_proof(environment: Path, proof: dict[str, Any]) -> None:
    """Write down that the engine in `environment` was proven; from then on it may be used."""
    replace_private(environment / PROOF, json.dumps(proof, indent=1, sort_keys=True))


def used(db: Database, home: Home) -> list[Installation]:
    """Return one version of each engine: the one that was chosen, else the newest proven one that did not fail."""
    chosen = _chosen(db)
    by_engine: dict[str, Installation] = {}
    for release in releases(home):
        installation, wish = release.installation, chosen.get(release.installation.engine, RequestedEngine())
        if (
            release.whole
            and installation.version not in wish.bad
            and (installation.engine not in by_engine or installation.version == wish.version)
        ):
            by_engine[installation.engine] = installation
    return list(by_engine.values())


@dataclass(frozen=True)
class RequestedEngine:
    """Which version of an engine is to be used."""

    version: str | None = None
    previous: str | None = None
    """The one that was used before it."""
    bad: tuple[str, ...] = ()
    """Versions that failed in use; they are not taken by themselves."""


def wish(db: Database, name: str) -> RequestedEngine:
    """Return which version of an engine is to be used; all of it empty where none was chosen."""
    return _chosen(db).get(name, RequestedEngine())


def use(db: Database, name: str, release: str) -> RequestedEngine:
    """Write down that a version of an engine is used from now on; return what was used before."""
    before = wish(db, name)
    bad = tuple(failed for failed in before.bad if failed != release)
    if (before.version, before.bad) != (release, bad):
        previous = before.version if before.version != release else before.previous
        _write(db, name, RequestedEngine(release, previous, bad))
    return before


def take_back(db: Database, name: str, release: str) -> RequestedEngine:
    """Write down that a version failed in use, and that the one before it is used again; return the new wish."""
    before = wish(db, name)
    version = before.previous if before.version == release else before.version
    after = RequestedEngine(version, None, tuple(dict.fromkeys((*before.bad, release))))
    _write(db, name, after)
    return after


def _write(db: Database, name: str, wanted: RequestedEngine) -> None:
    facts.put(db, FACT, facts.get(db, FACT) | {name: asdict(wanted)})


def _chosen(db: Database) -> dict[str, RequestedEngine]:
    rows: dict[str, dict[str, Any]] = facts.get(db, FACT)
    return {name: RequestedEngine(row["version"], row["previous"], tuple(row["bad"])) for name, row in rows.items()}
