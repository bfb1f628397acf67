"""Whether models fit this machine: those that are installed, and those that the Hub lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from catalog import units
from catalog.fit import LEAST_WINDOW, guessed_bytes, longest_window, memory
from catalog.model import Model
from catalog.select import SHOWN_CONTEXT
from mlxq import jobs_client, local_models
from mlxq.local_models import Installed
from mlxq.setup import recommendation
from state import stack
from state.classes import dataclass
from state.errors import NotSetUp
from state.paths import Home
from tasks import stack_jobs

if TYPE_CHECKING:
    from tasks.weights.hub_search import Repo


@dataclass(frozen=True)
class Need:
    """What it takes to serve a model alone; None where that is not known."""

    memory_bytes: int | None = None
    """With a window of 8K tokens."""
    fits_context: int | None = None
    """The longest window that fits the budget of this machine, in tokens; 0 where none does."""
    least_bytes: int | None = None
    """With the smallest window."""

    def row(self) -> dict[str, int | None]:
        """Return it as printed with --json."""
        return {"memory_bytes": self.memory_bytes, "fits_context": self.fits_context}

    @property
    def fits(self) -> str | None:
        """Return the window as people read it, or "no"."""
        if self.fits_context is None:
            return None
        return recommendation.tokens(self.fits_context) if self.fits_context else "no"


@dataclass(frozen=True)
class Room:
    """The memory for models on this machine, in bytes."""

    budget: int
    """All of it."""
    free: int
    """What the engines of the present stack leave."""


def room_of(home: Home) -> Room | None:
    """Return the memory for models on this machine; None while it is unknown."""
    try:
        with jobs_client.reading(home) as db:
            most = stack_jobs.budget(db, home)
            return Room(most, most - sum(engine.memory_bytes for engine in stack.engines(db)))
    except NotSetUp:
        return None


def budget(home: Home) -> int | None:
    """Return the bytes that models may use on this machine; None while it is unknown."""
    room = room_of(home)
    return room.budget if room else None


def needs(installed: Sequence[Installed], models: Mapping[str, Model], limit: int | None) -> list[Need]:
    """Return what each of the installed models needs. `limit` in bytes is None while the machine is unknown."""
    return [_of_installed(local_models.described(row, models), limit) for row in installed]


def _of_installed(entry: tuple[Model, str] | None, limit: int | None) -> Need:
    return need(*entry, limit) if entry else Need()


def need(model: Model, quant: str, limit: int | None) -> Need:
    """Return what a model needs in a quant, and with which window it fits."""
    total = memory(model, quant, min(SHOWN_CONTEXT, model.context)).total
    least = memory(model, quant, min(LEAST_WINDOW, model.context)).total
    return Need(total, None if limit is None else longest_window(model, quant, limit), least)


def sentence(needed: Need, room: Room | None) -> str:
    """Return what a model needs and whether that is here, in words."""
    limit = room.budget if room else None
    text = (
        f"Needs {units.memory(needed.memory_bytes)} of memory with a window of {recommendation.tokens(SHOWN_CONTEXT)}"
    )
    if limit is None:
        return f"{text}."
    alone = needed.fits_context and room is not None and (needed.memory_bytes or 0) > room.free
    beside = ", but not beside the present stack" if alone else ""
    outcome = f"fits with up to {needed.fits}" if needed.fits_context else "does not fit"
    return f"{text}; models may use {units.memory(limit)} here: it {outcome}{beside}."


def verdict(need_bytes: int, room: Room) -> str:
    """Return whether so much memory is here, in words: beside the present stack, without it, or not at all."""
    if need_bytes > room.budget:
        return f"no, needs {units.memory(need_bytes)}"
    return "yes" if need_bytes <= room.free else "only alone"


def repo_need(repo: Repo) -> int | None:
    """Return what a repo may take, by the size of its weights; None where that is not known."""
    return None if repo.weights_bytes is None else guessed_bytes(repo.weights_bytes)


def repo_fits(repo: Repo, room: Room | None) -> bool | None:
    """Return whether a repo fits without the present stack; None where that is not known."""
    need_bytes = repo_need(repo)
    return None if need_bytes is None or room is None else need_bytes <= room.budget


def repo_word(repo: Repo, room: Room | None) -> str | None:
    """Return whether a repo fits, and that it is gated, in words; what cannot be a tier is not served."""
    need_bytes = repo_need(repo)
    fitting = verdict(need_bytes, room) if need_bytes is not None and room else None
    word = "not served" if repo.purpose else fitting
    return ", ".join(filter(None, [word, "gated" if repo.gated else None])) or None
