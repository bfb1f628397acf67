"""Keeps one request from taking down every tier in turn.

A request that was in flight when an engine died is tried once more: most often the engine died by itself. When a
second engine dies of it, or the only one a second time, it is refused for a while, also when the client sends it again.
An engine that a user killed or that hung looks the same as one that the request killed; so every PROBE_S one engine is
tried with it, and `mlxq up` lifts the refusal: it deletes the file in which the gateway keeps what it refuses.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import field
from pathlib import Path

from state import files
from state.classes import dataclass
from state.paths import Home

FORGET_S = 600.0
PROBE_S = 30.0
LIMIT = 2
"""Different engines that may die with the request in flight; deaths, where there is one engine alone."""
_KNOWN = 256


def record_of(home: Home) -> Path:
    """Return the file that says which requests are refused: by the engines that they took down, without their text."""
    return home.run / "refused.json"


def lift(home: Home) -> list[list[str]]:
    """Have the gateway take the requests again that it refuses; return the engines that each took down."""
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
    engines: set[str] = field(default_factory=set[str])
    count: int = 0


class PoisonGuard:
    """Remembers, for a while, which requests engines died of. An answer clears the request's name."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, record: Path | None = None, *, engines: int = LIMIT
    ) -> None:
        """`record`: where what is refused is written down; what it says of an earlier gateway is no longer true.

        `engines`: how many there are that could be asked; tiers that share one count once.
        """
        self._clock = clock
        self._deaths: dict[str, _Deaths] = {}
        self._record = record
        self._written = False
        self._single = engines == 1
        if record:
            with contextlib.suppress(OSError):
                record.unlink()

    def crashed(self, fingerprint: str, engine: str, *, alone: bool = True) -> None:
        """Record that `engine` died while it had the request. Not counted when it was not `alone` in there.

        Of many requests that an engine had as it died one is to blame at most; that one is soon sent again.
        """
        if not alone:
            return
        deaths = self._deaths.pop(fingerprint, None) or _Deaths(0.0)
        deaths.at = self._clock()
        deaths.engines.add(engine)
        deaths.count += 1
        self._deaths[fingerprint] = deaths
        if len(self._deaths) > _KNOWN:
            del self._deaths[next(iter(self._deaths))]
        if self._refused(deaths):
            self._write()

    def _refused(self, deaths: _Deaths) -> bool:
        """Return whether a request took down as many engines as may be."""
        return (deaths.count if self._single else len(deaths.engines)) >= LIMIT

    def _write(self) -> None:
        """Write down what is refused. Where that fails, only time lifts it."""
        refused = [sorted(deaths.engines) for deaths in self._deaths.values() if self._refused(deaths)]
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
        if self._deaths and (deaths := self._deaths.pop(fingerprint(), None)) and self._refused(deaths):
            self._write()

    def killers(self, fingerprint: Callable[[], str]) -> set[str]:
        """Return the engines that died of the request when they are too many to try another, else none.

        One request in PROBE_S passes all the same.
        """
        if not self._deaths:
            return set()
        deaths = self._deaths.get(fingerprint())
        if deaths is None or not self._refused(deaths) or self._lifted():
            return set()
        now = self._clock()
        if now - deaths.at >= FORGET_S:
            del self._deaths[fingerprint()]
            return set()
        if now - deaths.at >= PROBE_S:
            deaths.at = now
            deaths.engines = set(sorted(deaths.engines)[: LIMIT - 1])  # the next death closes it again
            deaths.count = LIMIT - 1
            return set()
        return set(deaths.engines)
