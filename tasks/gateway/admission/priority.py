"""Interactive before background: requests of a background key stand back while others are at work.

The lines of batches come last: they begin PAUSE_S after the last other request, and one that comes interrupts them, as
an engine that is decoding answers a newcomer's first token later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from tasks.gateway.request_context import Call

Answer = TypeVar("Answer")
LONGEST_WAIT_S = 60.0
"""Then a background request goes ahead all the same: it may be slow, but it is never starved."""

PAUSE_S = 1.0
"""How long lines wait after a request: an agent's next turn comes when its tools have run. A line that began in between
is answered for nothing, and an engine that has begun to read its prompt reads a whole step of it (2,048 tokens in
mlx-lm, seconds on a small Mac) before it takes the turn's.
"""


LONGEST_STOP_S = 0.1
"""How long a request waits for the lines that it interrupts; they take a millisecond."""


class _Interrupted(Exception):
    """A request came before a line was answered."""


@dataclass(frozen=True)
class _LineAtWork:
    """A line that a request may interrupt."""

    call: Call
    limit: asyncio.Timeout
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once its connection to the engine is closed."""


class Queue:
    """Who is at work."""

    def __init__(self, longest_wait_s: float = LONGEST_WAIT_S, pause_s: float = PAUSE_S) -> None:
        self._longest_wait_s = longest_wait_s
        self._pause_s = pause_s
        self._spare_at = 0.0
        """When lines may begin, in monotonic seconds, where no request is at work."""
        self._at_work = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._lines: dict[str, _LineAtWork] = {}
        self._overdue = asyncio.Lock()
        """Held by the one line that runs beside interactive requests, because it had waited for too long."""
        self.waiting = 0

    @asynccontextmanager
    async def turn(self, *, background: bool) -> AsyncGenerator[float]:
        """Hold a turn; yield the seconds that were waited for it."""
        if background:
            yield await self._stand_back()
            return
        self._at_work += 1
        self._idle.clear()
        try:
            await self._interrupt()
            yield 0.0
        finally:
            self._at_work -= 1
            if not self._at_work:
                self._spare_at = time.monotonic() + self._pause_s
                self._idle.set()

    async def in_spare_time(self, call: Call, serve: Callable[[], Awaitable[Answer]]) -> Answer:
        """Answer a line of a batch in spare time, again from its beginning where another request came.

        Returns what `serve` returns.

        A line that has waited for the longest time is answered beside others, one at a time.
        """
        until = time.monotonic() + self._longest_wait_s
        while await self._spare_before(until):
            with suppress(_Interrupted):
                return await self._uninterrupted(call, serve)
            call.restart()
            if time.monotonic() > until:
                break
        async with self._overdue:
            return await serve()

    async def _spare_before(self, until: float) -> bool:
        """Wait until lines may begin; return whether that is before `until`, in monotonic seconds."""
        while await self._idle_before(until):
            if (pause_s := self._spare_at - time.monotonic()) <= 0:
                return True
            if self._spare_at > until:
                break
            await asyncio.sleep(pause_s)
        return False

    async def _uninterrupted(self, call: Call, serve: Callable[[], Awaitable[Answer]]) -> Answer:
        """Answer a line. Raises _Interrupted where a request came before."""
        line = _LineAtWork(call, asyncio.timeout(None))
        try:
            async with line.limit:
                self._lines[call.id] = line
                return await serve()
        except TimeoutError as problem:
            if not line.limit.expired():
                raise
            raise _Interrupted from problem
        finally:
            self._lines.pop(call.id, None)
            line.gone.set()

    async def _interrupt(self) -> None:
        """Stop the lines at work whose answers have not begun to be sent; each once, as it takes a moment to end.

        The engine sees their connections closed before it gets the request, and reads its prompt alone.
        """
        now = asyncio.get_running_loop().time()
        stopped = [line for line in self._lines.values() if not line.call.status]
        for line in stopped:
            del self._lines[line.call.id]
            line.limit.reschedule(now)
        with suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_STOP_S):
                for line in stopped:
                    await line.gone.wait()

    async def _stand_back(self) -> float:
        began = time.monotonic()
        await self._idle_before(began + self._longest_wait_s)
        return time.monotonic() - began

    async def _idle_before(self, until: float) -> bool:
        """Wait for others; return whether none is at work before `until`, in monotonic seconds."""
        self.waiting += 1
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await self._idle.wait()
        except TimeoutError:
            return False
        finally:
            self.waiting -= 1
        return True
