"""What each tier misses by the program that its engine runs, as of its last start, for status and doctor."""

from __future__ import annotations

from collections.abc import Sequence

from state import facts
from state.db import Database
from state.stack import Tier

FACT = "engine_notes"
"""{engine: [sentence, command that helps or null]}; engines that miss nothing are left out."""


def write(db: Database, engine: str, missed: str, hint: str | None) -> None:
    """Write down what the tiers of an engine miss; an empty sentence for nothing."""
    notes = facts.get(db, FACT)
    changed = {name: note for name, note in notes.items() if name != engine} | (
        {engine: [missed, hint]} if missed else {}
    )
    if changed != notes:
        facts.put(db, FACT, changed)


def listing(db: Database, tiers: Sequence[Tier]) -> list[tuple[str, str, str | None]]:
    """Return names of tiers, sentence and command of each note; tiers that miss the same share one."""
    notes = facts.get(db, FACT)
    named: dict[tuple[str, str | None], list[str]] = {}
    for tier in tiers:
        if tier.engine.name in notes:
            sentence, hint = notes[tier.engine.name]
            named.setdefault((sentence, hint), []).append(tier.name)
    return [(", ".join(names), sentence, hint) for (sentence, hint), names in named.items()]
