"""What becomes of one answer to a line of a batch, and when batches are answered at all. Pure."""

from __future__ import annotations

from typing import Any, cast

from tasks.plan.notices import quiet_left_s

MINUTES_OF_DAY = 24 * 60
MOST_TRIES = 3
"""Of a line whose engine or answer failed by itself."""
MOST_BREAKS = 8
"""Of a line during which the connection to the gateway broke: a request that ends it must not end it for ever."""
LONGEST_WAIT_S = 30.0
_OK, _UNAVAILABLE, _BUSY, _UNKEPT = 200, 503, 429, 422
_ITS_OWN_FAILURE = frozenset({500, 502, 504})
_ANOTHER_TRY_HELPS = frozenset({"schema_mismatch", "tool_call_missing"})


def retry_wait_s(status: int, body: Any, tries: int, retry_after_s: float) -> float | None:
    """Return the seconds after which a line is sent again, or None where its answer is final.

    `tries`: how often it was sent so far; `retry_after_s`: what the answer says itself. While no tier serves, or all
    are busy, a line waits and no try is counted: it ends with the batch's completion window at the latest.
    """
    if status == _OK:
        return None
    backoff_s = min(LONGEST_WAIT_S, 0.5 * 2.0 ** min(tries, 10))
    if status in {_UNAVAILABLE, _BUSY}:
        return max(backoff_s, min(retry_after_s, LONGEST_WAIT_S))
    fails_by_itself = status in _ITS_OWN_FAILURE or (status == _UNKEPT and _code(body) in _ANOTHER_TRY_HELPS)
    return backoff_s if fails_by_itself and tries < MOST_TRIES else None


def _code(body: Any) -> str:
    """Return the code of an error in OpenAI's shape; empty where it has another."""
    error: Any = cast("dict[str, Any]", body).get("error") if isinstance(body, dict) else None
    return str(cast("dict[str, Any]", error).get("code")) if isinstance(error, dict) else ""


def window_opens_in_s(window: str, hour: int, minute: int) -> int:
    """Return the seconds until batches are answered, 0 now. `window`: the setting, such as 22:00-07:00, or empty."""
    if not window or quiet_left_s(window, hour, minute):
        return 0
    begin = 60 * int(window[:2]) + int(window[3:5])
    return 60 * ((begin - 60 * hour - minute) % MINUTES_OF_DAY)
