"""What the answers of an engine mean. Pure: samples in, a verdict out.

`/health` is not asked: it stays green while every request fails. An engine is well when its steps grow while
requests run, and when an idle one still makes a token now and then. A busy engine is slow, not dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any, cast

from state.classes import dataclass


@dataclass(frozen=True)
class EngineStatus:
    """`/v1/status`, as far as it is used."""

    loaded: bool
    """False for an engine that gave its memory back while idle; it loads again when asked."""
    failed: str
    """Why the last load failed; empty when it did not."""
    steps_executed: int
    num_running: int
    num_waiting: int
    prefilling: bool
    """Whether a running request still reads its prompt, where one step takes longest."""
    requests: int
    """Requests ended since the start."""
    prompt_tokens: int
    completion_tokens: int
    metal_bytes: int | None
    """Memory in use on the GPU; None where there is no Metal."""
    cached_tokens: int = 0
    """Prompt tokens that were not read again since the start."""

    @property
    def has_requests(self) -> bool:
        """Whether it answers any, or has some wait."""
        return bool(self.num_running or self.num_waiting)


def read_status(body: Any) -> EngineStatus:
    """Read `/v1/status` of vllm-mlx and of rapid-mlx; a missing or odd field counts as nothing."""
    status = _mapping(body)
    residency = _mapping(status.get("residency"))
    running = [_mapping(request) for request in _list(status.get("requests"))]
    metal = _mapping(status.get("metal")).get("active_memory_gb")
    return EngineStatus(
        loaded=status.get("status") != "not_loaded",
        failed=str(residency.get("last_error") or "") if residency.get("state") == "failed" else "",
        steps_executed=_int(status.get("steps_executed")),
        num_running=_int(status.get("num_running")),
        num_waiting=_int(status.get("num_waiting")),
        prefilling=any(request.get("phase") == "prefill" for request in running),
        requests=_int(status.get("total_requests_processed")),
        prompt_tokens=_int(status.get("total_prompt_tokens")),
        completion_tokens=_int(status.get("total_completion_tokens")),
        metal_bytes=int(metal * 1e9) if isinstance(metal, int | float) else None,
        cached_tokens=_int(_mapping(status.get("cache")).get("tokens_saved")),
    )


def read_models(body: Any) -> set[str]:
    """Read the names in `/v1/models`."""
    entries = [_mapping(entry) for entry in _list(_mapping(body).get("data"))]
    return {str(entry["id"]) for entry in entries if "id" in entry}


def read_choices(body: Any) -> list[Any]:
    """Read the choices of a completion; empty when it is none."""
    return _list(_mapping(body).get("choices"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _int(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0


class Verdict(StrEnum):
    """How an engine is."""

    HEALTHY = "healthy"  # it answers, and moves when it has work
    WAITING = "waiting"  # something is odd, for less long than its limit
    STALLED = "stalled"  # it has work and does not move
    SILENT = "silent"  # it takes connections and says nothing
    BROKEN = "broken"  # it answers, and requests fail


@dataclass(frozen=True)
class Limits:
    """Seconds of patience."""

    silent_s: float = 8.0
    frozen_s: float = 4.0
    """For one that was stopped by a signal: sure of its silence, in no hurry with a debugger."""
    stalled_s: float = 20.0
    prefill_s: float = 45.0
    """One step reads up to 1024 prompt tokens: at 23 tokens/s it takes this long."""
    after_wake_s: float = 15.0
    canary_every_s: float = 60.0
    canary_misses: int = 3


TEXT = Limits()
VISION = Limits(silent_s=60.0, stalled_s=60.0, prefill_s=90.0)
"""Vision models step on the server's event loop, so that nothing is answered during a step."""


MOST_CROWDED = 10.0


