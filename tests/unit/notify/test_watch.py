"""Changes become notices and deliveries, each once, whatever the worker goes through."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.clock import Clock
from support.here import runner
from support.receiver import receiving

from state import event, job, ledger, service, settings
from state.db import Database
from state.errors import MlxqError
from state.metrics import cloud_spend
from state.metrics.cloud_spend import Spent
from state.notify import notices, targets
from state.notify.targets import NotifyTarget
from state.paths import Home
from state.service import ServiceEvent
from tasks.notify import deliver, watch
from tasks.system import free_space

OPS = NotifyTarget("ops", "webhook", "http://127.0.0.1:9/", secret="correct-horse")
DEAD = NotifyTarget("dead", "deadman", "http://127.0.0.1:9/")
BOTH = {"ops": OPS, "dead": DEAD}
HOURS = 20


def crash(db: Database, name: str = "fast") -> None:
    service.ensure(db, name, "engine", 8000)
    service.set_desired(db, name, "up")
    service.request_start(db, name, [], "spec", 8000)
    service.apply(db, name, ServiceEvent.CRASH_LOOPED, cause="It was killed.")


def deliveries(db: Database) -> list[tuple[str, str]]:
    return [(row.args["target"], row.state) for row in job.listing(db, kind="notify")]


def test_a_change_is_one_delivery_to_each_target_but_a_deadman(db: Database) -> None:
    watch.look(db, BOTH)
    crash(db)
    watch.look(db, BOTH)
    watch.look(db, BOTH)

    assert [notice.event for notice in notices.pending(db, "ops")] == ["crash_loop"]
    assert deliveries(db) == [("ops", "queued")]


def test_what_was_before_the_target_is_not_reported(db: Database) -> None:
    crash(db)
    notices.begin(db, "ops")
    watch.look(db, BOTH)

    assert notices.pending(db, "ops") == []


def test_a_second_target_gets_what_changes_from_then_on(db: Database) -> None:
    watch.look(db, {"ops": OPS})
    crash(db)
    watch.look(db, {"ops": OPS})
    watch.look(db, {"ops": OPS, "late": NotifyTarget("late", "macos")})
    crash(db, "standard")
    watch.look(db, {"ops": OPS, "late": NotifyTarget("late", "macos")})

    assert [notice.subject for notice in notices.pending(db, "ops")] == ["fast", "standard"]
    assert [notice.subject for notice in notices.pending(db, "late")] == ["standard"]


def test_many_changes_wait_for_one_delivery(db: Database, clock: Any) -> None:
    watch.look(db, BOTH)
    for name in ("fast", "standard", "longctx"):
        crash(db, name)
        watch.look(db, BOTH)

    assert deliveries(db) == [("ops", "queued")]
    assert len(notices.pending(db, "ops")) == 3
    assert ledger.claim(db, "ops", {"notify"}, "boot/1/1") is None
    clock.now += watch.GROUP_S
    assert ledger.claim(db, "ops", {"notify"}, "boot/1/1")


def test_a_target_that_fails_is_not_hurried_by_the_next_change(db: Database, clock: Any) -> None:
    watch.look(db, BOTH)
    crash(db)
    watch.look(db, BOTH)
    db.run("UPDATE jobs SET run_at = run_at + 1800 WHERE kind = 'notify'")
    before = db.value("SELECT run_at FROM jobs WHERE kind = 'notify'")
    crash(db, "standard")
    watch.look(db, BOTH)

    assert db.value("SELECT run_at FROM jobs WHERE kind = 'notify'") == before


def test_a_target_that_fails_for_most_of_a_day_gets_all_in_one_message(
    home: Home, db: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried every half hour, and no change hurries it or is lost."""
    with receiving() as receiver:
        receiver.do = "500"
        ops = NotifyTarget("ops", "webhook", receiver.url, secret="correct-horse")
        targets.add(targets.file(home), ops)
        watch.look(db, {"ops": ops})
        run, began = runner(db, home, {"notify": deliver.notify}, monkeypatch), clock.now
        for hour in range(HOURS):
            crash(db, f"tier-{hour}")
            watch.look(db, {"ops": ops})
            while (due := job.listing(db, kind="notify", limit=1)[0].run_at) < began + (hour + 1) * 3600:
                clock.now = due
                assert run("notify", target="ops").state == "queued"
            clock.now = began + (hour + 1) * 3600
        assert HOURS < len(receiver.requests) < 4 * HOURS

        receiver.do = "200"
        clock.now = job.listing(db, kind="notify", limit=1)[0].run_at
        assert run("notify", target="ops").result == {"changes": HOURS}
        assert len(json.loads(receiver.requests[-1].body)["events"]) == HOURS
    assert notices.pending(db, "ops") == []


