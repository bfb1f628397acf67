"""Whether models fit this machine: those that are installed, and those that the Hub lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from catalog import units
from catalog.fit import guessed_bytes, longest_window, memory
from catalog.machine import from_row
from catalog.model import Model
from catalog.select import SHOWN_CONTEXT
from mlxq import jobs_client, local_models
from mlxq.local_models import Installed
from mlxq.setup import recommendation
from state import facts, settings
from state.errors import NotSetUp
from state.paths import Home
from tasks import recommend

if TYPE_CHECKING:
    from tasks.weights.hub_search import Repo


@dataclass(frozen=True)
class Need:
    """What it takes to serve a model alone; None where that is not known."""

    memory_bytes: int | None = None
    """With a window of 8K tokens."""
    fits_context: int | None = None
    """The longest window that fits the budget of this machine, in tokens; 0 where none does."""

    def row(self) -> dict[str, int | None]:
        """Return it as printed with --json."""
        return asdict(self)

    @property
    def fits(self) -> str | None:
        """Return the window as people read it, or "no"."""
        if self.fits_context is None:
            return None
        return recommendation.tokens(self.fits_context) if self.fits_context else "no"


def budget(home: Home) -> int | None:
    """Return the bytes that models may use on this machine; None while it is unknown."""
    try:
        with jobs_client.reading(home) as db:
            row = facts.get(db, "machine")
    except NotSetUp:
        return None
    return recommend.budget(from_row(row), settings.load(home)["memory-budget-pct"]) if row else None


def needs(installed: Sequence[Installed], models: Mapping[str, Model], limit: int | None) -> list[Need]:
    """Return what each of the installed models needs. `limit` in bytes is None while the machine is unknown."""
    return [_of_installed(local_models.described(row, models), limit) for row in installed]


def _of_installed(entry: tuple[Model, str] | None, limit: int | None) -> Need:
    return need(*entry, limit) if entry else Need()


def need(model: Model, quant: str, limit: int | None) -> Need:
    """Return what a model needs in a quant, and with which window it fits."""
    total = memory(model, quant, min(SHOWN_CONTEXT, model.context)).total
    return Need(total, None if limit is None else longest_window(model, quant, limit))


def sentence(needed: Need, limit: int | None) -> str:
    """Return what a model needs and whether that is here, in words."""
    text = (
        f"Needs {units.memory(needed.memory_bytes)} of memory with a window of {recommendation.tokens(SHOWN_CONTEXT)}"
    )
    if limit is None:
        return f"{text}."
    room = f"fits with up to {needed.fits}" if needed.fits_context else "does not fit"
    return f"{text}; models may use {units.memory(limit)} here: it {room}."


def repo_fits(weights_bytes: int | None, limit: int | None) -> bool | None:
    """Return whether a repo fits, by the size of its weights; None where that or the machine is not known."""
    return None if weights_bytes is None or limit is None else guessed_bytes(weights_bytes) <= limit


def repo_word(repo: Repo, limit: int | None) -> str | None:
    """Return whether a repo fits, in a word; what cannot be a tier is not served."""
    if repo.purpose:
        return "not served"
    fits = repo_fits(repo.weights_bytes, limit)
    return None if fits is None else "yes" if fits else "no"
