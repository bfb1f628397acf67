"""Keeps one request from taking down every tier in turn.

A request that was in flight when a tier died is tried once more elsewhere: most often the tier died by itself. When a
second tier dies of it, no other tier gets it for a while, also when the client sends it again. A tier that a user
killed or that hung looks the same as one that the request killed; so every PROBE_S one tier is tried with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

FORGET_S = 600.0
PROBE_S = 30.0
LIMIT = 2
"""Different tiers that may die with the request in flight."""
_KNOWN = 256


@dataclass
class _Deaths:
    at: float
    """Of the last death or the last probe."""
    tiers: set[str] = field(default_factory=set[str])


class PoisonGuard:
    """Remembers, for a while, which requests tiers died of. An answer clears the request's name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deaths: dict[str, _Deaths] = {}

    def crashed(self, fingerprint: str, tier: str, *, alone: bool = True) -> None:
        """Record that `tier` died while it had the request. Not counted when it was not `alone` in there.

        Of many requests that a tier had as it died one is to blame at most; that one is soon sent again.
        """
        if not alone:
            return
        deaths = self._deaths.pop(fingerprint, None) or _Deaths(0.0)
        deaths.at = self._clock()
        deaths.tiers.add(tier)
        self._deaths[fingerprint] = deaths
        if len(self._deaths) > _KNOWN:
            del self._deaths[next(iter(self._deaths))]

    def answered(self, fingerprint: Callable[[], str]) -> None:
        """Record that the request was answered. The fingerprint is computed only when there is something to clear."""
        if self._deaths:
            self._deaths.pop(fingerprint(), None)

    def killers(self, fingerprint: Callable[[], str]) -> set[str]:
        """Return the tiers that died of the request when they are too many to try another, else none.

        One request in PROBE_S passes all the same.
        """
        if not self._deaths:
            return set()
        deaths = self._deaths.get(fingerprint())
        if deaths is None or len(deaths.tiers) < LIMIT:
            return set()
        now = self._clock()
        if now - deaths.at >= FORGET_S:
            del self._deaths[fingerprint()]
            return set()
        if now - deaths.at >= PROBE_S:
            deaths.at = now
            deaths.tiers = set(sorted(deaths.tiers)[: LIMIT - 1])  # the next death closes it again
            return set()
        return set(deaths.tiers)
