"""How much of a prompt an engine did not read again: as it tells, or as its status shows where it does not.

vllm-mlx 0.6.0 says nothing of it in an answer. Its status lists the requests at work with their tokens, and counts the
tokens that were not read again; that counter grows by one request's where no other one began meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from dataclasses import dataclass, field

from tasks.gateway.dialects.usage import ReuseSource, Tokens
from tasks.gateway.engine_client import EngineClient
from tasks.gateway.routes import Route
from tasks.plan import health, request_stats

STATUS = "/v1/status"
COUNT_S = 0.25
"""How long a request waits for the counter where it is not known: an engine that hangs must be left in time."""
SETTLE_S, LONGEST_SETTLE_S = 1.0, 10.0
"""How long the end of an answer waits for its engine's status: as long as the request took, within these bounds. Where
a machine is so busy that a request takes many times as long, so does the status."""


class ReportedReuse:
    """The reuse of an engine that tells it; one that says nothing has read all of the prompt."""

    def look(self) -> None:
        """Do nothing."""

    async def settle(self) -> None:
        """Do nothing."""

    def cached(self, tokens: Tokens) -> int:
        """Return what the answer says."""
        return min(tokens.cached or 0, tokens.prompt)


@dataclass
class _EngineCount:
    """The account of one engine."""

    counted: int | None = None
    """Its counter at the last look; None where it is not known."""
    waiting: set[ObservedReuse] = field(default_factory=set["ObservedReuse"])
    """Requests that have not been looked at."""


class ReuseMeter:
    """Watches the engines that do not tell."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._engines: dict[str, _EngineCount] = defaultdict(_EngineCount)

    async def begin(self, route: Route) -> ReuseSource:
        """Return the reuse of a request that is about to be sent."""
        if route.can.cached_tokens:
            return ReportedReuse()
        engine = self._engines[route.engine]
        if engine.counted is None and not engine.waiting:
            engine.counted = await self._count(route)
        reuse = ObservedReuse(self, route, engine)
        for other in engine.waiting:
            other.alone = reuse.alone = False
        engine.waiting.add(reuse)
        return reuse

    def end(self, reuse: ReuseSource) -> None:
        """Forget a request; one that was not looked at may have been counted, so that the counter is unknown."""
        if not isinstance(reuse, ObservedReuse):
            return
        reuse.cancel()
        if reuse in reuse.engine.waiting:
            reuse.engine.waiting.remove(reuse)
            reuse.engine.counted = None

    async def _count(self, route: Route) -> int | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COUNT_S):
                status = await self._client.get(route, STATUS)
                return None if status is None else health.read_status(status).cached_tokens
        return None

    async def look(self, reuse: ObservedReuse) -> None:
        """Read an engine's status for one request."""
        engine, status = reuse.engine, await self._client.get(reuse.route, STATUS)
        if status is None or reuse not in engine.waiting:
            return
        engine.waiting.remove(reuse)
        counted, before = health.read_status(status).cached_tokens, engine.counted
        if reuse.alone and before is not None and counted >= before:
            reuse.grown = counted - before
        engine.counted = counted
        for request in request_stats.read_requests(status):
            reuse.listed.setdefault(request.prompt_tokens, request.cached_tokens)


class ObservedReuse:
    """The reuse of a request as its engine's status shows it."""

    def __init__(self, meter: ReuseMeter, route: Route, engine: _EngineCount) -> None:
        self._meter = meter
        self._look: asyncio.Task[None] | None = None
        self.route = route
        self.engine = engine
        self.alone = True
        """Whether no other request could have moved the counter."""
        self.grown = 0
        self.listed: dict[int, int] = {}
        """Tokens of the prompts at work -> those of them that were not read again."""
        self._began = time.monotonic()

    def look(self) -> None:
        """Begin to look, once."""
        if self._look is None:
            self._look = asyncio.create_task(self._meter.look(self))

    async def settle(self) -> None:
        """Wait for the look, within its bounds.

        Once an answer is out its request is listed no more, and the counter tells of one that was alone only.
        """
        if self._look is None and not self.alone:
            return
        self.look()
        assert self._look is not None
        took = time.monotonic() - self._began
        await asyncio.wait({self._look}, timeout=min(max(SETTLE_S, took), LONGEST_SETTLE_S))

    def cancel(self) -> None:
        """Look no more."""
        if self._look is not None:
            self._look.cancel()

    def cached(self, tokens: Tokens) -> int:
        """Return what the list says of a prompt of this length, else what the counter grew by.

        With images the list says 0 always. As text, a prompt that is known whole is counted, and read again.
        """
        if self.route.vision:
            return min(self.grown, tokens.prompt)
        return self.listed.get(tokens.prompt, self.grown if self.grown < tokens.prompt else 0)
