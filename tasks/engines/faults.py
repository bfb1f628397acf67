"""Which model does not run on which release of an engine, as it was found here; another engine serves it then.

What an engine cannot load, another one often can, and what crashes on one runs on another. A finding holds for one
release and one model; installing the release again, or naming the engine, clears it.
"""

from __future__ import annotations

from collections.abc import Mapping

from state import facts
from state.db import Database
from state.stack import Engine

FACT = "engine_faults"
"""{release: {source of the weights: why}}."""


def of(db: Database, engine: Engine) -> Mapping[str, str]:
    """Return the releases that do not serve the model of an engine, and why."""
    return {
        release: models[engine.source] for release, models in facts.get(db, FACT).items() if engine.source in models
    }


def record(db: Database, release: str, engine: Engine, reason: str) -> None:
    """Write down that a release does not serve the model of an engine."""
    with db.transaction():
        faults = facts.get(db, FACT)
        facts.put(db, FACT, faults | {release: faults.get(release, {}) | {engine.source: reason}})


def clear(db: Database, engine: str, source: str | None = None) -> None:
    """Forget what was found of every release of an engine, with one model or with all."""
    with db.transaction():
        faults = {
            release: _without(models, source) if release.startswith(f"{engine} ") else models
            for release, models in facts.get(db, FACT).items()
        }
        facts.put(db, FACT, {release: models for release, models in faults.items() if models})


def _without(models: Mapping[str, str], source: str | None) -> dict[str, str]:
    return {} if source is None else {model: reason for model, reason in models.items() if model != source}
