"""A service's state and reason are the same words on every surface."""

from __future__ import annotations

import json

import pytest
from support import scene

from mlxq import cli, service_status
from mlxq.web import labels, metrics
from state import service
from state.db import Database
from state.service import Observed, ServiceEvent, State

NOW = 1_000.0


@pytest.mark.parametrize(
    ("state", "desired", "text"),
    [
        ("ready", "up", "healthy"),
        ("stalled", "up", "degraded, no progress"),
        ("degraded", "up", "degraded, failing probes"),
        ("draining", "down", "degraded, draining"),
        ("stopping", "down", "degraded, stopping"),
        ("stopping", "up", "degraded, restarting"),
        ("starting", "up", "down, starting"),
        ("loading", "up", "down, loading"),
        ("stopped", "up", "down, waiting to start"),
        ("backoff", "up", "crashed, restarting in 4.0s"),
        ("crash_loop", "up", "crashed, crash loop, retry in 4.0s"),
        ("failed", "up", "crashed, needs attention"),
        ("stopped", "down", "stopped"),
    ],
)
def test_each_state_has_a_word_and_a_reason(db: Database, state: str, desired: service.Desired, text: str) -> None:
    service.ensure(db, "fast", "engine", 9001)
    service.update(db, "fast", state=state, desired=desired, next_try_at=NOW + 4)

    assert service_status.of_row(service.get(db, "fast")).text(NOW) == text


def test_every_state_of_the_machine_has_a_reason_or_needs_none() -> None:
    assert set(service_status.REASONS) == set(State)


@pytest.mark.parametrize(
    ("state", "desired", "process", "words"),
    [
        ("ready", "up", "answers", "healthy"),
        ("ready", "up", "alive", "down, no answer"),
        ("ready", "up", "gone", "crashed, process is gone"),
        ("backoff", "up", "gone", "crashed, no worker is running"),
        ("failed", "up", "gone", "crashed, needs attention"),
        ("stopped", "up", "gone", "down, no worker is running"),
        ("ready", "down", "gone", "stopped"),
    ],
)
def test_without_a_worker_no_restart_is_promised(
    db: Database, state: str, desired: service.Desired, process: str, words: str
) -> None:
    service.ensure(db, "fast", "engine", 9001)
    service.update(db, "fast", state=state, desired=desired, next_try_at=NOW + 4)

    row = service.get(db, "fast")
    status = service_status.unwatched(row, alive=process != "gone", answers=process == "answers")

    assert (status.words, status.next_try_at) == (words, None)


def test_every_surface_says_the_same(rows: Database, capsys: pytest.CaptureFixture[str]) -> None:
    scene.beat(rows)
    scene.die(rows, "fast")
    words = "crashed, restarting"

    assert labels.of_service(service.get(rows, "fast")).word == words
    assert 'mlxq_service_state{service="fast",state="crashed"} 1.0' in metrics.text(rows)
    assert 'mlxq_service_reason{reason="restarting",service="fast"} 1.0' in metrics.text(rows)
    for argv in (["status"], ["top", "--once"], ["why"]):
        assert cli.run(argv) == 0
        assert f"{words} in " in capsys.readouterr().out, argv
    for argv in (["status", "--json"], ["why", "--json"]):
        assert cli.run(argv) == 0
        found = {row["name"]: row for row in json.loads(capsys.readouterr().out)["services"]}["fast"]
        assert (found["state"], found["reason"]) == ("crashed", "restarting")
        assert found["next_try_at"] == service.get(rows, "fast").next_try_at


def test_a_state_is_one_of_five(db: Database) -> None:
    assert set(Observed) == {"healthy", "degraded", "down", "crashed", "stopped"}
    assert ServiceEvent.FAILED.value == "failed"
