"""Which engine serves a model. Pure: what is installed and what is known go in, one installation comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field

from catalog.engines import FALLBACK, ModelKind, abilities, reuses
from state.classes import dataclass
from tasks.engines.adapters import ENGINES
from tasks.engines.base import Installation

AUTO = "auto"


NOT_INSTALLED = "it is not installed"


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
    faults: Mapping[str, str] = field(default_factory=dict[str, str])
    """Releases that are known to fail with this model, and why."""
    absent: Mapping[str, str] = field(default_factory=dict[str, str])
    """Engines of which no version can be used here, and why, to follow a "but"."""


@dataclass(frozen=True)
class EngineChoice:
    """The engine that serves a model, and why."""

    installation: Installation
    reason: str
    rereads: bool
    """Whether it reads every prompt again from its beginning."""
    missed: str = ""
    """Why a better engine, or the one that a setting names, does not serve; empty where there is none."""
    hint: str | None = None
    """The command that helps."""
    better: str = ""
    """The engine that `missed` is about."""


def choose(question: Question, installed: Sequence[Installation]) -> EngineChoice:
    """Return the engine for a model; `installed` has at most one version of each, the fallback among them.

    An engine that is named and cannot be used is left out: what serves in its place answers requests, too.
    """
    sound = [installation for installation in installed if installation.name not in question.faults] or installed
    match = next((installation for installation in sound if installation.engine == question.wanted), None)
    if match:
        return EngineChoice(match, "a setting names it", rereads=not reuses(match.engine, question.kind))
    able = [installation for installation in sound if _reads(installation.engine, question)] or [
        installation for installation in sound if installation.engine == FALLBACK
    ]
    able = able or list(sound)
    best = max(able, key=lambda installation: _rank(installation.engine, question, able))
    missed, hint, better = _missed(best, question, installed)
    rereads = not reuses(best.engine, question.kind)
    return EngineChoice(best, _reason(best, able, question), rereads, missed, hint, better)


def _missed(best: Installation, question: Question, installed: Sequence[Installation]) -> tuple[str, str | None, str]:
    """Return why an engine that is named, or that would read its prompts once, does not serve; what helps; which."""
    for name in ENGINES:
        fault = next((question.faults.get(release.name) for release in installed if release.engine == name), None)
        obstacle = f"it does not serve this model ({fault})" if fault else question.absent.get(name)
        if obstacle and _is_better(name, best.engine, question):
            hint = f"mlxq engine use {name}" if fault else f"mlxq engine install {name}"
            return f"{_loss(name, question)}, but {obstacle}.", hint, name
    return "", None, ""


def _loss(name: str, question: Question) -> str:
    if name == question.wanted:
        return f"A setting names {name}"
    return f"It reads every prompt again from its beginning. {name} would read it once"


def _is_better(name: str, best: str, question: Question) -> bool:
    """Return whether an engine would serve in place of `best` if it could."""
    if name == question.wanted:
        return True
    gains = reuses(name, question.kind) and not reuses(best, question.kind)
    return question.wanted == AUTO and gains and _reads(name, question)


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
    return able.max_completion_tokens and able.counts_exactly and able.forced_tools


def _reason(best: Installation, able: Sequence[Installation], question: Question) -> str:
    alternatives = [installation.engine for installation in able if installation != best]
    if not alternatives:
        reasons = [f"; {name}: {text}" for name, text in sorted(question.absent.items()) if text != NOT_INSTALLED]
        return f"no other engine here reads this model{''.join(reasons)}"
    if reuses(best.engine, question.kind) and not all(reuses(name, question.kind) for name in alternatives):
        return "it reads a prompt once"
    if all(name in question.speeds for name in (best.engine, *alternatives)):
        return f"it is the faster one here, {question.speeds[best.engine]:.0f} tokens/s"
    return "it answers every dialect by itself" if _speaks(best.engine, question.backend) else "it comes with mlxq"
