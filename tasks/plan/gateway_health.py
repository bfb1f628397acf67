"""Whether the gateway hangs, by what its process does while it does not answer. Pure: samples in, a verdict out.

Its callers have no other gateway to ask, so that a hang has to be seen in seconds, also on a busy machine; and a busy
machine must not pass for a hang. Time alone cannot tell the two apart, what the process did with the time can:
an answer costs it a millisecond. One that sleeps while a question waits, or that has had the processor for a thousand
answers and gives none, hangs. One that waits for the processor, or for its memory to come back from disk, does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

STOPPED_S = 1.5
"""For one that was stopped by a signal: sure of its silence, in no hurry with a debugger."""
SILENT_S = 3.0
"""No verdict before it was silent for so long, whatever it does."""
ASLEEP_S = 2.0
SPENT_S = 1.5
"""CPU time without an answer after which it spins."""
MISSES = 3
"""Questions in a row without an answer, as the one who asks may be short of the processor himself."""
STARVED_S = 30.0
"""The end of all patience: a process that got no processor for so long is ended in the hope that it helps."""
AFTER_WAKE_S = 15.0


@dataclass(frozen=True)
class GatewaySample:
    """What one look saw. Times are monotonic seconds."""

    at: float
    answered: bool
    stopped: bool = False
    """Whether a signal has stopped the process."""
    waits: bool | None = None
    """Whether it waits for a processor or the disk; None where the system does not say."""
    cpu_s: float = 0.0
    """CPU time since its start."""


@dataclass(frozen=True)
class GatewayTrack:
    """What is remembered of earlier looks. Times are monotonic seconds."""

    answered_at: float
    cpu_s: float
    """CPU time at its last answer."""
    seen_cpu_s: float
    """CPU time at the last look."""
    stopped_since: float | None = None
    asleep_since: float | None = None
    misses: int = 0


def begin(at: float, cpu_s: float) -> GatewayTrack:
    """Start to follow a gateway that just became ready, or was adopted."""
    return GatewayTrack(at, cpu_s, cpu_s)


def follow(track: GatewayTrack, sample: GatewaySample) -> GatewayTrack:
    """Add one look."""
    if sample.answered:
        return begin(sample.at, sample.cpu_s)
    asleep = not sample.waits and sample.cpu_s <= track.seen_cpu_s
    return replace(
        track,
        seen_cpu_s=sample.cpu_s,
        stopped_since=(track.stopped_since or sample.at) if sample.stopped else None,
        asleep_since=(track.asleep_since or sample.at) if asleep else None,
        misses=track.misses + 1,
    )


def hangs(track: GatewayTrack, now: float, *, woke_at: float | None = None) -> bool:
    """Return whether it hangs. `woke_at`: when the machine last woke from sleep, in monotonic seconds."""
    if woke_at is not None and now - woke_at < AFTER_WAKE_S:
        return False
    if track.stopped_since is not None and now - track.stopped_since > STOPPED_S:
        return True
    if track.misses < MISSES or now - track.answered_at <= SILENT_S:
        return False
    slept = track.asleep_since is not None and now - track.asleep_since > ASLEEP_S
    return slept or track.seen_cpu_s - track.cpu_s > SPENT_S or now - track.answered_at > STARVED_S
