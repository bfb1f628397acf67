"""The jobs that other nodes may ask for: an allow-list, once for each idempotency key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from state import fleet, job, stack
from state.db import Database
from state.errors import Busy, MlxqError, NotFound, UsageProblem
from state.job import JobState
from tasks.fleet import node_jobs
from tasks.gateway.fleet.api import MOST_WRONG, WRONG_S, Attempts

KEY = "fleet.mini"


@pytest.fixture
def tier(rows: Database) -> str:
    """Return a tier of the stack."""
    return stack.tiers(rows)[0].name


def kinds(db: Database, numbers: list[int]) -> list[str]:
    return [job.get(db, number).kind for number in numbers]


def test_a_request_that_is_repeated_leads_to_the_same_jobs(rows: Database) -> None:
    args = {"model": "org/name", "bench": True}
    first = node_jobs.enqueue(rows, KEY, "a" * 24, "pull", args)

    assert kinds(rows, first) == ["pull", "bench"]
    assert node_jobs.enqueue(rows, KEY, "a" * 24, "pull", args) == first
    with pytest.raises(UsageProblem, match="was used for another request"):
        node_jobs.enqueue(rows, KEY, "a" * 24, "pull", {"model": "org/other"})
    assert [row.id for row in node_jobs.listing(rows, KEY)] == first[::-1]


def test_another_key_sees_none_of_them(rows: Database) -> None:
    (number, *_) = node_jobs.enqueue(rows, KEY, "a" * 24, "pull", {"model": "org/name"})

    assert node_jobs.listing(rows, "fleet.other") == []
    with pytest.raises(NotFound, match="There is no job"):
        node_jobs.find(rows, "fleet.other", number)
    (own,) = node_jobs.find(rows, KEY, number)
    assert not {"owner", "unique_key"} & node_jobs.document(own).keys()


def test_tiers_are_restarted_stopped_and_started(rows: Database, tier: str) -> None:
    assert set(kinds(rows, node_jobs.enqueue(rows, KEY, "a" * 24, "restart", {"names": [tier]}))) == {"restart"}
    assert "drain" in kinds(rows, node_jobs.enqueue(rows, KEY, "b" * 24, "down", {"names": [tier], "drain": True}))
    assert "start" in kinds(rows, node_jobs.enqueue(rows, KEY, "c" * 24, "up", {"names": [tier]}))
    down = node_jobs.enqueue(rows, KEY, "d" * 24, "down", {})
    assert {job.get(rows, number).args.get("service") for number in down}.isdisjoint({"gateway", "page"})


def test_a_stop_ends_a_drain_that_waits_as_the_command_does(rows: Database, tier: str) -> None:
    (drain, *_) = node_jobs.enqueue(rows, KEY, "a" * 24, "down", {"names": [tier], "drain": True})
    node_jobs.enqueue(rows, KEY, "b" * 24, "down", {"names": [tier]})

    assert job.get(rows, drain).state is JobState.CANCELLED


def test_a_stack_is_chosen_as_setup_does_and_not_beside_another_setup(rows: Database) -> None:
    args = {"choice": {"standard": "qwen3.5-9b int4"}, "intent": "balanced"}
    numbers = node_jobs.enqueue(rows, KEY, "a" * 24, "stack", args)

    assert kinds(rows, numbers) == ["detect", "score"]
    assert job.get(rows, numbers[1]).args == args | {"pull": True, "start": True}
    assert node_jobs.enqueue(rows, KEY, "b" * 24, "stack", args)[1] == numbers[1], "the same is attached to"
    with pytest.raises(Busy, match="is under way here with other choices"):
        node_jobs.enqueue(rows, KEY, "c" * 24, "stack", args | {"intent": "agent-fleet"})


REFUSED: Sequence[tuple[str, dict[str, Any]]] = (
    ("configure", {}),
    ("upgrade", {}),
    ("upgrade", {"to": 7}),
    ("upgrade", {"index": "https://evil.example"}),
    ("stack", {}),
    ("stack", {"choice": {}, "intent": "balanced"}),
    ("stack", {"choice": {"standard": "qwen3.5-9b int4"}, "intent": "none"}),
    ("stack", {"choice": {"standard": "org/any-repo int4"}, "intent": "balanced"}),
    ("stack", {"choice": {"standard": "/etc int4"}, "intent": "balanced"}),
    ("stack", {"choice": {"mine": "qwen3.5-9b int4"}, "intent": "balanced"}),
    ("stack", {"choice": {"standard": {}}, "intent": "balanced"}),
    ("stack", {"choice": "qwen3.5-9b", "intent": "balanced"}),
    ("stack", {"choice": {"standard": "qwen3.5-9b int4"}, "intent": "balanced", "budget_pct": 90}),
    ("add_schedule", {"name": "x"}),
    ("pull", {}),
    ("pull", {"model": 7}),
    ("pull", {"model": True}),
    ("pull", {"model": "a/b", "code": True}),
    ("pull", {"model": "a/b", "revision": "x"}),
    ("pull", {"model": "a/b", "force": "yes"}),
    ("pull", {"model": "x" * 300}),
    ("pull", {"model": "file:/etc"}),
    ("pull", {"model": "/etc"}),
    ("pull", {"model": "../../etc"}),
    ("rm", {"model": "/"}),
    ("verify", {"model": "/etc"}),
    ("bench", {"target": "/etc"}),
    ("load", {"model": "none"}),
    ("restart", {"names": ["gateway"]}),
    ("down", {"names": ["gateway"]}),
    ("down", {"names": ["page"]}),
    ("down", {"names": "standard"}),
    ("down", {"names": [["standard"]]}),
    ("down", {"names": ["standard"] * 30}),
)


def test_what_is_not_in_the_list_is_refused(rows: Database) -> None:
    before = rows.value("SELECT count(*) FROM jobs")
    for command, args in REFUSED:
        with pytest.raises(MlxqError):
            node_jobs.enqueue(rows, KEY, "a" * 24, command, args)
    assert rows.value("SELECT count(*) FROM jobs") == before
    assert fleet.asked(rows, KEY) == []


def test_wrong_invitations_are_counted_by_address_and_forgotten() -> None:
    now = [0.0]
    attempts = Attempts(lambda: now[0])
    for _ in range(MOST_WRONG):
        assert attempts.wait_s("10.0.0.7") == 0
        attempts.wrong("10.0.0.7")

    assert attempts.wait_s("10.0.0.7") == WRONG_S
    assert attempts.wait_s("10.0.0.8") == 0
    now[0] = WRONG_S
    assert attempts.wait_s("10.0.0.7") == 0
