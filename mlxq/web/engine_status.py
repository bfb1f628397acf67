"""What the engines are asked right now. It changes too fast for rows, so the page asks them, while somebody looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from state.errors import EngineFailed
from state.service import SERVING, Service
from tasks.plan import health, request_stats
from tasks.plan.health import EngineStatus
from tasks.plan.request_stats import EngineRequest
from tasks.supervision import probe

PATIENCE_S = 0.5


@dataclass(frozen=True)
class Engine:
    """One engine at this moment."""

    status: EngineStatus
    requests: Sequence[EngineRequest]


Engines = Mapping[str, Engine]
"""By name; an engine that gave no answer is not in it."""


def ask(services: Sequence[Service], key: str) -> Engines:
    """Ask every engine that serves; one that hangs costs 0.5 s."""
    found = {one.name: _ask(one.port, key) for one in services if one.kind == "engine" and one.state in SERVING}
    return {name: engine for name, engine in found.items() if engine}


def _ask(port: int, key: str) -> Engine | None:
    try:
        body = probe.ask(port, "/v1/status", key, PATIENCE_S).body
    except EngineFailed:
        return None
    return Engine(health.read_status(body), request_stats.read_requests(body))


def busy(engines: Engines) -> bool:
    """Tell whether any engine has work."""
    return any(each.requests for each in engines.values())
