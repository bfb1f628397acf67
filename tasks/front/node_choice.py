"""Which node a request goes to: of those that may be asked, one that works at the fewest requests of this front.

Loaded by front_program.py in the proxy's own environment, which has no mlxq: it imports nothing of it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

Deployment = dict[str, Any]
"""LiteLLM's, of which `model_info.id` is `GROUP@NODE` (tasks/front/plan.py)."""


@dataclass(eq=False)
class FrontRequest:
    """A request that is being answered."""

    node: str = ""
    """The node that it waits for; empty before one was chosen."""
    tried: set[str] = field(default_factory=set[str])
    """Nodes that it was sent to."""


class UnderWay:
    """The requests that this front answers now, each from the door to its end, whatever that end is.

    LiteLLM's `least-busy` adds and subtracts instead, in Redis. What a client that leaves, a front that dies or a Redis
    that is late never subtracts stays there for an hour, and keeps requests from an idle node.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._requests: set[FrontRequest] = set()
        self._current: ContextVar[FrontRequest | None] = ContextVar("request", default=None)

    @contextmanager
    def request(self) -> Generator[None]:
        """Have one more while the block lasts."""
        request = FrontRequest()
        self._requests.add(request)
        before = self._current.set(request)
        try:
            yield
        finally:
            self._current.reset(before)
            self._requests.discard(request)

    def sent(self, deployment: str) -> None:
        """Note the deployment that the current request goes to."""
        if request := self._current.get():
            request.node = _node(deployment)
            request.tried.add(request.node)

    def choose(self, deployments: Sequence[Deployment]) -> list[Deployment]:
        """Return a deployment of each `order` there is: LiteLLM takes that of the lowest, unless it retries another.

        One that works at the fewest requests; of several, one by chance, of twice the weight twice as often. Nodes that
        the current request was sent to come last.
        """
        request = self._current.get()
        tried: set[str] = request.tried if request else set()
        able = [entry for entry in deployments if _node_of(entry) not in tried] or deployments
        busy = Counter(other.node for other in self._requests if other is not request)
        orders = sorted({_order(entry) for entry in able})
        chosen = [_least_busy([entry for entry in able if _order(entry) == order], busy) for order in orders]
        if request and chosen:  # what comes before it is sent takes time, in which others choose
            request.node = _node_of(chosen[0])
        return chosen


def _least_busy(deployments: Sequence[Deployment], busy: Counter[str]) -> Deployment:
    fewest = min(busy[_node_of(entry)] for entry in deployments)
    equal = [entry for entry in deployments if busy[_node_of(entry)] == fewest]
    weights = [max(float(entry["litellm_params"].get("weight") or 1.0), 0.001) for entry in equal]
    return random.choices(equal, weights)[0]  # noqa: S311 (no secret)


def _order(deployment: Deployment) -> int:
    return int(deployment["litellm_params"].get("order") or 0)


def _node_of(deployment: Deployment) -> str:
    return _node(str(deployment["model_info"]["id"]))


def _node(deployment: str) -> str:
    return deployment.partition("@")[2]
