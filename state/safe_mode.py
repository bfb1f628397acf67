"""Safe mode: how far a tier runs below its configured size, and why, until the user restarts it."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Literal

from state import event, facts
from state.classes import dataclass
from state.db import Database

FACT = "restraint"
TOGETHER_S = 3600.0
"""Two ends for want of memory within this time count as one trouble."""

TOLD = "It ran out of memory twice, and runs with a smaller cache and fewer requests at once."

Reason = Literal["out_of_memory", "unclean_boot"]


@dataclass(frozen=True)
class SafeMode:
    """What holds for one tier."""

    level: int = 0
    """0: nothing is held back. tasks/plan/safe_mode.py says what each level means."""
    reason: Reason = "out_of_memory"
    sentence: str = ""
    """The sentence for people."""
    at: float = 0.0
    """Unix seconds of the last trouble."""

    @property
    def hint(self) -> str:
        """The command that ends it, or the trouble behind it."""
        return "mlxq up" if self.reason == "unclean_boot" else "mlxq config set memory-budget-pct 30"


def listing(db: Database) -> dict[str, SafeMode]:
    """Return the tiers that had trouble, by name."""
    return {name: mode for name, values in facts.get(db, FACT).items() if (mode := _mode(values))}


def _mode(values: Any) -> SafeMode | None:
    """Return a mode as `enter` wrote it; None for what another program wrote."""
    try:
        mode = SafeMode(**values)
        return replace(mode, level=int(mode.level), at=float(mode.at), sentence=str(mode.sentence))
    except (TypeError, ValueError):
        return None


def of(db: Database, name: str) -> SafeMode:
    """Return what holds for one tier."""
    return listing(db).get(name, SafeMode())


def enter(db: Database, name: str, restraint: SafeMode) -> None:
    """Hold a tier back from its next start on, and write the event."""
    with db.transaction():
        _keep(db, listing(db) | {name: replace(restraint, at=db.now())})
        event.record(db, "safe_mode", service=name, cause=restraint.sentence)


def record_oom(db: Database, name: str, most: int) -> None:
    """Count an end for want of memory: the first one is let pass, each further one within an hour costs a level."""
    before = of(db, name)
    if before.at > 0 and db.now() - before.at < TOGETHER_S:
        enter(db, name, SafeMode(min(most, before.level + 1), "out_of_memory", TOLD))
    else:
        with db.transaction():
            _keep(db, listing(db) | {name: replace(before, at=db.now())})


def leave(db: Database, name: str) -> None:
    """Leave safe mode: the user starts the tier, or changed what it is."""
    with db.transaction():
        modes = listing(db)
        mode = modes.pop(name, None)
        if mode is not None:
            _keep(db, modes)
        if mode is not None and mode.level:
            event.record(db, "safe_mode_lifted", service=name)


def _keep(db: Database, modes: dict[str, SafeMode]) -> None:
    facts.put(db, FACT, {name: asdict(mode) for name, mode in modes.items()})
