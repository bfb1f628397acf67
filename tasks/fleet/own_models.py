"""What this machine serves, in the words in which its fleet and its own front are told: how much at once, how fast."""

from __future__ import annotations

import time
from pathlib import Path

from state import facts, service
from state.db import Database
from state.fleet import ServedModel
from state.metrics import bench, sample
from state.service import ROUTED
from state.stack import Engine

IN_USE_S = 7 * 86400.0
"""From how far back speeds count that requests saw."""
KEPT_S = 60.0
"""How long a speed is kept: a week's samples are not added up at each look of a node."""


def served(db: Database, name: str, engine: Engine | None, context: int) -> ServedModel:
    """Return what is served under a name. `engine`: None for one that makes vectors, of which nothing is known."""
    return (
        ServedModel(name, context, engine.concurrency, SPEEDS.of(db, engine))
        if engine
        else ServedModel(name, context, 1)
    )


def problem(db: Database) -> str | None:
    """Return which services should run and do not serve; None where all do."""
    down = [row.name for row in service.listing(db) if row.desired == "up" and row.state not in ROUTED]
    return f"not serving: {', '.join(down)}" if down else None


class Speeds:
    """The speeds of this machine's engines."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, str, str, str], tuple[float, float | None]] = {}

    def of(self, db: Database, engine: Engine) -> float | None:
        """Return the tokens/s of one answer, in two digits; None where nothing was measured.

        By what requests saw lately, else by the newest benchmark. Each other figure is news to all fronts.
        """
        key = (db.home.root, engine.name, engine.model, engine.quant)
        at, speed = self._known.get(key, (-KEPT_S, None))
        if time.monotonic() - at < KEPT_S:
            return speed
        measured = _measured(db, engine)
        speed = None if measured is None else float(f"{measured:.2g}")
        self._known[key] = time.monotonic(), speed
        return speed


def _measured(db: Database, engine: Engine) -> float | None:
    decode_tps = sample.in_use(db, engine.name, db.now() - IN_USE_S).decode_tps
    if decode_tps is not None:
        return decode_tps
    chip = str(facts.get(db, "machine").get("chip", ""))
    return next(iter(reversed(bench.speeds(db, engine.model, engine.quant, chip).values())), None)


SPEEDS = Speeds()
