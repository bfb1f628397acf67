"""The state of a service in one of five words, and the reason for it: the same on every surface. Pure.

`mlxq status`, `mlxq top`, `mlxq why`, the dashboard, `--json` and the metrics all take both from here.
"""

from __future__ import annotations

from collections.abc import Mapping

from mlxq import render
from state.classes import dataclass
from state.service import Observed, Service, State, observe

REASONS: Mapping[State, str] = {
    State.STOPPED: "",
    State.STARTING: "starting",
    State.LOADING: "loading",
    State.READY: "",
    State.STALLED: "no progress",
    State.DEGRADED: "failing probes",
    State.DRAINING: "draining",
    State.STOPPING: "stopping",
    State.BACKOFF: "restarting",
    State.DISK_UNAVAILABLE: "disk unavailable",
    State.CRASH_LOOP: "crash loop",
    State.FAILED: "needs attention",
}
WAITING = "waiting to start"
RESTARTING = "restarting"
ASLEEP = "asleep"
"""Stopped by mlxq; the next request starts it."""
NO_ANSWER = "no answer"
NO_PROCESS = "process is gone"
NO_WORKER = "no worker is running"
RETRIED = frozenset({State.BACKOFF, State.CRASH_LOOP})
"""Where the row says when the next start is."""


@dataclass(frozen=True)
class ServiceStatus:
    """How a service is."""

    state: Observed
    reason: str = ""
    """A short phrase; empty where the state says it all."""
    next_try_at: float | None = None
    """Unix seconds of the next start; None when none is planned."""

    @property
    def words(self) -> str:
        """State and reason, such as `crashed, restarting`; without the time, which changes every second."""
        return ", ".join(filter(None, (self.state, self.reason)))

    def text(self, now: float) -> str:
        """Return state, reason and the time to the next start, such as `crashed, restarting in 4s`.

        `now`: unix seconds. A start that is due has no time.
        """
        if self.next_try_at is None or self.next_try_at <= now:
            return self.words
        wait = f"in {render.span(self.next_try_at - now)}"
        return f"{self.words} {wait}" if self.reason == RESTARTING else f"{self.words}, retry {wait}"


def of_row(service: Service) -> ServiceStatus:
    """Return the status that the worker wrote down; it holds while a worker is running."""
    next_try_at = service.next_try_at if service.state in RETRIED else None
    return ServiceStatus(observe(service.state, service.desired), _reason(service), next_try_at)


def _reason(service: Service) -> str:
    if service.desired == "up" and service.state == State.STOPPED:
        return WAITING
    if service.desired == "up" and service.state == State.STOPPING:
        return RESTARTING
    if service.state == State.STOPPED and service.asleep:
        return ASLEEP
    return REASONS[service.state]


def unwatched(service: Service, *, alive: bool, answers: bool) -> ServiceStatus:
    """Return the status where no worker is running.

    `alive`: whether the recorded process exists; `answers`: whether its port does.
    """
    if alive:
        return ServiceStatus(Observed.HEALTHY) if answers else ServiceStatus(Observed.DOWN, NO_ANSWER)
    if service.desired == "down":
        return ServiceStatus(Observed.STOPPED, ASLEEP if service.asleep else "")
    if service.state == State.FAILED:
        return of_row(service)
    if service.state in {State.STOPPED, State.DISK_UNAVAILABLE}:
        return ServiceStatus(Observed.DOWN, NO_WORKER)
    return ServiceStatus(Observed.CRASHED, NO_WORKER if service.state in RETRIED else NO_PROCESS)
