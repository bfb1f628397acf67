"""What the watchdog does about a service at one look. Pure: the one place that decides.

Level-triggered: it looks at what is, not at what happened, so a lost event costs two seconds and never a service.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from state.service import ALIVE, Service, State
from tasks.plan import restart


class Action(StrEnum):
    """What to do about a service."""

    NONE = "leave"  # as it should be, or the user must act
    RECORD_EXIT = "settle"  # it died unnoticed: write that down, plan the next try
    START = "start"  # wanted, not there, and its time has come
    STOP = "stop"  # not wanted any more
    REPLACE = "replace"  # runs, but not what is wanted now
    PROBE = "judge"  # runs: see how it is


def decide(service: Service, *, alive: bool, now: float, spec_hash: str | None, locked: bool) -> Action:
    """Decide. `alive`: whether the recorded process lives; `now`: unix seconds.

    `spec_hash`: of what is wanted now; None when that cannot be told at the moment. `locked`: whether a job is
    starting or stopping it.
    """
    if service.identity and not alive and service.state in ALIVE - {State.STOPPING}:
        return Action.RECORD_EXIT
    if service.desired == "down":
        return Action.NONE if service.state == State.STOPPED else Action.STOP
    if service.successor or service.state == State.DRAINING:
        return Action.REPLACE  # a job is doing it already; or its worker was killed
    if service.state in {State.FAILED, State.DISK_UNAVAILABLE}:
        return Action.NONE
    if service.state in {State.READY, State.STALLED, State.DEGRADED}:
        return Action.REPLACE if spec_hash not in {None, service.spec_hash} else Action.PROBE
    return Action.NONE if locked or restart.left_s(service.next_try_at, now) else Action.START


def is_repair(service: Service, reason: str, *, this_boot: bool) -> bool:
    """Return whether a restart repairs an exit or a hang, which `auto-health-check` can switch off.

    To bring up what is wanted, after a reboot or a start that was cut short, is no repair. `this_boot`: whether the
    machine has not been restarted since the service was last started.
    """
    if reason == "gone":
        return this_boot and service.state in {State.BACKOFF, State.CRASH_LOOP}
    return reason in {"hung", "escalated"}


def escalate(services: Sequence[Service]) -> bool:
    """Return whether the cause is shared by all tiers: each is in a crash loop, behind a gateway that serves."""
    wanted = [service for service in services if service.desired == "up"]
    engines = [service.state for service in wanted if service.kind == "engine"]
    serving = any((service.kind, service.state) == ("gateway", State.READY) for service in wanted)
    return serving and len(engines) > 1 and set(engines) == {State.CRASH_LOOP}
