"""Which engine serves a model. Pure: what is installed and what is known go in, one installation comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from catalog.engines import FALLBACK, ModelKind, abilities, reuses
from state.errors import NotSetUp
from tasks.engines.adapters import ENGINES
from tasks.engines.base import Installation

AUTO = "auto"


@dataclass(frozen=True)
class Question:
    """What the choice follows from."""

    wanted: str
    """The name of an engine, or auto."""
    kind: ModelKind
    backend: str
    tool_parser: str | None
    reasoning_parser: str | None
    speeds: Mapping[str, float]
    """Tokens/s of one answer of this model that were measured on this machine, by engine."""


@dataclass(frozen=True)
class EngineChoice:
    """The engine that serves a model, and why."""

    installation: Installation
    reason: str
    rereads: bool
    """Whether it reads every prompt again from its beginning."""


def choose(question: Question, installed: Sequence[Installation]) -> EngineChoice:
    """Return the engine for a model; `installed` has at most one version of each. Raises NotSetUp for one not here."""
    if question.wanted != AUTO:
        match = next((installation for installation in installed if installation.engine == question.wanted), None)
        if match is None:
            raise NotSetUp(
                f"The engine {question.wanted} is not installed.", hint=f"mlxq engine install {question.wanted}"
            )
        return _choice(match, "named by a setting", question)
    able = [installation for installation in installed if _reads(installation.engine, question)] or [
        installation for installation in installed if installation.engine == FALLBACK
    ]
    best = max(able, key=lambda installation: _rank(installation.engine, question, able))
    return _choice(best, _why(best, able, question), question)


def _reads(engine: str, question: Question) -> bool:
    """Return whether an engine has the parsers that the model's answers need."""
    adapter = ENGINES[engine]
    needs = (
        (question.tool_parser, adapter.tool_parser(question.tool_parser)),
        (question.reasoning_parser, adapter.reasoning_parser(question.reasoning_parser)),
    )
    return all(wanted is None or own is not None for wanted, own in needs)


def _rank(engine: str, question: Question, able: Sequence[Installation]) -> tuple[bool, float, bool]:
    """Return what the best has the most of: reuse, then speed where all were measured, then right dialects."""
    measured = all(installation.engine in question.speeds for installation in able)
    speed = question.speeds[engine] if measured else 0.0
    return reuses(engine, question.kind), speed, _speaks(engine, question.backend)


def _speaks(engine: str, backend: str) -> bool:
    """Return whether an engine's dialects are right by themselves."""
    able = abilities(engine, backend)
    return able.stop_strings and able.max_completion_tokens and able.counts_exactly and able.forced_tools


def _why(best: Installation, able: Sequence[Installation], question: Question) -> str:
    alternatives = [installation for installation in able if installation != best]
    if not alternatives:
        return "the only engine here that reads this model"
    if reuses(best.engine, question.kind) and not all(
        reuses(installation.engine, question.kind) for installation in alternatives
    ):
        return "it reads a prompt once"
    if all(installation.engine in question.speeds for installation in able):
        return f"the faster one here, {question.speeds[best.engine]:.0f} tokens/s"
    return "it answers every dialect by itself" if _speaks(best.engine, question.backend) else "the engine of old"


def _choice(installation: Installation, reason: str, question: Question) -> EngineChoice:
    return EngineChoice(installation, reason, rereads=not reuses(installation.engine, question.kind))
