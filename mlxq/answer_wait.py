"""What a request that was sent to the gateway waits for, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from mlxq import jobs_client, service_status
from state import secrets, service, stack, worker
from state.errors import EngineFailed, MlxqError
from state.paths import Home
from state.service import ROUTED, Service
from tasks.plan.request_stats import EngineRequest
from tasks.supervision import probe

PROBE_S = 1.0
TOLERANCE_S = 1.0
"""An engine counts from when it got a request, which is a moment after it was sent."""


def reason(home: Home, tier: str, waited_s: float) -> str:
    """Return what a request to `tier` waits for, which was sent `waited_s` seconds ago."""
    try:
        with jobs_client.reading(home) as db:
            engines = {served.name: served.engine.name for served in stack.tiers(db)}
            row = service.find(db, engines.get(tier, tier))
            running = [other for other in service.listing(db) if other.kind == "engine" and other.state in ROUTED]
            watched = worker.current(db) is not None
    except MlxqError as problem:
        return problem.message.rstrip(".")
    if row is None or row.state not in ROUTED:
        return _elsewhere(home, row, tier, running, waited_s, watched=watched)
    return _at(home, row, waited_s, tier)


def _elsewhere(
    home: Home, row: Service | None, tier: str, running: Sequence[Service], waited_s: float, *, watched: bool
) -> str:
    """Return why a tier does not answer, and who does meanwhile."""
    status = service_status.of_row(row).words if row else "not started"
    state = f"{tier} is {status}" + ("" if watched else ", and no worker is running")
    if not running:
        return f"{state}; no other tier serves"
    return f"{state}; the gateway asks the others: {'; '.join(_at(home, other, waited_s) for other in running)}"


def _at(home: Home, row: Service, waited_s: float, name: str = "") -> str:
    """Return what an engine that serves does; `name`: of the tier that is asked, where that is known."""
    name = name or row.name
    try:
        key = secrets.read(home.secrets).get(secrets.TIER, "")
        _, requests = probe.detailed_status(row.port, key, PROBE_S, release=row.release)
    except (EngineFailed, MlxqError):
        return f"{name} does not answer mlxq's question either"
    return f"{name} {place(requests, waited_s)}"


def place(requests: Sequence[EngineRequest], waited_s: float) -> str:
    """Return what an engine does, and how many requests it got before one of `waited_s` seconds."""
    ahead = sum(request.elapsed_s > waited_s + TOLERANCE_S for request in requests)
    if ahead:
        return f"has {ahead} other request{'' if ahead == 1 else 's'} ahead of this one"
    if any(request.phase == "prefill" for request in requests):
        return "reads the prompt"
    return "has the request" if requests else "has no request"
