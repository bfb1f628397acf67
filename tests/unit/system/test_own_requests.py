"""What mlxq itself asks an engine is told apart from what others ask."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.plan import health, request_stats
from tasks.plan.request_stats import OwnRequests
from tasks.supervision import own_requests

PORT = 9
USAGE = {"prompt_tokens": 7, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}}


def listed(*limits: int, queued: int = 0) -> list[Any]:
    rows = [{"request_id": str(n), "phase": "generation", "max_tokens": limit} for n, limit in enumerate(limits)]
    return request_stats.read_requests(
        {"requests": [*rows[queued:], *(row | {"phase": "queued"} for row in rows[:queued])]}
    )


def test_a_request_that_has_not_ended_is_left_out_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_requests, "_by_port", {})
    status = health.read_status({"num_running": 2, "num_waiting": 1})
    requests = listed(1, 1, 200, queued=1)

    with own_requests.sending(PORT, 1):
        seen, others = own_requests.others(PORT, status, requests)
        assert [request.max_tokens for request in others] == [200, 1]
        assert (seen.num_running, seen.num_waiting) == (1, 1)
        assert own_requests.others(PORT + 1, status, requests) == (status, requests)

    assert own_requests.others(PORT, status, requests) == (status, requests)


@pytest.mark.parametrize(
    ("body", "counts"),
    [
        (
            {"usage": {"prompt_tokens": 7, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 4}}},
            (1, 7, 1, 4),
        ),
        ({"usage": None}, (1, 0, 0, 0)),
        ([], (1, 0, 0, 0)),
    ],
)
def test_what_was_answered_is_counted_with_its_tokens(body: Any, counts: tuple[int, ...]) -> None:
    before = own_requests.totals(PORT + 2)
    with own_requests.sending(PORT + 2, 1) as answers:
        answers.append(body)
    after = own_requests.totals(PORT + 2)
    fields = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens")
    assert tuple(getattr(after, name) - getattr(before, name) for name in fields) == counts


def test_a_request_without_an_answer_is_not_counted() -> None:
    with pytest.raises(TimeoutError), own_requests.sending(PORT + 3, 1):
        raise TimeoutError
    assert own_requests.totals(PORT + 3) == OwnRequests()
