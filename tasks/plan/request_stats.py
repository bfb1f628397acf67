"""What an engine is asked at the moment, and what that comes to over a minute. Pure: answers in, figures out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any, TypeVar, cast

from state.classes import dataclass
from state.metrics.sample import MINUTE_S, Sample
from tasks.plan.health import EngineStatus


@dataclass(frozen=True)
class EngineRequest:
    """One request that an engine has."""

    id: str
    phase: str
    """queued, prefill (reads the prompt), or generation."""
    elapsed_s: float
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that were not read again."""
    completion_tokens: int
    max_tokens: int
    decode_tps: float | None
    """Tokens/s since the first token; None before it."""
    ttft_s: float | None
    """Seconds to the first token; None before it."""

    @property
    def is_check(self) -> bool:
        """Whether it asks for one token, as those requests do by which mlxq tests an engine."""
        return self.max_tokens == 1

    @property
    def progress(self) -> float:
        """Share of the answer's longest length, 0 to 1; most answers end before it."""
        return min(1.0, self.completion_tokens / self.max_tokens) if self.max_tokens else 0.0

    @property
    def prompt_tps(self) -> float | None:
        """Prompt tokens/s, the wait in the queue counted; None before the first token."""
        read = self.prompt_tokens - self.cached_tokens
        return read / self.ttft_s if self.ttft_s and read > 0 else None


def read_requests(body: Any) -> list[EngineRequest]:
    """Read the requests in `/v1/status` of vllm-mlx and of rapid-mlx; what is missing or odd counts as nothing."""
    status = cast("dict[str, Any]", body) if isinstance(body, dict) else {}
    listed = status.get("requests")
    entries = cast("list[Any]", listed) if isinstance(listed, list) else []
    return [_request(cast("dict[str, Any]", entry)) for entry in entries if isinstance(entry, dict)]


def _request(entry: dict[str, Any]) -> EngineRequest:
    def number(name: str) -> float:
        value = entry.get(name)
        return value if isinstance(value, int | float) else 0

    return EngineRequest(
        id=str(entry.get("request_id", "")),
        phase=str(entry.get("phase", "")),
        elapsed_s=number("elapsed_s"),
        prompt_tokens=int(number("prompt_tokens")),
        cached_tokens=int(number("cached_tokens")),
        completion_tokens=int(number("completion_tokens")),
        max_tokens=int(number("max_tokens")),
        decode_tps=number("tokens_per_second") or None,
        ttft_s=number("ttft_s") or None,
    )


@dataclass(frozen=True)
class OwnRequests:
    """Requests of mlxq itself that an engine answered, and their tokens."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class EngineSample:
    """What one look at a service saw."""

    serving: bool
    status: EngineStatus | None = None
    """None for the gateway, and when there was no answer."""
    requests: Sequence[EngineRequest] = ()
    memory_bytes: int | None = None
    failed: int = 0
    """Requests that failed since the counters began."""
    fallbacks: int = 0
    """Requests that another tier answered instead."""
    own: OwnRequests = OwnRequests()
    """What mlxq itself asked, since the worker began; the status counts it too."""


def fold(service: str, at: int, before: EngineSample | None, looks: Sequence[EngineSample]) -> Sample:
    """Return the minute that began at `at` (unix seconds) from its looks; `before` is the last look ahead of it."""
    chain = [*([before] if before else []), *looks]
    earlier, now = [look for look in chain if look.status], _statuses(looks)
    requests = _requests(looks)
    return Sample(
        service,
        at,
        MINUTE_S,
        up=fmean(look.serving for look in looks),
        running=_mean(status.num_running for status in now) or 0.0,
        waiting=_mean(status.num_waiting for status in now) or 0.0,
        requests=_of_others(earlier, "requests"),
        errors=_grown(chain, lambda look: look.failed),
        fallbacks=_grown(chain, lambda look: look.fallbacks),
        prompt_tokens=_of_others(earlier, "prompt_tokens"),
        completion_tokens=_of_others(earlier, "completion_tokens"),
        decode_tps=_mean(request.decode_tps for request in requests),
        prompt_tps=_mean(request.prompt_tps for request in requests),
        ttft_s=_mean(request.ttft_s for request in requests),
        memory_bytes=looks[-1].memory_bytes,
        cached_tokens=_of_others(earlier, "cached_tokens"),
    )


def _requests(looks: Sequence[EngineSample]) -> Collection[EngineRequest]:
    """Return each request as it was seen last."""
    return {request.id: request for look in looks for request in look.requests}.values()


def _statuses(looks: Sequence[EngineSample]) -> list[EngineStatus]:
    return [look.status for look in looks if look.status]


def _of_others(looks: Sequence[EngineSample], name: str) -> int:
    """Return how much a counter of an engine grew beyond what mlxq itself asked."""
    return max(
        0, _grown(looks, lambda look: getattr(look.status, name)) - _grown(looks, lambda look: getattr(look.own, name))
    )


T = TypeVar("T")


def _grown(looks: Sequence[T], count: Callable[[T], int]) -> int:
    """Add up how much a counter grew; a smaller one than before began again at zero."""
    counts = [count(look) for look in looks]
    return sum(now - old if now >= old else now for old, now in pairwise(counts))


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers else None
