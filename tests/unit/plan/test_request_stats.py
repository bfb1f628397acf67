"""What an engine's answers come to over a minute."""

from __future__ import annotations

import dataclasses
from typing import Any

from tasks.plan import health, request_stats
from tasks.plan.request_stats import EngineSample, OwnRequests

REQUEST = {
    "request_id": "r1", "status": "running", "phase": "generation", "elapsed_s": 3.5, "prompt_tokens": 900,
    "completion_tokens": 64, "max_tokens": 256, "progress": 0.25, "tokens_per_second": 21.3, "ttft_s": 0.5,
    "cache_hit_type": "hit", "cached_tokens": 700,
}  # fmt: skip


def look(*, requests: list[dict[str, Any]] | None = None, failed: int = 0, **counters: int) -> EngineSample:
    body = {"status": "running", "requests": requests or [], **counters}
    return EngineSample(True, health.read_status(body), request_stats.read_requests(body), 2**30, failed=failed)


def test_a_running_request_is_read():
    (request,) = request_stats.read_requests({"requests": [REQUEST]})
    assert (request.id, request.phase, request.decode_tps, request.ttft_s) == ("r1", "generation", 21.3, 0.5)
    assert request.progress == 0.25
    assert request.prompt_tps == 400.0


def test_nothing_odd_in_an_answer_raises():
    for body in (None, [], {"requests": None}, {"requests": [None, 3, {"max_tokens": "x", "ttft_s": None}]}):
        assert all(request.progress == 0.0 for request in request_stats.read_requests(body))


def test_a_minute_is_what_the_counters_grew_by():
    before = look(total_requests_processed=10, total_completion_tokens=1000)
    looks = [
        look(total_requests_processed=12, total_completion_tokens=1300, num_running=2, requests=[REQUEST]),
        look(total_requests_processed=13, total_completion_tokens=1600, num_running=0),
    ]
    minute = request_stats.fold("fast", 60, before, looks)
    assert (minute.requests, minute.completion_tokens, minute.running, minute.tokens_per_s) == (3, 600, 1.0, 10.0)
    assert (minute.decode_tps, minute.ttft_s, minute.prompt_tps) == (21.3, 0.5, 400.0)
    assert (minute.up, minute.memory_bytes) == (1.0, 2**30)


def test_a_restart_within_the_minute_loses_no_count():
    """Its counters begin anew at zero, which is no negative growth."""
    looks = [look(total_completion_tokens=500), EngineSample(serving=False), look(total_completion_tokens=40)]
    minute = request_stats.fold("fast", 0, look(total_completion_tokens=400), looks)
    assert minute.completion_tokens == 140
    assert minute.up == 2 / 3


def test_the_first_minute_counts_no_past():
    assert request_stats.fold("fast", 0, None, [look(total_completion_tokens=9000)]).completion_tokens == 0


def test_a_request_seen_in_two_looks_is_one():
    later = REQUEST | {"tokens_per_second": 25.3, "completion_tokens": 128}
    minute = request_stats.fold("fast", 0, None, [look(requests=[REQUEST]), look(requests=[later])])
    assert minute.decode_tps == 25.3


def test_what_mlxq_itself_asked_is_in_no_count():
    """Three requests more, of which one was the watchdog's; and one that was all there was."""

    def seen(total: int, tokens: int, own: int) -> EngineSample:
        counts = OwnRequests(own, 9 * own, own, 4 * own)
        sample = look(total_requests_processed=total, total_completion_tokens=tokens, total_prompt_tokens=9 * total)
        return dataclasses.replace(sample, own=counts)

    minute = request_stats.fold("fast", 60, seen(10, 1000, 5), [seen(13, 1201, 6)])
    assert (minute.requests, minute.completion_tokens, minute.prompt_tokens) == (2, 200, 18)
    idle = request_stats.fold("fast", 60, seen(10, 1000, 5), [seen(11, 1001, 6)])
    assert (idle.requests, idle.completion_tokens, idle.prompt_tokens) == (0, 0, 0)
    restarted = request_stats.fold("fast", 60, seen(10, 1000, 5), [seen(1, 1, 6)])
    assert (restarted.requests, restarted.completion_tokens) == (0, 0)
    raced = request_stats.fold("fast", 60, seen(10, 1000, 5), [seen(10, 1000, 6)])
    assert raced.requests == 0


def test_failures_are_counted_as_they_grow():
    minute = request_stats.fold("fast", 0, look(failed=3), [look(failed=3), look(failed=5)])
    assert minute.errors == 2
