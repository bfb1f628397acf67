"""What it means to hold a tier back: a smaller cache, fewer requests at once, and one tier after another. Pure.

macOS can panic under an engine, and an engine that is started again at each boot would take the machine down for good.
So after an unclean shutdown, tiers start small and one by one, the suspect last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from state.safe_mode import SafeMode
from state.service import GIVEN_UP, Service, State
from state.stack import Engine

MOST = 2
"""The highest level; a tier under which the machine goes down again after that is left down."""
SETTLE_S = 30.0
"""Seconds that a tier must have served before the next one starts."""


def reduced(engine: Engine, level: int) -> Engine:
    """Return the engine at a level: 1 has a quarter of the cache and half the requests at once, 2 no cache and one."""
    if level == 0:
        return engine
    if level == 1:
        return replace(engine, cache_bytes=engine.cache_bytes // 4, concurrency=max(1, engine.concurrency // 2))
    return replace(engine, cache_bytes=0, concurrency=1)


def suspect(ran: Sequence[Service]) -> Service:
    """Choose who most likely took the machine down: what was loading, else what held the most memory."""
    return max(
        ran, key=lambda service: (service.state == State.LOADING, service.memory_bytes or 0, service.started_at or 0.0)
    )


def may_start(name: str, services: Sequence[Service], safe_modes: Mapping[str, SafeMode], now: float) -> bool:
    """Return whether a tier may start, `now` in unix seconds; after an unclean boot each waits for those before it.

    Those with the lower level come first, and a tier that cannot start does not block the others.
    """
    order = sorted((mode.level, other) for other, mode in safe_modes.items() if mode.reason == "unclean_boot")
    names = [other for _, other in order]
    if name not in names:
        return True
    before = [service for service in services if service.desired == "up" and service.name in names[: names.index(name)]]
    return all(_settled(service, now) for service in before)


def _settled(service: Service, now: float) -> bool:
    if service.state in GIVEN_UP:
        return True
    if service.state != State.READY or service.ready_at is None:
        return False
    return not 0 <= now - service.ready_at < SETTLE_S  # ready in the future: the clock was set back since
