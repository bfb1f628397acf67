"""Interactive before background: requests of a background key stand back while others are at work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

LONGEST_WAIT_S = 60.0
"""Then a background request goes ahead all the same: it may be slow, but it is never starved."""


class Queue:
    """Who is at work. Background requests also go one at a time."""

    def __init__(self, longest_wait_s: float = LONGEST_WAIT_S) -> None:
        self._longest_wait_s = longest_wait_s
        self._at_work = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.waiting = 0

    @asynccontextmanager
    async def turn(self, *, background: bool) -> AsyncGenerator[float]:
        """Hold a turn; yield the seconds that were waited for it."""
        waited = await self._stand_back() if background else 0.0
        if background:
            yield waited
            return
        self._at_work += 1
        self._idle.clear()
        try:
            yield waited
        finally:
            self._at_work -= 1
            if not self._at_work:
                self._idle.set()

    async def _stand_back(self) -> float:
        began = time.monotonic()
        self.waiting += 1
        try:
            async with asyncio.timeout(self._longest_wait_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        finally:
            self.waiting -= 1
        return time.monotonic() - began
