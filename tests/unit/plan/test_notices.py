"""Which changes are reported, and what a message says."""

from __future__ import annotations

import time
from typing import Any

import pytest

from state.event import Event
from state.notify.notices import Notice
from tasks.plan import notices
from tasks.plan.notices import BY_USER, DISK_FINE_BYTES, DISK_SHORT_BYTES, compose, decide, disk_event, quiet_left_s


def happened(*events: tuple[Any, ...]) -> list[Event]:
    return [
        Event(number, float(number), None, service, name, None, data[0] if data else {})
        for number, (name, service, *data) in enumerate(events)
    ]


def reported(*events: tuple[Any, ...], problems: dict[str, str] | None = None) -> list[str]:
    return [notice.event for notice in decide(happened(*events), problems or {}, {})[0]]


def test_a_crash_loop_is_reported_once_and_once_more_when_it_is_over() -> None:
    round_ = [("starting", "fast"), ("spawned", "fast"), ("crash_looped", "fast", {"cause": "It was killed."})]

    assert reported(*round_, *round_, *round_, ("became_ready", "fast")) == ["crash_loop", "healthy"]


def test_a_crash_loop_that_cannot_be_retried_is_another_change() -> None:
    assert reported(("crash_looped", "fast"), ("failed", "fast"), ("replaced", "fast")) == [
        "crash_loop",
        "needs_attention",
        "healthy",
    ]


def test_what_starts_without_a_problem_is_no_news() -> None:
    assert reported(("starting", "fast"), ("became_ready", "fast"), ("exited", "fast"), ("became_ready", "fast")) == []


def test_a_user_who_stops_a_tier_is_not_told_that_it_is_healthy_later() -> None:
    assert reported(("crash_looped", "fast"), ("stop_requested", "fast"), ("became_ready", "fast")) == ["crash_loop"]


def test_a_restart_by_the_user_does_not_hide_that_it_is_over() -> None:
    """`stopped` is written by every restart."""
    assert reported(("failed", "fast"), ("stopped", "fast"), ("became_ready", "fast")) == ["needs_attention", "healthy"]


def test_what_was_reported_before_a_restart_of_the_worker_is_not_reported_again() -> None:
    assert reported(("crash_looped", "fast"), problems={"fast": "crash_loop"}) == []
    assert reported(("became_ready", "fast"), problems={"fast": "crash_loop"}) == ["healthy"]


@pytest.mark.parametrize(
    ("name", "data", "change", "text"),
    [
        ("unclean_boot", {"cause": "The machine went down while fast ran."}, "unclean_boot", "not shut down cleanly"),
        (
            "disk_short",
            {"subject": "/Users/you/.mlxq", "cause": "4.2 GB are free"},
            "disk_short",
            "nearly full: 4.2 GB",
        ),
        ("cloud_cap_reached", {"subject": "cloud", "cause": "$1.00 of $1.00"}, "cloud_cap_reached", "cap for today"),
        (
            "engine_taken_back",
            {"engine": "rapid-mlx", "version": "0.16.11", "now": "rapid-mlx 0.16.10", "cause": "It did not serve"},
            "engine_rolled_back",
            "rapid-mlx 0.16.11 was rolled back: It did not serve.",
        ),
        (
            "upgrade_taken_back",
            {"subject": "mlxq 1.4", "version": "1.4", "now": "1.3", "cause": "fast did not become ready"},
            "upgrade_rolled_back",
            "mlxq 1.4 was rolled back: fast did not become ready.",
        ),
        ("mlxq_newer", {"subject": "mlxq 1.4", "version": "1.4"}, "mlxq_newer", "mlxq 1.4 can be installed."),
        ("schedule_failed", {"subject": "nightly", "cause": "Job 12 failed"}, "schedule_failed", "job nightly failed"),
    ],
)
def test_every_kind_of_change_is_a_message(name: str, data: dict[str, str], change: str, text: str) -> None:
    (notice,), _ = decide(happened((name, None, data)), {}, {})
    assert notice.event == change
    assert text in notice.message


def test_a_rollback_by_the_user_is_no_news() -> None:
    data = {"engine": "rapid-mlx", "version": "0.16.11", "cause": BY_USER}
    assert reported(("engine_taken_back", None, data), ("upgrade_taken_back", None, data)) == []


def test_the_tiers_of_a_shared_engine_are_named() -> None:
    (notice,), _ = decide(happened(("failed", "fast")), {}, {"fast": ["fast", "longctx"]})
    assert notice.message == "fast (also longctx) needs attention."


def test_a_cause_of_many_lines_is_one_short_line() -> None:
    (notice,), _ = decide(happened(("failed", "fast", {"cause": "a\nb\n" + "x" * 5000})), {}, {})
    assert "\n" not in notice.message
    assert len(notice.message) == 400


def changes(count: int) -> list[Notice]:
    return [Notice(60.0 * number, "healthy", "fast", "ok", f"Number {number}.", number) for number in range(count)]


def test_one_change_is_the_title_and_several_are_counted() -> None:
    single, several = changes(1), changes(3)
    assert compose(single, "mini", 0.0).title == "mlxq on mini: Number 0"
    assert compose(several, "mini", 0.0, time.gmtime).text == "00:00 Number 0.\n00:01 Number 1.\n00:02 Number 2."
    assert compose(several, "mini", 0.0).title == "mlxq on mini: 3 changes"


def test_a_message_is_as_bad_as_its_worst_change() -> None:
    worst = Notice(0.0, "crash_loop", "fast", "error", "fast is in a crash loop.", 9)
    assert compose([worst, *changes(2)], "mini", 0.0).severity == "error"


def test_a_target_that_was_away_for_days_gets_a_message_of_bounded_size() -> None:
    message = compose(changes(500), "mini", 0.0)
    assert message.text.splitlines()[0] == "480 earlier changes are not shown; see mlxq why."
    assert len(message.document()["events"]) == notices.MOST_LINES


def test_a_message_keeps_its_id_when_it_is_tried_again() -> None:
    assert compose(changes(2), "mini", 0.0).id == compose(changes(2), "mini", 5000.0).id


@pytest.mark.parametrize(
    ("text", "hour", "minute", "left"),
    [
        ("", 3, 0, 0),
        ("22:00-07:00", 22, 0, 9 * 3600),
        ("22:00-07:00", 23, 30, 7.5 * 3600),
        ("22:00-07:00", 0, 0, 7 * 3600),
        ("22:00-07:00", 6, 59, 60),
        ("22:00-07:00", 7, 0, 0),
        ("22:00-07:00", 21, 59, 0),
        ("12:00-13:00", 12, 15, 45 * 60),
        ("12:00-13:00", 11, 59, 0),
        ("00:00-23:59", 12, 0, 11 * 3600 + 59 * 60),
    ],
)
def test_quiet_hours_may_span_midnight(text: str, hour: int, minute: int, left: float) -> None:
    assert quiet_left_s(text, hour, minute) == left


def test_a_disk_about_its_limit_is_reported_once() -> None:
    assert disk_event(DISK_SHORT_BYTES - 1, short=False) == "disk_short"
    assert disk_event(DISK_SHORT_BYTES - 1, short=True) is None
    assert disk_event(DISK_SHORT_BYTES + 1, short=True) is None
    assert disk_event(DISK_FINE_BYTES, short=True) == "disk_freed"
    assert disk_event(DISK_FINE_BYTES, short=False) is None
