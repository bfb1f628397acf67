"""What set-up finds before anything is asked or changed: machine, Hub, disk, and the weights and stack of this home."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from catalog.machine import Machine
from catalog.model import Model
from catalog.pick import Recommendation
from catalog.speed import Measured
from mlxq import ask, installed
from state import host, settings, stack
from state.db import Database
from state.errors import NotSetUp
from state.paths import Home
from state.settings import Settings
from state.stack import Tier
from tasks import advice

NOTHING: Mapping[str, Any] = {"measured": (), "tiers": (), "told": {}}
"""What a home without a state database holds."""


@dataclass(frozen=True)
class Survey:
    """One look at everything a choice of models follows from."""

    home: Home
    machine: Machine
    known: Mapping[str, Model]
    measured: Sequence[Measured]
    hub: bool
    """Whether the Hub answered."""
    here: frozenset[str]
    """Sources whose weights are whole on this machine."""
    free_bytes: int
    """What weights may take of their disk; some is always kept free."""
    tiers: Sequence[Tier]
    told: Mapping[str, Any]
    """What was said of the stack when it was chosen; empty when it was made by hand."""
    settings: Settings

    @property
    def outdated(self) -> str:
        """Say why the stack of this home is no answer to what would be asked now; empty when it is one."""
        question = advice.question(None, None, self.told, self.settings)
        asked: Mapping[str, Any] = self.told.get("asked", {})
        if self.told.get("builtin"):
            return "The built-in model stood in here while no Hub was in reach."
        if asked and any(asked.get(name) != value for name, value in question.items()):
            return "The settings ask for another budget or quant than the models here were chosen for."
        return ""

    @property
    def budget(self) -> int:
        """What the models may use of the memory, in bytes, when nothing else is asked."""
        return advice.budget(self.machine, self.settings["memory-budget-pct"])

    @property
    def missing(self) -> int:
        """The bytes that are still to come of the stack that is here."""
        sizes = advice.sizes(self.tiers, self.known)
        return sum(size for source, size in sizes.items() if source not in self.here)

    @property
    def quant(self) -> str | None:
        """The quant that a person bound all models to; None when there is no such wish."""
        return advice.quant_wanted(self.settings)

    def recommend(self, asked: Mapping[str, Any], choice: Mapping[str, str] | None = None) -> Recommendation:
        """Give what the task score would choose for the same arguments. Raises DoesNotFit, NotFound, UsageProblem."""
        question = advice.question(asked.get("intent"), asked.get("budget_pct"), self.told, self.settings)
        return advice.choose(self.machine, self.known, question | {"choice": choice}, self.measured, hub=self.hub)

    def fetch_of(self, model: str, quant: str) -> int:
        """Give the bytes that are still to come of one model."""
        wanted = self.known[model].quants[quant]
        return 0 if wanted.source in self.here else wanted.bytes

    def to_fetch(self, chosen: Recommendation) -> int:
        """Give the bytes that are still to come of a whole stack; what two tiers share is counted once."""
        return sum(self.fetch_of(*each) for each in {(pick.model, pick.quant) for pick in chosen.picks})


def look(place: Home) -> Survey:
    """Look at this machine and this home, and change nothing. Raises UsageProblem for a file that is wrong."""
    from tasks.world import hardware, hub
    from tasks.world.disk import existing
    from tasks.world.source import FLOOR_BYTES

    known, wanted = advice.known(place), settings.load(place)
    machine = hardware.detect()
    free = shutil.disk_usage(existing(wanted.models(place))).free
    try:
        with ask.reading(place) as db:
            kept = _kept(db, machine)
            weights = installed.listing(place, db, known)
    except NotSetUp:
        kept = NOTHING
        weights = installed.listing(place, None, known)
    return Survey(
        home=place,
        machine=machine,
        known=known,
        hub=hub.hub_reachable(),
        here=frozenset(one.source for one in weights if one.state in {"loadable", "valid"}),
        free_bytes=max(0, free - FLOOR_BYTES),
        settings=wanted,
        **kept,
    )


def _kept(db: Database, machine: Machine) -> Mapping[str, Any]:
    """Give what the state database holds: the benchmarks, the tiers, and what was said of them."""
    told = host.recall(db, "stack")
    return {"measured": advice.measured(db, machine), "tiers": stack.tiers(db), "told": told}
