"""Keeps one request from taking down every tier in turn.

A request that was in flight when a tier died is tried once more elsewhere: most often the tier died by itself.
When a second tier dies of it, nobody else gets it, also when the client sends it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

FORGET_S = 600
LIMIT = 2
"""Different tiers that may die with the request in flight."""
_KNOWN = 256


class Guard:
    """Remembers, for a while, which requests tiers died of. An answer clears the request's name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deaths: dict[str, tuple[float, set[str]]] = {}

    def crashed(self, fingerprint: str, tier: str) -> None:
        """Note that `tier` died while it had the request."""
        _, tiers = self._deaths.pop(fingerprint, (0.0, set()))
        self._deaths[fingerprint] = (self._clock(), tiers | {tier})
        if len(self._deaths) > _KNOWN:
            del self._deaths[next(iter(self._deaths))]

    def answered(self, fingerprint: Callable[[], str]) -> None:
        """Note that the request was answered. The fingerprint is asked for only when there is something to clear."""
        if self._deaths:
            self._deaths.pop(fingerprint(), None)

    def killers(self, fingerprint: Callable[[], str]) -> set[str]:
        """Give the tiers that died of the request when they are too many to try another, else none."""
        if not self._deaths:
            return set()
        when, tiers = self._deaths.get(fingerprint(), (0.0, set[str]()))
        return tiers if len(tiers) >= LIMIT and self._clock() - when < FORGET_S else set()
