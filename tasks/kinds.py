"""Every kind of job there is, as data: the command line puts jobs in by it, the worker registers its tasks by it.

Importing this loads neither huey nor any task, so that a command starts at once. A kind's name is stored in
rows and never changes; a test holds the list.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from state.job import New

LONGEST_BACKOFF_S = 300.0


@dataclass(frozen=True)
class Kind:
    """What holds for every job of one kind."""

    name: str
    meaning: str
    lane: Literal["ops", "heavy"] = "ops"
    max_attempts: int = 1
    """How often a job is tried in all, when its error says that trying again can help."""
    limit_s: float = 120.0
    """How long one attempt may run."""
    ukey: str | None = None
    """Makes a live job unique, e.g. `pull:{source}`; a name in braces is an argument."""
    apart: Sequence[str] = ()
    """Arguments that ask for something else when they are set; they belong to the unique key then."""
    priority: int = 0


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("detect", "look at this machine", max_attempts=2, limit_s=60, ukey="detect"),
        Kind("score", "choose the models", limit_s=60, ukey="score"),
        Kind(
            "pull",
            "bring a model's weights here",
            "heavy",
            max_attempts=8,
            limit_s=86400,
            ukey="pull:{source}",
            apart=("revision", "force", "code"),
        ),
        Kind("configure", "write the gateway's configuration", max_attempts=3, limit_s=300, ukey="configure"),
        Kind("start", "bring a service up", max_attempts=3, limit_s=900, ukey="service:{service}", priority=10),
        Kind("stop", "put a service down", max_attempts=2, ukey="service:{service}:stop", priority=10),
        Kind(
            "drain",
            "put a service down after its last request",
            max_attempts=2,
            limit_s=900,
            ukey="service:{service}:stop",
            priority=10,
        ),
        Kind(
            "restart",
            "start a service anew",
            max_attempts=3,
            limit_s=900,
            ukey="service:{service}",
            apart=("purge",),
            priority=20,
        ),
        Kind("assign", "give a model a tier", ukey="assign:{tier}"),
        Kind(
            "retire",
            "take a service away for good",
            max_attempts=2,
            limit_s=900,
            ukey="retire:{service}",
            priority=10,
        ),
        Kind("verify", "ask each tier for an answer", max_attempts=2, limit_s=300, ukey="verify"),
        Kind("check", "hash a model's files again", "heavy", limit_s=7200, ukey="check:{folder}"),
        Kind("remove", "delete a model's files", ukey="remove:{folder}"),
        Kind("bench", "measure a model's speed", "heavy", limit_s=3600, ukey="bench:{target}"),
        Kind("rotate", "rotate the logs", limit_s=300, ukey="rotate"),
        Kind("prune", "forget old jobs", ukey="prune"),
    )
}


def new(
    name: str,
    args: Mapping[str, Any] | None = None,
    *,
    needs: Sequence[str | int] = (),
    softly: Sequence[str | int] = (),
    label: str = "",
) -> New:
    """Describe a job of this kind to put in. Raises KeyError for a kind that is not in the table."""
    kind = KINDS[name]
    given = dict(args or {})
    return New(
        kind=name,
        args=given,
        lane=kind.lane,
        priority=kind.priority,
        ukey=_unique(kind, given),
        max_attempts=kind.max_attempts,
        needs=needs,
        softly=softly,
        label=label,
    )


def _unique(kind: Kind, args: Mapping[str, Any]) -> str | None:
    if kind.ukey is None:
        return None
    return " ".join([kind.ukey.format(**args), *(f"{name}={args[name]}" for name in kind.apart if args.get(name))])


def backoff(failures: int, chance: float | None = None) -> float:
    """Give the seconds to wait after `failures` failures: 2, 4, 8 … 300, each shortened by up to half by chance.

    The jitter keeps jobs that failed together from trying together (AWS Architecture Blog, "Exponential Backoff
    And Jitter"). `chance` is in [0, 1); random when not given.
    """
    share = random.random() if chance is None else chance  # noqa: S311 (jitter, no secret)
    return min(LONGEST_BACKOFF_S, 2.0**failures) * (1.0 - share / 2.0)
