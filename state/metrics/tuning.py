"""Which tuning of an engine answers faster with a model on this machine, as `mlxq bench --tune` measured it.

It holds for one release of an engine and one model: with another release nothing is promised.
"""

from __future__ import annotations

from dataclasses import asdict

from state import facts
from state.classes import dataclass
from state.db import Database

FACT = "tunings"
"""{release: {source of the weights: a Tuning's fields}}."""


@dataclass(frozen=True)
class Tuning:
    """What is used because it was measured to be faster."""

    name: str
    """As the engine's adapter calls it, such as prompt-lookup."""
    gain: float
    """Times as fast as without it: tokens/s of one answer."""
    at: float
    """When it was measured, in unix seconds."""

    @property
    def text(self) -> str:
        """Return it for people: "prompt-lookup, 1.4 times as fast"."""
        return f"{self.name}, {self.gain:.1f} times as fast"


def find(db: Database, release: str, source: str) -> Tuning | None:
    """Return what is used with a model on a release of an engine; None for nothing."""
    return of_source(db, source).get(release)


def of_source(db: Database, source: str) -> dict[str, Tuning]:
    """Return what is used with a model, by release."""
    rows = {release: sources.get(source) for release, sources in facts.get(db, FACT).items()}
    return {release: Tuning(**row) for release, row in rows.items() if row}


def record(db: Database, release: str, source: str, name: str, gain: float) -> None:
    """Use a tuning from the engine's next start on, in place of an earlier one."""
    with db.transaction():
        tunings = facts.get(db, FACT)
        row = asdict(Tuning(name, gain, db.now()))
        facts.put(db, FACT, tunings | {release: tunings.get(release, {}) | {source: row}})


def clear(db: Database, source: str, release: str | None = None) -> list[str]:
    """Use none with a model any more, on one release or on all; return the names of those that were used."""
    with db.transaction():
        tunings = facts.get(db, FACT)
        cleared = [name for name in tunings if release in {None, name} and source in tunings[name]]
        names = [tunings[name].pop(source)["name"] for name in cleared]
        if cleared:
            facts.put(db, FACT, tunings)
    return names
