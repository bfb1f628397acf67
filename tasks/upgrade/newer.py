"""Whether the package index had a newer mlxq when it was last asked. Imports nothing heavy: `mlxq status` shows it."""

from __future__ import annotations

from state import facts
from state.db import Database

FACT = "newer"
"""The newest version in the index, and when it was looked for: {"version", "at"}; the setting check-updates asks."""


def follows(release: str, other: str) -> bool:
    """Return whether a release comes after another one; what is no number in them counts as 0."""
    return _order(release) > _order(other)


def _order(release: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in release.split(".")]


def found(db: Database) -> str | None:
    """Return the version that was found and is newer than this one, if any."""
    newest = str(facts.get(db, FACT).get("version", ""))
    return newest if newest and follows(newest, _here()) else None


def _here() -> str:
    """Return the version of this mlxq."""
    from importlib.metadata import version  # 30 ms, a fifth of `mlxq status`, and only where an index had another

    return version("mlxq")


def notices(db: Database) -> list[tuple[str, str, str | None]]:
    """Return name, sentence and next command of what `mlxq status` says of it."""
    newest = found(db)
    return [("mlxq", f"{newest} is available, and this is {_here()}.", "mlxq upgrade")] if newest else []
