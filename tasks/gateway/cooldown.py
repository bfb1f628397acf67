"""Which engines are asked last for a moment, as they failed by themselves: refused, reset, 5xx, silence."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

COOLDOWN_S = 1.0
"""A refused connection costs less than a millisecond, and a hung engine is killed by the watchdog: so it is short."""


class Cooldown:
    """When each engine may be asked first again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}

    def failed(self, engine: str) -> None:
        """Record that an engine failed by itself. Not for a mistake of the caller, nor for one who left."""
        self._until[engine] = self._clock() + COOLDOWN_S

    def answered(self, engine: str) -> None:
        """Record that an engine answered."""
        self._until.pop(engine, None)

    def order(self, chain: Sequence[str], engine: Callable[[str], str]) -> list[str]:
        """Return a chain with the tiers whose engine failed a moment ago moved to its end: none is ever left out.

        `engine`: tier -> who serves it.
        """
        if not self._until:
            return list(chain)
        now = self._clock()
        return sorted(chain, key=lambda tier: self._until.get(engine(tier), 0.0) > now)