def patience(limits: Limits, crowding: float) -> Limits:
    """Return limits for a machine where each core has `crowding` times the work it can do: all is that much slower.

    At a load of nine to each core healthy engines were seen to need that long for one token.
    """
    by = min(MOST_CROWDED, max(1.0, crowding))
    return replace(
        limits,
        silent_s=limits.silent_s * by,
        frozen_s=limits.frozen_s * by,
        stalled_s=limits.stalled_s * by,
        prefill_s=limits.prefill_s * by,
    )


@dataclass(frozen=True)
class HealthSample:
    """What one look saw. Times are monotonic seconds."""

    at: float
    status: EngineStatus | None
    """None when there was no answer in time."""
    canary: bool | None = None
    """Whether a one-token request succeeded; None when none was sent."""
    frozen: bool = False
    """Whether the process was stopped by a signal."""


@dataclass(frozen=True)
class Track:
    """What is remembered of earlier looks. Times are monotonic seconds."""

    since: float
    answered_at: float
    moved_at: float
    """When steps last grew, or there was nothing to do."""
    token_at: float
    """When it last made a token, for anybody."""
    steps: int = -1
    """Not known yet."""
    tokens: int = 0
    prefilling: bool = False
    frozen: bool = False
    misses: int = 0
    """Canaries that failed in a row."""


def begin(now: float) -> Track:
    """Start to follow an engine that just became ready, was adopted, or woke from sleep."""
    return Track(since=now, answered_at=now, moved_at=now, token_at=now)


def follow(track: Track, sample: HealthSample) -> Track:
    """Add one look. A canary that failed beside steps that grow was slow, not dead."""
    status = sample.status
    if status and 0 <= track.steps != status.steps_executed and not sample.canary:
        sample = replace(sample, canary=None)
    track = replace(_count_canary(track, sample), frozen=sample.frozen)
    if status is None:
        return track
    moved = status.steps_executed != track.steps or not status.has_requests
    grew = status.completion_tokens != track.tokens
    return replace(
        track,
        answered_at=sample.at,
        moved_at=sample.at if moved else track.moved_at,
        token_at=sample.at if grew else track.token_at,
        steps=status.steps_executed,
        tokens=status.completion_tokens,
        prefilling=status.prefilling,
        misses=track.misses + 1 if status.failed else track.misses,
    )


def _count_canary(track: Track, sample: HealthSample) -> Track:
    if sample.canary is None:
        return track
    if sample.canary:
        return replace(track, token_at=sample.at, misses=0)
    return replace(track, misses=track.misses + 1)


def verdict(track: Track, now: float, limits: Limits = TEXT, *, woke_at: float | None = None) -> Verdict:
    """Judge an engine. `woke_at`: when the machine last woke from sleep, in monotonic seconds."""
    if woke_at is not None and now - woke_at < limits.after_wake_s:
        return Verdict.WAITING
    if now - track.answered_at > (limits.frozen_s if track.frozen else limits.silent_s):
        return Verdict.SILENT
    if now - track.moved_at > (limits.prefill_s if track.prefilling else limits.stalled_s):
        return Verdict.STALLED
    if track.misses >= limits.canary_misses:
        return Verdict.BROKEN
    odd = track.misses or now - track.answered_at > limits.silent_s / 2
    return Verdict.WAITING if odd else Verdict.HEALTHY


def canary_due(track: Track, status: EngineStatus, now: float, limits: Limits = TEXT) -> bool:
    """Return whether to ask an idle engine for a token: at once after a miss, else once a minute.

    Not one that gave its memory back: the question would load it again.
    """
    if not status.loaded or status.has_requests:
        return False
    return bool(track.misses) or now - track.token_at > limits.canary_every_s


def start_limit_s(weights_bytes: int) -> float:
    """Return the seconds a start may take: 2 minutes and 1 GB/s from disk, and at most 10 minutes.

    The imports alone take 4 s on a quiet machine; at a load of ten to each core they were seen to take 40.
    """
    return min(600.0, 120.0 + weights_bytes / 1e9)
