"""The requests that mlxq itself sends to engines, which belong in no count and no chart: no client sent them.

An engine counts all requests alike, so that what the worker sent is subtracted from what it says.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field, replace
from typing import Any, cast

from state.classes import dataclass
from tasks.plan.health import EngineStatus
from tasks.plan.request_stats import EngineRequest, OwnRequests


@dataclass
class _Sent:
    """What was sent to one engine."""

    ended: OwnRequests = field(default_factory=OwnRequests)
    limits: list[int] = field(default_factory=list[int])
    """Longest answers, in tokens, of the requests that have not ended: by these they are known in an engine's list."""


_by_port: dict[int, _Sent] = {}
_changing = threading.Lock()


@contextmanager
def sending(port: int, max_tokens: int) -> Generator[list[Any]]:
    """Count a request to the engine on `port`. Append the body of its answer to what is yielded; none for no answer."""
    answers: list[Any] = []
    with _changing:
        sent = _by_port.setdefault(port, _Sent())
        sent.limits.append(max_tokens)
    try:
        yield answers
    finally:
        with _changing:
            sent.limits.remove(max_tokens)
            for answer in answers:
                sent.ended = _plus(sent.ended, answer)


def totals(port: int) -> OwnRequests:
    """Return what the engine on `port` answered this worker, since the worker began."""
    with _changing:
        return _by_port.get(port, _Sent()).ended


def others(
    port: int, status: EngineStatus, requests: Sequence[EngineRequest]
) -> tuple[EngineStatus, list[EngineRequest]]:
    """Return what an engine says of itself without the requests that this worker waits for at the moment."""
    with _changing:
        limits = list(_by_port.get(port, _Sent()).limits)
    counted: list[EngineRequest] = []
    for request in requests:
        if request.max_tokens in limits:
            limits.remove(request.max_tokens)
        else:
            counted.append(request)
    return without(status, requests, counted), counted


def without(status: EngineStatus, requests: Sequence[EngineRequest], counted: Sequence[EngineRequest]) -> EngineStatus:
    """Return a status that counts only these of the listed requests."""
    waiting = sum(request.phase == "queued" for request in requests) - sum(row.phase == "queued" for row in counted)
    running = len(requests) - len(counted) - waiting
    return replace(
        status,
        num_running=max(0, status.num_running - running),
        num_waiting=max(0, status.num_waiting - waiting),
    )


def _plus(ended: OwnRequests, answer: Any) -> OwnRequests:
    """Add one answered request."""
    usage: Mapping[str, Any] = _object(_object(answer).get("usage"))
    return OwnRequests(
        ended.requests + 1,
        ended.prompt_tokens + _count(usage.get("prompt_tokens")),
        ended.completion_tokens + _count(usage.get("completion_tokens")),
        ended.cached_tokens + _count(_object(usage.get("prompt_tokens_details")).get("cached_tokens")),
    )


def _object(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
