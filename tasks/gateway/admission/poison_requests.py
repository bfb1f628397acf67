"""Keeps one request from taking down every tier in turn.

A request that was in flight when a tier died is tried once more elsewhere: most often the tier died by itself. When a
second tier dies of it, no other tier gets it for a while, also when the client sends it again. A tier that a user
killed or that hung looks the same as one that the request killed; so every PROBE_S one tier is tried with it, and
`mlxq up` lifts the refusal: it deletes the file in which the gateway keeps which requests it refuses.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from state import files
from state.paths import Home

FORGET_S = 600.0
PROBE_S = 30.0
LIMIT = 2
"""Different tiers that may die with the request in flight."""
_KNOWN = 256


def record_of(home: Home) -> Path:
    """Return the file that says which requests are refused: by the tiers that they took down, without their text."""
    return home.run / "refused.json"


def lift(home: Home) -> list[list[str]]:
    """Have the gateway take the requests again that it refuses; return the tiers that each took down."""
    record = record_of(home)
    try:
        refused: list[list[str]] = json.loads(record.read_bytes())
        record.unlink()
    except (OSError, ValueError):
        return []
    return refused


@dataclass
class _Deaths:
    at: float
    """Of the last death or the last probe."""
    tiers: set[str] = field(default_factory=set[str])


class PoisonGuard:
    """Remembers, for a while, which requests tiers died of. An answer clears the request's name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, record: Path | None = None) -> None:
        """`record`: where what is refused is written down; what it says of an earlier gateway is no longer true."""
        self._clock = clock
        self._deaths: dict[str, _Deaths] = {}
        self._record = record
        self._written = False
        if record:
            with contextlib.suppress(OSError):
                record.unlink()

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
        if len(deaths.tiers) >= LIMIT:
            self._write()

    def _write(self) -> None:
        """Write down what is refused. Where that fails, only time lifts it."""
        refused = [sorted(deaths.tiers) for deaths in self._deaths.values() if len(deaths.tiers) >= LIMIT]
        if self._record:
            with contextlib.suppress(OSError):
                files.replace_private(self._record, json.dumps(refused))
                self._written = True

    def _lifted(self) -> bool:
        """Return whether a user lifted what was refused, and forget it."""
        if not self._written or self._record is None or self._record.exists():
            return False
        self._deaths.clear()
        self._written = False
        return True

    def answered(self, fingerprint: Callable[[], str]) -> None:
        """Record that the request was answered. The fingerprint is computed only when there is something to clear."""
        if self._deaths and (deaths := self._deaths.pop(fingerprint(), None)) and len(deaths.tiers) >= LIMIT:
            self._write()

    def killers(self, fingerprint: Callable[[], str]) -> set[str]:
        """Return the tiers that died of the request when they are too many to try another, else none.

        One request in PROBE_S passes all the same.
        """
        if not self._deaths:
            return set()
        deaths = self._deaths.get(fingerprint())
        if deaths is None or len(deaths.tiers) < LIMIT or self._lifted():
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
