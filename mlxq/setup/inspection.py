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
from mlxq import jobs_client, local_models
from state import facts, settings, stack
from state.db import Database
from state.errors import NotSetUp
from state.paths import Home
from state.settings import Settings
from state.stack import Tier
from tasks import recommend as advice
from tasks.weights import source as sources

NOTHING: Mapping[str, Any] = {"measured": (), "tiers": (), "told": {}}
"""What a home without a state database holds."""


@dataclass(frozen=True)
class Inspection:
    """One look at everything a choice of models follows from."""

    home: Home
    machine: Machine
    known: Mapping[str, Model]
    measured: Sequence[Measured]
    hub: bool
    """Whether the Hub answered."""
    here: frozenset[str]
    """Sources whose weights are whole on this machine."""
    begun: Mapping[str, int]
    """Bytes that are here of weights whose fetch was broken off, by the name their folder will have."""
    free_bytes: int
    """What weights may take of their disk; some is always kept free."""
    tiers: Sequence[Tier]
    told: Mapping[str, Any]
    """What was said of the stack when it was chosen; empty when it was made by hand."""
    settings: Settings

    @property
    def outdated(self) -> str:
        """Say why the stack of this home is no answer to what would be asked now; empty when it is one."""
        question = self._question({})
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
        return sum(self._to_come(source, size) for source, size in sizes.items())

    @property
    def unsized(self) -> list[str]:
        """The sources that are still to come of the stack that is here, and of which the catalog knows no size."""
        sources = {tier.source for tier in self.tiers}
        return sorted(sources - self.here - advice.sizes(self.tiers, self.known).keys())

    @property
    def quant(self) -> str | None:
        """The quant that a person bound all models to; None when there is no such wish."""
        return advice.quant_wanted(self.settings)

    def recommend(self, asked: Mapping[str, Any], choice: Mapping[str, str] | None = None) -> Recommendation:
        """Give what the task score would choose for the same arguments. Raises DoesNotFit, NotFound, UsageProblem."""
        question = self._question(asked)
        return advice.choose(self.machine, self.known, question | {"choice": choice}, self.measured, hub=self.hub)

    def stays(self, asked: Mapping[str, Any]) -> bool:
        """Say whether the task score would keep the stack that is here for the same arguments."""
        return advice.stays(self.tiers, self.told, asked, self._question(asked), hub=self.hub)

    def fetch_of(self, model: str, quant: str) -> int:
        """Give the bytes that are still to come of one model."""
        wanted = self.known[model].quants[quant]
        return self._to_come(wanted.source, wanted.bytes)

    def to_fetch(self, chosen: Recommendation) -> int:
        """Give the bytes that are still to come of a whole stack; what two tiers share is counted once."""
        return sum(self.fetch_of(*each) for each in {(pick.model, pick.quant) for pick in chosen.picks})

    def _question(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Fill in what the arguments of the task score leave open."""
        return advice.question(asked.get("intent"), asked.get("budget_pct"), self.told, self.settings)

    def _to_come(self, source: str, size: int) -> int:
        """Give the bytes that a pull would still bring; one that was broken off goes on where it was.

        A byte at least, until the weights are whole: the catalog does not count the small files beside them.
        """
        if source in self.here:
            return 0
        asked = sources.parse(source)
        begun = (count for name, count in self.begun.items() if sources.is_of(name, asked))
        return max(1, size - max(begun, default=0))


def inspect(place: Home) -> Inspection:
    """Look at this machine and this home, and change nothing. Raises UsageProblem for a file that is wrong."""
    from tasks.system import hardware
    from tasks.weights import hub, staging
    from tasks.weights.disk import existing
    from tasks.weights.source import FLOOR_BYTES

    known, wanted = advice.known(place), settings.load(place)
    machine = hardware.detect()
    free = shutil.disk_usage(existing(wanted.models(place))).free
    try:
        with jobs_client.reading(place) as db:
            kept = _kept(db, machine)
            weights = local_models.listing(place, db, known)
    except NotSetUp:
        kept = NOTHING
        weights = local_models.listing(place, None, known)
    return Inspection(
        home=place,
        machine=machine,
        known=known,
        hub=hub.hub_reachable(),
        here=frozenset(one.source for one in weights if one.state in {"loadable", "valid"}),
        begun={one.folder.name.removesuffix(staging.SUFFIX): one.size for one in weights if one.state == "partial"},
        free_bytes=max(0, free - FLOOR_BYTES),
        settings=wanted,
        **kept,
    )


def _kept(db: Database, machine: Machine) -> Mapping[str, Any]:
    """Give what the state database holds: the benchmarks, the tiers, and what was said of them."""
    told = facts.get(db, "stack")
    return {"measured": advice.measured(db, machine), "tiers": stack.tiers(db), "told": told}