def test_a_target_that_is_back_after_its_delivery_failed_for_good_gets_all(
    db: Database, clock: Clock, home: Home
) -> None:
    watch.look(db, BOTH)
    crash(db)
    watch.look(db, BOTH)
    clock.now += watch.GROUP_S
    claim = ledger.claim(db, "ops", {"notify"}, "boot/1/1")
    assert claim
    ledger.fail(db, claim, MlxqError("The notification target ops refused the message with status 410."))
    watch.deliver_again(db, BOTH)
    assert deliveries(db) == [("ops", "failed")]

    clock.now += watch.AGAIN_S + 1
    watch.deliver_again(db, BOTH)
    watch.deliver_again(db, BOTH)

    assert sorted(deliveries(db)) == [("ops", "failed"), ("ops", "queued")]


def test_a_restored_file_of_targets_begins_again(db: Database) -> None:
    """With a new state.db, or a file from a backup."""
    watch.look(db, BOTH)
    db.run("DELETE FROM deliveries")
    db.run("DELETE FROM facts")
    watch.look(db, BOTH)
    crash(db)
    watch.look(db, BOTH)

    assert len(notices.pending(db, "ops")) == 1


def test_uninteresting_events_are_not_read_for_ever(db: Database) -> None:
    watch.look(db, BOTH)
    for _ in range(watch.STRIDE + 2):
        event.record(db, "probed", service="fast")
    watch.look(db, BOTH)

    cursor = notices.cursor(db)
    assert cursor
    assert cursor.event == db.value("SELECT max(id) FROM events")


def test_a_full_disk_is_reported_once_and_when_it_has_room_again(
    db: Database, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"bytes": 4 * 10**9}
    monkeypatch.setattr(free_space, "available", lambda folder: free["bytes"])
    watch.look(db, BOTH)
    watch.survey_disks(db, home)
    watch.survey_disks(db, home)
    watch.look(db, BOTH)
    free["bytes"] = 20 * 10**9
    watch.survey_disks(db, home)
    watch.look(db, BOTH)

    messages = [notice.message for notice in notices.pending(db, "ops")]
    assert messages == [
        f"The disk of {home.root} is nearly full: 4.0 GB are free.",
        f"The disk of {home.root} has room again.",
    ]


def test_the_clouds_cap_is_reported_once_a_day(db: Database, home: Home) -> None:
    settings.write(home, "openrouter-key", "sk-or-1")
    watch.survey_cloud(db, home)
    cloud_spend.write(cloud_spend.place(home), Spent(cloud_spend.today(), 1.0, 30))
    watch.look(db, BOTH)
    watch.survey_cloud(db, home)
    watch.survey_cloud(db, home)
    watch.look(db, BOTH)

    assert [notice.event for notice in notices.pending(db, "ops")] == ["cloud_cap_reached"]


def test_all_serve_unless_something_that_should_run_does_not(db: Database) -> None:
    assert watch.all_serve(db)
    crash(db)
    assert not watch.all_serve(db)
    service.set_desired(db, "fast", "down")
    assert watch.all_serve(db)


def test_a_file_that_others_may_read_counts_for_nothing(home: Home) -> None:
    targets.add(targets.file(home), OPS)
    assert watch._targets(home) == {"ops": OPS}
    targets.file(home).chmod(0o644)
    assert watch._targets(home) == {}
