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
    why: str
    rereads: bool
    """Whether it reads every prompt again from its beginning."""


def choose(question: Question, installed: Sequence[Installation]) -> EngineChoice:
    """Return the engine for a model; `installed` has at most one version of each. Raises NotSetUp for one not here."""
    if question.wanted != AUTO:
        found = next((each for each in installed if each.engine == question.wanted), None)
        if found is None:
            raise NotSetUp(
                f"The engine {question.wanted} is not installed.", hint=f"mlxq engine install {question.wanted}"
            )
        return _choice(found, "named by a setting", question)
    able = [each for each in installed if _reads(each.engine, question)] or [
        each for each in installed if each.engine == FALLBACK
    ]
    best = max(able, key=lambda each: _rank(each.engine, question, able))
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
    measured = all(each.engine in question.speeds for each in able)
    speed = question.speeds[engine] if measured else 0.0
    return reuses(engine, question.kind), speed, _speaks(engine, question.backend)


def _speaks(engine: str, backend: str) -> bool:
    """Return whether an engine's dialects are right by themselves."""
    able = abilities(engine, backend)
    return able.stop_strings and able.max_completion_tokens and able.counts_exactly and able.forced_tools


def _why(best: Installation, able: Sequence[Installation], question: Question) -> str:
    others = [each for each in able if each != best]
    if not others:
        return "the only engine here that reads this model"
    if reuses(best.engine, question.kind) and not all(reuses(each.engine, question.kind) for each in others):
        return "it reads a prompt once"
    if all(each.engine in question.speeds for each in able):
        return f"the faster one here, {question.speeds[best.engine]:.0f} tokens/s"
    return "it answers every dialect by itself" if _speaks(best.engine, question.backend) else "the engine of old"


def _choice(found: Installation, why: str, question: Question) -> EngineChoice:
    return EngineChoice(found, why, rereads=not reuses(found.engine, question.kind))
