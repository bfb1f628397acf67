"""What the watchdog does about a service at one look. Pure: the one place that decides.

Level-triggered: it looks at what is, not at what happened, so a lost event costs two seconds and never a service.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from state.service import ALIVE, Doing, Service
from tasks.plan import restart


class Care(StrEnum):
    """What to do about a service."""

    LEAVE = "leave"  # as it should be, or a person must act
    SETTLE = "settle"  # it died unnoticed: write that down, plan the next try
    START = "start"  # wanted, not there, and its time has come
    STOP = "stop"  # not wanted any more
    REPLACE = "replace"  # runs, but not what is wanted now
    JUDGE = "judge"  # runs: see how it is


def care(service: Service, *, alive: bool, now: float, fingerprint: str | None, held: bool) -> Care:
    """Decide. `alive`: whether the recorded process lives; `now`: unix seconds.

    `fingerprint`: of what is wanted now; None when that cannot be told at the moment. `held`: whether a job is
    starting or stopping it.
    """
    if service.identity and not alive and service.doing in ALIVE - {Doing.STOPPING}:
        return Care.SETTLE
    if service.wanted == "down":
        return Care.LEAVE if service.doing == Doing.STOPPED else Care.STOP
    if service.successor or service.doing == Doing.DRAINING:
        return Care.REPLACE  # a job is at it, and takes this as asked already; or its worker was killed
    if service.doing == Doing.FAILED:
        return Care.LEAVE
    if service.doing in {Doing.READY, Doing.STALLED, Doing.DEGRADED}:
        return Care.REPLACE if fingerprint not in {None, service.fingerprint} else Care.JUDGE
    return Care.LEAVE if held or restart.left_s(service.next_try_at, now) else Care.START


def mends(service: Service, why: str, *, this_boot: bool) -> bool:
    """Tell whether a restart mends a death or a hang, which a person may have switched off.

    To bring up what is wanted, after a reboot or a start that was cut short, is no mending. `this_boot`: whether the
    machine has not been restarted since the service was last started.
    """
    if why == "gone":
        return this_boot and service.doing in {Doing.BACKOFF, Doing.FLAPPING}
    return why in {"hung", "escalated"}


def escalate(services: Sequence[Service]) -> bool:
    """Tell whether the trouble is above any one tier: all that are wanted flap, behind a gateway that serves."""
    wanted = [one for one in services if one.wanted == "up"]
    engines = [one.doing for one in wanted if one.kind == "engine"]
    serving = any((one.kind, one.doing) == ("gateway", Doing.READY) for one in wanted)
    return serving and len(engines) > 1 and set(engines) == {Doing.FLAPPING}
