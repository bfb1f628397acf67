"""Every kind of job there is, as data: the command line puts jobs in by it, the worker registers its tasks by it.

Importing this loads neither huey nor any task, so that a command starts at once. A kind's name is stored in
rows and never changes; a test holds the list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from state.classes import dataclass
from state.job import NewJob, Request

LONGEST_BACKOFF_S = 300.0


@dataclass(frozen=True)
class Kind:
    """What holds for every job of one kind."""

    name: str
    meaning: str
    queue: Literal["ops", "heavy", "bulk"] = "ops"
    max_attempts: int = 1
    """How often a job is tried in all, when its error says that trying again can help."""
    limit_s: float = 120.0
    """How long one attempt may run."""
    unique_key: str | None = None
    """Makes a live job unique, e.g. `pull:{source}`; a name in braces is an argument."""
    key_args: Sequence[str] = ()
    """Arguments that ask for something else when they are set; they belong to the unique key then."""
    priority: int = 0
    request: Request | None = None
    """What its jobs ask for their service, as users ask it."""
    repeats: bool = False
    """Whether a running job runs once more when it is enqueued again: it may have read what has changed since."""
    longest_backoff_s: float = LONGEST_BACKOFF_S
    """The longest wait between two attempts: 72 attempts at most 30 minutes apart take about a day."""


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("detect", "inspect this machine", max_attempts=2, limit_s=60, unique_key="detect"),
        Kind("score", "choose the models", limit_s=60, unique_key="score"),
        Kind(
            "pull",
            "download a model",
            "heavy",
            max_attempts=8,
            limit_s=86400,
            unique_key="pull:{source}",
            key_args=("revision", "force", "code"),
        ),
        Kind(
            "configure",
            "write the gateway's configuration",
            max_attempts=3,
            limit_s=300,
            unique_key="configure",
            repeats=True,
        ),
        Kind(
            "start",
            "start a service",
            max_attempts=3,
            limit_s=900,
            unique_key="service:{service}",
            priority=10,
            request="up",
            repeats=True,
        ),
        Kind(
            "stop",
            "stop a service",
            max_attempts=2,
            unique_key="service:{service}:stop",
            priority=10,
            request="down",
        ),
        Kind(
            "drain",
            "stop a service after its last request",
            max_attempts=2,
            limit_s=7200,
            unique_key="service:{service}:stop",
            priority=10,
            request="down",
        ),
        Kind(
            "restart",
            "restart a service",
            max_attempts=3,
            limit_s=900,
            unique_key="service:{service}",
            priority=20,
            request="restart",
            repeats=True,
        ),
        Kind(
            "load",
            "load a model that is asked for",
            limit_s=3600,
            unique_key="load:{service}",
            priority=10,
        ),
        Kind(
            "pull_on_demand",
            "download a model that is asked for",
            "heavy",
            max_attempts=8,
            limit_s=86400,
            unique_key="pull_on_demand:{model}",
        ),
        Kind("unload", "stop a model until it is asked for again", limit_s=7200, unique_key="unload:{engine}"),
        Kind(
            "assign",
            "assign a model to a tier",
            unique_key="assign:{tier}",
            key_args=("model", "quant", "alone", "options"),
            repeats=True,
        ),
        Kind(
            "serve_retrieval",
            "serve an embedding or reranking model",
            unique_key="serve_retrieval:{purpose}",
            key_args=("model",),
            repeats=True,
        ),
        Kind(
            "retire",
            "remove a service",
            max_attempts=2,
            limit_s=900,
            unique_key="retire:{service}",
            priority=10,
        ),
        Kind("smoke_test", "ask each engine for an answer", max_attempts=2, limit_s=300, unique_key="smoke_test"),
        Kind(
            "verify_weights",
            "check a model's files against their hashes",
            "heavy",
            limit_s=7200,
            unique_key="verify_weights:{folder}",
        ),
        Kind("remove_weights", "delete a model's files", unique_key="remove_weights:{folder}"),
        Kind("prune_cache", "delete the prompts that engines keep", unique_key="prune_cache"),
        Kind("bench", "measure a model's speed", "heavy", limit_s=3600, unique_key="bench:{target}"),
        Kind(
            "tune",
            "find out what makes a model's answers faster",
            "heavy",
            max_attempts=2,
            limit_s=3600,
            unique_key="tune:{target}",
            key_args=("service",),
        ),
        Kind("untune", "use nothing of what made answers faster", unique_key="untune:{target}"),
        Kind(
            "install_engine",
            "install an engine and prove it",
            "heavy",
            max_attempts=4,
            limit_s=3600,
            unique_key="engine:{engine}",
            key_args=("version", "force"),
        ),
        Kind(
            "add_engine",
            "install the engine that a chosen model needs",
            "heavy",
            limit_s=900,
            unique_key="engine:{engine}:add",
        ),
        Kind(
            "upgrade_engine",
            "install a newer engine and compare it with the old one",
            "heavy",
            max_attempts=2,
            limit_s=7200,
            unique_key="engine:{engine}:upgrade",
        ),
        Kind(
            "prove_reuse",
            "measure how much of a prompt an engine reads again",
            "heavy",
            max_attempts=2,
            limit_s=900,
            unique_key="engine:{engine}:reuse:{version}",
        ),
        Kind(
            "settle_engine",
            "look whether a tier serves on a new engine",
            limit_s=120,
            unique_key="engine:{engine}:settle:{tier}",
        ),
        Kind("rollback_engine", "go back to the engine that was used before", unique_key="engine:{engine}:rollback"),
        Kind("remove_engine", "delete an engine", limit_s=300, unique_key="engine:{engine}:remove:{version}"),
        Kind(
            "install_front",
            "install the front's program",
            "heavy",
            max_attempts=4,
            limit_s=3600,
            unique_key="install_front",
        ),
        Kind("upgrade", "upgrade mlxq", max_attempts=2, limit_s=7200, unique_key="upgrade"),
        Kind("downgrade", "take the latest upgrade of mlxq back", limit_s=300, unique_key="upgrade:back"),
        Kind(
            "change_node",
            "change what a node of the fleet serves",
            limit_s=86400,
            unique_key="node:{node}",
            key_args=("choice", "intent"),
        ),
        Kind("upgrade_node", "upgrade mlxq on a node of the fleet", limit_s=10800, unique_key="node:{node}:upgrade"),
        Kind("rotate", "rotate the logs", limit_s=300, unique_key="rotate"),
        Kind("prune_jobs", "delete old jobs", unique_key="prune_jobs"),
        Kind(
            "notify",
            "deliver notifications to a target",
            max_attempts=80,
            limit_s=60,
            unique_key="notify:{target}",
            repeats=True,
            longest_backoff_s=1800.0,
        ),
        Kind(
            "batch",
            "answer the requests of a batch",
            "bulk",
            max_attempts=20,
            limit_s=86400,
            unique_key="batch:{batch}",
        ),
        Kind("write_batch_output", "write the answers of a batch to a file", unique_key="write_batch_output:{batch}"),
        Kind("add_schedule", "add a schedule", unique_key="add_schedule:{name}", key_args=("cron", "words", "missed")),
        Kind("run_schedule", "enqueue what a schedule runs", unique_key="run_schedule:{name}"),
        Kind("check_catalog", "check the model catalog", limit_s=1800, unique_key="check_catalog"),
        Kind("check_upgrade", "look for a newer version of mlxq", unique_key="check_upgrade"),
        Kind("check_engine", "look for a newer version of an engine", unique_key="check_engine:{engine}"),
        Kind("notify_test", "deliver a test message to a target", limit_s=60, unique_key="notify_test:{target}"),
    )
}


def new(
    name: str,
    args: Mapping[str, Any] | None = None,
    *,
    needs: Sequence[str | int] = (),
    after: Sequence[str | int] = (),
    label: str = "",
) -> NewJob:
    """Return a job of this kind, ready to enqueue. Raises KeyError for a kind that is not in the table."""
    kind = KINDS[name]
    arguments = dict(args or {})
    return NewJob(
        kind=name,
        args=arguments,
        queue=kind.queue,
        priority=kind.priority,
        unique_key=_unique(kind, arguments),
        max_attempts=kind.max_attempts,
        needs=needs,
        after=after,
        label=label,
        service=arguments.get("service"),
        request=_request(kind, arguments),
        repeats=kind.repeats,
    )


def _request(kind: Kind, args: Mapping[str, Any]) -> Request | None:
    """Return what a job asks for its service; what the watchdog enqueues is no request."""
    if args.get("unwanted") or args.get("reason", "asked") != "asked":
        return None
    return "purge" if args.get("purge") else kind.request


def _unique(kind: Kind, args: Mapping[str, Any]) -> str | None:
    if kind.unique_key is None:
        return None
    return " ".join(
        [kind.unique_key.format(**args), *(f"{name}={args[name]}" for name in kind.key_args if args.get(name))]
    )


def backoff(failures: int, chance: float | None = None, longest_s: float = LONGEST_BACKOFF_S) -> float:
    """Return the seconds to wait after `failures` failures: 2, 4, 8 … 300, each shortened by up to half by chance.

    The jitter keeps jobs that failed together from trying together (AWS Architecture Blog, "Exponential Backoff
    And Jitter"). `chance` is in [0, 1); random when not given.
    """
    import random  # it brings OpenSSL along, 6 ms of every command

    share = random.random() if chance is None else chance  # noqa: S311 (jitter, no secret)
    return min(longest_s, 2.0**failures) * (1.0 - share / 2.0)
