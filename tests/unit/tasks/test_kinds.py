"""The kinds of job: names that rows hold, and what holds for them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tasks.kinds import KINDS, LONGEST_BACKOFF_S, backoff, new

STORED = {
    "detect", "score", "pull", "configure", "start", "stop", "restart",
    "smoke_test", "verify_weights", "remove_weights", "bench", "rotate", "prune_jobs", "assign", "retire", "drain",
}  # fmt: skip


def test_no_name_that_rows_may_hold_goes_away() -> None:
    assert set(KINDS) >= STORED


def test_every_kind_says_what_it_does_and_ends_some_day() -> None:
    for name, kind in KINDS.items():
        assert name == kind.name
        assert kind.meaning
        assert 0 < kind.limit_s <= 86400
        assert kind.max_attempts >= 1


def test_a_job_is_unique_by_the_arguments_its_kind_names() -> None:
    assert new("pull", {"source": "a/b"}).unique_key == "pull:a/b"
    assert new("start", {"service": "fast"}).unique_key == new("restart", {"service": "fast"}).unique_key


def test_pulls_that_ask_for_different_things_are_different_jobs() -> None:
    plain = {"source": "a/b", "revision": None, "force": False, "code": False}
    differing = [plain, plain | {"revision": "v2"}, plain | {"force": True}, plain | {"code": True}]

    assert new("pull", plain).unique_key == new("pull", {"source": "a/b"}).unique_key
    assert len({new("pull", args).unique_key for args in differing}) == 4


def test_a_restart_that_purges_asks_for_more_than_a_plain_one() -> None:
    plain, purging = new("restart", {"service": "fast"}), new("restart", {"service": "fast", "purge": True})
    assert (plain.request, purging.request) == ("restart", "purge")
    assert plain.unique_key == purging.unique_key


def test_an_unknown_kind_is_a_fault() -> None:
    with pytest.raises(KeyError):
        new("no such kind")


def test_backoff_doubles_to_its_limit_and_is_cut_by_half_at_most() -> None:
    assert [backoff(failures, 0.0) for failures in (1, 2, 3)] == [2.0, 4.0, 8.0]
    assert backoff(1, 0.999) == pytest.approx(1.0, abs=0.01)
    assert backoff(50, 0.0) == LONGEST_BACKOFF_S
    assert all(1.0 <= backoff(1) <= 2.0 for _ in range(100))


def test_a_target_that_fails_for_a_day_is_delivered_to_after_it() -> None:
    kind = KINDS["notify"]
    tries = range(1, kind.max_attempts)
    waits_s = sum(backoff(failures, 0.5, longest_s=kind.longest_backoff_s) for failures in tries)
    assert waits_s > 24 * 3600


def test_to_put_a_job_in_or_to_feel_the_pulse_loads_nothing_heavy() -> None:
    """A command must start at once."""
    script = (
        "import sys, tasks.kinds, tasks.worker_status, state.ledger;"
        "heavy = {'huey', 'sqlite_utils', 'httpx', 'pandas', 'numpy', 'litellm', 'structlog'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
