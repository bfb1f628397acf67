"""The current requests of the engines. They change too fast to be stored, so the page polls the engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from state.errors import EngineFailed
from state.service import SERVING, Service
from tasks.plan.health import EngineStatus
from tasks.plan.request_stats import EngineRequest
from tasks.supervision import own_requests, probe

TIMEOUT_S = 0.5


@dataclass(frozen=True)
class EngineView:
    """One engine at this moment, without the requests by which mlxq tests it."""

    status: EngineStatus
    requests: Sequence[EngineRequest]


Engines = Mapping[str, EngineView]
"""By name, without engines that did not respond."""


def ask(services: Sequence[Service], key: str) -> Engines:
    """Poll every serving engine; `key` is the engines' API key. A hung engine takes 0.5 s."""
    serving = [service for service in services if service.kind == "engine" and service.state in SERVING]
    engines = {service.name: _ask(service, key) for service in serving}
    return {name: engine for name, engine in engines.items() if engine}


def _ask(service: Service, key: str) -> EngineView | None:
    try:
        status, requests = probe.detailed_status(service.port, key, TIMEOUT_S, release=service.release)
    except EngineFailed:
        return None
    counted = [request for request in requests if not request.is_check]
    return EngineView(own_requests.without(status, requests, counted), counted)


def busy(engines: Engines) -> bool:
    """Return whether any engine has requests."""
    return any(engine.requests for engine in engines.values())
