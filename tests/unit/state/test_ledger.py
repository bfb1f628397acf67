"""The ledger: what each step does, and to whom."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from support.examples import share

from state import event, ledger
from state.db import Database, open_database
from state.errors import Busy, EngineFailed, MlxqError, NotFound, Upstream
from state.job import ENDED, LIVE, TRANSITIONS, Fenced, Job, JobEvent, JobState, NewJob, cancel_asked, get, transition

KINDS = {"a", "b", "c", "d"}
ME = "boot/1/1"


def put(db: Database, *batch: NewJob) -> dict[str, int]:
    return {label: made[0] for label, made in ledger.enqueue_all(db, batch).items()}


def take(db: Database, queue: str = "ops", owner: str = ME) -> Any:
    return ledger.claim(db, queue, KINDS, owner)


def state(db: Database, job: int) -> JobState:
    return get(db, job).state


def names(db: Database, job: int) -> list[str]:
    return [happening.name for happening in event.of_job(db, job)]


def diamond(db: Database) -> dict[str, int]:
    return put(db, NewJob("a"), NewJob("b", needs=["a"]), NewJob("c", needs=["a"]), NewJob("d", needs=["b", "c"]))


def test_a_job_is_claimed_once_and_ends_with_its_result(db: Database) -> None:
    job = put(db, NewJob("a", {"x": 1}))["a"]

    held = take(db)

    assert (held.id, held.args, held.attempt) == (job, {"x": 1}, 1)
    assert take(db) is None
    ledger.succeed(db, held, {"y": 2})
    assert get(db, job).result == {"y": 2}
    assert names(db, job) == ["created", "claimed", "succeeded"]


def test_a_job_that_is_named_twice_is_needed_once(db: Database) -> None:
    """By its caller, and by the key that both have while the earlier one is being cancelled."""
    ending = put(db, NewJob("a", unique_key="k"))["a"]
    take(db)
    ledger.cancel(db, ending)

    following = put(db, NewJob("b", unique_key="k", after=[ending]))["b"]

    assert (following != ending, get(db, following).needs) == (True, (ending,))
    assert state(db, following) is JobState.BLOCKED


def test_what_is_asked_for_again_and_again_comes_once_after_the_one_that_is_being_cancelled(db: Database) -> None:
    ending = put(db, NewJob("a", unique_key="k"))["a"]
    take(db)
    ledger.cancel(db, ending)
    blocker = put(db, NewJob("b"))["b"]

    asked = [put(db, NewJob("a", unique_key="k", after=after))["a"] for after in ([], [], [blocker], [ending], [])]

    assert len({ending, *asked}) == 2
    assert get(db, asked[0]).needs == (ending,)


def test_one_that_ran_under_the_key_of_a_waiting_job_is_waited_for_too(db: Database) -> None:
    """It keeps that key where another one had the plain key when it began."""
    blocker = put(db, NewJob("b"))["b"]
    waiting = put(db, NewJob("a", unique_key="k", needs=[blocker]))["a"]
    plain = put(db, NewJob("a", unique_key="k"))["a"]
    ledger.succeed(db, take(db), None)
    for held in (take(db), take(db)):
        if held.id == plain:
            ledger.succeed(db, held, None)
    ledger.cancel(db, waiting)

    assert get(db, put(db, NewJob("a", unique_key="k"))["a"]).needs == (waiting,)


def test_what_has_to_see_a_change_does_not_attach_to_what_may_begin_before_it(db: Database) -> None:
    """A service's start after its configuration, while the watchdog starts it already."""
    running = put(db, NewJob("a", unique_key="k", repeats=True))["a"]
    take(db)
    changed = put(db, NewJob("b"))["b"]

    follows, again, other = (
        put(db, NewJob("a", unique_key="k", needs=[changed], repeats=repeats))["a"] for repeats in (True, True, False)
    )

    assert (follows, other) == (again, running)
    assert follows != running
    assert get(db, follows).needs == (changed,)
    assert put(db, NewJob("a", unique_key="k", repeats=True))["a"] == running


def test_lanes_priorities_and_kinds_decide_who_is_next(db: Database) -> None:
    ids = put(db, NewJob("a"), NewJob("b", priority=5), NewJob("c", queue="heavy"), NewJob("unknown"))

    assert [take(db).id, take(db).id] == [ids["b"], ids["a"]]
    assert take(db) is None
    assert take(db, "heavy").id == ids["c"]
    assert state(db, ids["unknown"]) is JobState.QUEUED


def test_a_diamond_runs_in_its_order(db: Database) -> None:
    ids = diamond(db)

    order = []
    while held := take(db):
        order.append(held.kind)
        ledger.succeed(db, held, None)

    assert order == ["a", "b", "c", "d"]
    assert {get(db, job).chain for job in ids.values()} == {ids["a"]}


def test_a_failure_cancels_what_needed_it_and_frees_what_hoped_for_it(db: Database) -> None:
    ids = put(db, NewJob("a"), NewJob("b", needs=["a"]), NewJob("c", needs=["b"]), NewJob("d", after=["b"]))

    ledger.fail(db, take(db), MlxqError("no"))

    assert [state(db, ids[label]) for label in "abcd"] == [
        JobState.FAILED, JobState.CANCELLED, JobState.CANCELLED, JobState.QUEUED,
    ]  # fmt: skip
    assert get(db, ids["c"]).error_code == Upstream.code


def test_retry_brings_back_what_the_failure_cancelled(db: Database) -> None:
    ids = diamond(db)
    ledger.fail(db, take(db), MlxqError("no"))

    assert ledger.revive(db, ids["a"]) == [ids[label] for label in "abcd"]

    assert [state(db, ids[label]) for label in "abcd"] == [JobState.QUEUED, *[JobState.BLOCKED] * 3]
    assert get(db, ids["a"]).error is None


def test_retry_leaves_blocked_by_another_failure_alone(db: Database) -> None:
    """D needs b and c; both failed; reviving b alone must not leave d blocked for ever."""
    ids = diamond(db)
    ledger.succeed(db, take(db), None)
    b, c = take(db), take(db)
    ledger.fail(db, b, MlxqError("no"))
    ledger.fail(db, c, MlxqError("no"))

    assert ledger.revive(db, ids["b"]) == [ids["b"]]
    assert ledger.revive(db, ids["c"]) == [ids["c"], ids["d"]]
    with pytest.raises(Busy):
        ledger.revive(db, ids["c"])


def test_a_job_that_is_tried_again_has_all_its_tries_and_no_old_wish_to_stop(db: Database, clock: Any) -> None:
    job = put(db, NewJob("a", max_attempts=3))["a"]
    ledger.retry_later(db, take(db), EngineFailed("no"), 0)
    take(db)
    ledger.rescue(db, ledger.running(db))
    held = take(db)
    ledger.cancel(db, job)
    ledger.end_cancelled(db, held)

    ledger.revive(db, job)
    ledger.release(db, take(db))

    now = get(db, job)
    assert (now.state, now.cancel_at, now.failures, now.rescues) == (JobState.QUEUED, None, 0, 0)


def test_retry_leaves_alone_what_a_person_cancelled(db: Database) -> None:
    ids = put(db, NewJob("a"), NewJob("b", needs=["a"]), NewJob("c", needs=["a"]))
    ledger.cancel(db, ids["b"])
    ledger.fail(db, take(db), MlxqError("no"))

    assert ledger.revive(db, ids["a"]) == [ids["a"], ids["c"]]
    assert state(db, ids["b"]) is JobState.CANCELLED


def test_retry_brings_back_no_job_that_is_being_done_by_another(db: Database) -> None:
    """All or nothing: the job itself stays as it was too."""
    ids = put(db, NewJob("a"), NewJob("b", unique_key="k", needs=["a"]))
    ledger.fail(db, take(db), MlxqError("no"))
    twin = ledger.enqueue(db, NewJob("b", unique_key="k"))[0]

    with pytest.raises(Busy, match=str(twin)):
        ledger.revive(db, ids["a"])

    assert [state(db, job) for job in ids.values()] == [JobState.FAILED, JobState.CANCELLED]


def test_retry_names_the_job_that_must_come_first(db: Database) -> None:
    ids = diamond(db)
    ledger.fail(db, take(db), MlxqError("no"))

    with pytest.raises(Upstream) as caught:
        ledger.revive(db, ids["b"])

    assert caught.value.hint == f"mlxq jobs retry {ids['a']}"


def test_one_ukey_has_one_live_job(db: Database) -> None:
    first, is_new = ledger.enqueue(db, NewJob("a", unique_key="k"))
    again = ledger.enqueue(db, NewJob("a", unique_key="k"))

    assert (is_new, again) == (True, (first, False))
    ledger.succeed(db, take(db), None)
    assert ledger.enqueue(db, NewJob("a", unique_key="k"))[1] is True


def test_nothing_attaches_to_a_job_that_waits_for_more_than_it_would(db: Database) -> None:
    """A start that waits for a pull of hours does not keep a restart from running now."""
    waiting = put(db, NewJob("a"), NewJob("b", unique_key="service", needs=["a"]))

    now, fresh = ledger.enqueue(db, NewJob("b", unique_key="service"), source="watchdog")

    assert (fresh, state(db, now)) == (True, JobState.QUEUED)
    assert ledger.enqueue(db, NewJob("b", unique_key="service")) == (now, False)
    assert ledger.enqueue(db, NewJob("b", unique_key="service", needs=[waiting["a"]])) == (now, False)
    assert get(db, waiting["b"]).unique_key == get(db, now).unique_key == "service"


def test_what_waits_for_the_same_is_enqueued_once_and_attached_to_when_it_can_run(db: Database) -> None:
    first = put(db, NewJob("a", unique_key="a"), NewJob("b", unique_key="b", needs=["a"]))
    again = put(db, NewJob("a", unique_key="a"), NewJob("b", unique_key="b", needs=["a"]))

    assert again == first
    ledger.succeed(db, take(db), None)
    assert ledger.enqueue(db, NewJob("b", unique_key="b")) == (first["b"], False)


def test_a_job_that_became_able_to_run_beside_its_twin_runs_too(db: Database) -> None:
    waiting = put(db, NewJob("a"), NewJob("b", unique_key="b", needs=["a"]))
    put(db, NewJob("b", unique_key="b"))

    done = []
    while held := take(db):
        ledger.succeed(db, held, None)
        done.append(held.id)

    assert len(done) == len({*done, *waiting.values()}) == 3
    assert db.value("SELECT count(*) FROM jobs WHERE state <> 'succeeded'") == 0


def test_nothing_attaches_to_a_job_that_is_being_cancelled(db: Database) -> None:
    dying = put(db, NewJob("a", unique_key="k"))["a"]
    held = take(db)
    ledger.cancel(db, dying)

    after, fresh = ledger.enqueue(db, NewJob("a", unique_key="k"))

    assert (fresh, state(db, after), get(db, after).needs) == (True, JobState.BLOCKED, (dying,))
    ledger.end_cancelled(db, held)
    assert state(db, after) is JobState.QUEUED


@pytest.mark.parametrize(
    "end",
    [
        lambda db, held: ledger.succeed(db, held, None),
        lambda db, held: ledger.fail(db, held, MlxqError("no")),
        lambda db, held: ledger.retry_later(db, held, MlxqError("no"), 300),
    ],
)
def test_what_is_asked_for_again_while_it_runs_runs_once_more(db: Database, end: Any) -> None:
    """It may have read what has changed since."""
    same = NewJob("a", unique_key="k", repeats=True)
    job = ledger.enqueue(db, same)[0]
    held = take(db)
    assert ledger.enqueue(db, same) == (job, False)

    end(db, held)

    again = take(db)
    assert (again.id, again.attempt) == (job, 2)
    ledger.succeed(db, again, None)
    assert state(db, job) is JobState.SUCCEEDED


def test_one_job_at_a_time_runs_for_a_service(db: Database) -> None:
    """The others occupy no thread, and the queue does not look for them in vain."""
    put(db, NewJob("a", service="fast"), NewJob("b", service="fast"), NewJob("c", service="standard"), NewJob("d"))

    first, second, third = take(db), take(db), take(db)
    assert [held.kind for held in (first, second, third)] == ["a", "c", "d"]
    assert take(db) is None
    assert ledger.next_due(db, "ops", KINDS) is None
    ledger.succeed(db, first, None)
    assert take(db).kind == "b"


def test_a_batch_attaches_to_a_live_job_and_waits_for_it(db: Database) -> None:
    pull = ledger.enqueue(db, NewJob("a", unique_key="pull"))[0]

    made = put(db, NewJob("a", unique_key="pull"), NewJob("b", needs=["a"]))

    assert made["a"] == pull
    assert state(db, made["b"]) is JobState.BLOCKED
    ledger.succeed(db, take(db), None)
    assert state(db, made["b"]) is JobState.QUEUED


def test_a_job_born_after_its_need_ended_is_settled_at_once(db: Database) -> None:
    good, bad = put(db, NewJob("a"))["a"], put(db, NewJob("b"))["b"]
    ledger.succeed(db, take(db), None)
    ledger.fail(db, take(db), MlxqError("no"))

    assert state(db, put(db, NewJob("c", needs=[good]))["c"]) is JobState.QUEUED
    assert state(db, put(db, NewJob("c", needs=[bad]))["c"]) is JobState.CANCELLED
    assert state(db, put(db, NewJob("c", after=[bad]))["c"]) is JobState.QUEUED


def test_a_soft_need_that_is_blocked_itself_is_waited_for(db: Database) -> None:
    ids = put(db, NewJob("a"), NewJob("b", needs=["a"]), NewJob("c", needs=["a"], after=["b"]))

    ledger.succeed(db, take(db), None)
    assert (state(db, ids["b"]), state(db, ids["c"])) == (JobState.QUEUED, JobState.BLOCKED)
    ids |= put(db, NewJob("d", after=[ids["c"]]))

    assert state(db, ids["d"]) is JobState.BLOCKED


def test_fan_out_belongs_to_the_success_that_asked_for_it(db: Database) -> None:
    root = put(db, NewJob("a"), NewJob("d", needs=["a"]))
    ledger.succeed(db, take(db), None, [NewJob("b"), NewJob("c", needs=["b"])])

    chain = db.rows("SELECT kind, state FROM jobs WHERE chain = ? ORDER BY id", (root["a"],))

    assert [tuple(row) for row in chain] == [
        ("a", "succeeded"), ("d", "queued"), ("b", "queued"), ("c", "blocked"),
    ]  # fmt: skip


def test_a_retry_waits_its_time(db: Database, clock: Any) -> None:
    job = put(db, NewJob("a", max_attempts=2))["a"]
    ledger.retry_later(db, take(db), EngineFailed("no"), 10)

    assert take(db) is None
    clock.now += 10
    assert (take(db).failures, get(db, job).error) == (1, "no")


def test_a_wait_says_why_and_a_new_attempt_begins_without_old_progress(db: Database, clock: Any) -> None:
    job = put(db, NewJob("a"))["a"]
    held = take(db)
    ledger.report(db, held, "fetch", {"done": 7})
    ledger.snooze(db, held, 10, "the host asks for a pause")
    assert get(db, job).phase == "the host asks for a pause"

    clock.now += 10
    take(db)

    assert (get(db, job).phase, get(db, job).progress) == (None, {})


def test_a_clock_set_back_does_not_postpone_a_retry(db: Database, clock: Any) -> None:
    put(db, NewJob("a"))
    ledger.snooze(db, take(db), 10, "later")

    clock.now -= 3600

    assert take(db) is not None


@pytest.mark.parametrize(
    "write",
    [
        lambda db, held: ledger.succeed(db, held, None),
        lambda db, held: ledger.fail(db, held, MlxqError("no")),
        lambda db, held: ledger.retry_later(db, held, MlxqError("no"), 1),
        lambda db, held: ledger.snooze(db, held, 1, "x"),
        ledger.release,
        ledger.end_cancelled,
        lambda db, held: ledger.report(db, held, "x", {}),
    ],
)
@pytest.mark.parametrize("heir_is", ["boot/1/1", "boot/2/2"])
def test_a_zombie_can_write_nothing(db: Database, write: Any, heir_is: str) -> None:
    """Neither a dead worker's, nor a thread's whose job another thread of its own worker has taken again."""
    job = put(db, NewJob("a"))["a"]
    zombie = take(db, owner="boot/1/1")
    ledger.rescue(db, ledger.running(db))
    heir = take(db, owner=heir_is)

    with pytest.raises(Fenced):
        write(db, zombie)

    assert (state(db, job), heir.attempt) == (JobState.RUNNING, 2)


def test_rescue_gives_up_a_job_that_kills_its_worker(db: Database, clock: Any) -> None:
    job = put(db, NewJob("a"))["a"]
    take(db)

    for _ in range(ledger.MAX_RESCUES):
        assert ledger.rescue(db, ledger.running(db)) == [job]
        clock.now += 60
        assert take(db) is not None
    ledger.rescue(db, ledger.running(db))

    assert (state(db, job), get(db, job).error_code) == (JobState.FAILED, "worker_lost")


def test_from_its_second_rescue_in_a_row_on_a_job_waits(db: Database, clock: Any) -> None:
    """Four deaths within seconds would be no fair trial."""
    put(db, NewJob("a"))
    waits: list[float] = []

    for _ in range(ledger.MAX_RESCUES):
        take(db)
        ledger.rescue(db, ledger.running(db))
        waits.append(ledger.next_due(db, "ops", KINDS) or 0.0)
        clock.now += 60

    assert waits == [0.0, 2.0, 4.0]


def test_a_job_that_ran_for_long_is_not_blamed_for_the_end_of_its_worker(db: Database, clock: Any) -> None:
    """A pull of a day outlives any number of power cuts."""
    job = put(db, NewJob("a"))["a"]

    for _ in range(2 * ledger.MAX_RESCUES):
        held = take(db)
        clock.now += ledger.HARMLESS_S + 1
        ledger.report(db, held, "fetch", {})
        ledger.rescue(db, [held])
        clock.now += 60

    assert (state(db, job), get(db, job).rescues) == (JobState.QUEUED, 1)


def test_rescue_passes_over_a_job_that_ended_meanwhile(db: Database) -> None:
    job = put(db, NewJob("a"))["a"]
    held = take(db)
    seen = ledger.running(db)
    ledger.succeed(db, held, None)

    assert ledger.rescue(db, seen) == []
    assert state(db, job) is JobState.SUCCEEDED


@pytest.mark.parametrize(
    "put_back",
    [
        lambda db, held: ledger.retry_later(db, held, EngineFailed("no"), 300),
        lambda db, held: ledger.snooze(db, held, 300, "later"),
        ledger.release,
    ],
)
def test_what_goes_back_to_the_queue_after_its_cancel_was_asked_for_ends_there(db: Database, put_back: Any) -> None:
    ids = put(db, NewJob("a", max_attempts=3), NewJob("b", needs=["a"]))
    held = take(db)
    ledger.cancel(db, ids["a"])

    put_back(db, held)

    assert [state(db, job) for job in ids.values()] == [JobState.CANCELLED, JobState.CANCELLED]


def test_a_person_who_asks_again_ends_the_wait_for_the_next_try(db: Database) -> None:
    job = ledger.enqueue(db, NewJob("a", unique_key="k", max_attempts=2))[0]
    ledger.retry_later(db, take(db), EngineFailed("no"), 300)

    assert ledger.enqueue(db, NewJob("a", unique_key="k"), source="watchdog") == (job, False)
    assert take(db) is None
    assert ledger.enqueue(db, NewJob("a", unique_key="k")) == (job, False)
    assert take(db).id == job


def test_an_error_is_forgotten_by_success_and_kept_in_the_events(db: Database) -> None:
    job = put(db, NewJob("a", max_attempts=2))["a"]
    ledger.retry_later(db, take(db), EngineFailed("It would not.", done="It was stopped."), 0)
    assert get(db, job).error == "It would not. It was stopped."

    ledger.succeed(db, take(db), None)

    assert (get(db, job).error, get(db, job).error_code) == (None, None)
    assert event.of_job(db, job)[2].data == {"error": "It would not. It was stopped."}


def test_a_row_of_unknown_kind_neither_runs_nor_keeps_the_lane_awake(db: Database) -> None:
    """Its time has come and it never runs: a queue that slept until its time would never sleep."""
    put(db, NewJob("of the next version"))

    assert take(db) is None
    assert ledger.next_due(db, "ops", KINDS) is None


def test_a_row_whose_arguments_are_no_json_holds_nobody_up(db: Database) -> None:
    """Only a damaged file has one: the schema refuses it."""
    ids = put(db, NewJob("a"), NewJob("b"))
    db.run("PRAGMA ignore_check_constraints=ON")
    db.run("UPDATE jobs SET args = '}' WHERE id = ?", (ids["a"],))

    assert take(db).id == ids["b"]
    assert ledger.next_due(db, "ops", KINDS) is None


def test_cancel_stops_the_waiting_at_once_and_tells_the_running(db: Database) -> None:
    ids = put(db, NewJob("a"), NewJob("b", needs=["a"]))
    held = take(db)

    assert ledger.cancel(db, ids["a"]) is JobState.RUNNING
    assert cancel_asked(db, held)
    ledger.end_cancelled(db, held)

    assert [state(db, job) for job in ids.values()] == [JobState.CANCELLED, JobState.CANCELLED]
    with pytest.raises(Busy):
        ledger.cancel(db, ids["a"])
    with pytest.raises(NotFound):
        ledger.cancel(db, 999)


def test_a_cancelled_job_whose_worker_died_is_not_run_again(db: Database) -> None:
    job = put(db, NewJob("a"))["a"]
    take(db)
    ledger.cancel(db, job)

    ledger.rescue(db, ledger.running(db))

    assert state(db, job) is JobState.CANCELLED


def test_prune_keeps_the_young_the_newest_and_the_chains_that_live(db: Database, clock: Any) -> None:
    old = put(db, NewJob("a"))["a"]
    ledger.succeed(db, take(db), None)
    chain = put(db, NewJob("a"), NewJob("b", needs=["a"]))
    ledger.succeed(db, take(db), None)
    clock.now += 31 * 86400
    young = put(db, NewJob("c"))["c"]

    assert ledger.prune(db, keep=100) == 0
    assert ledger.prune(db, keep=1) == 1

    assert [row[0] for row in db.rows("SELECT id FROM jobs ORDER BY id")] == [*chain.values(), young]
    assert event.of_job(db, old) == []


def test_prune_forgets_old_events_of_services_beyond_the_newest(db: Database, clock: Any) -> None:
    for number in range(3):
        event.record(db, f"number {number}", service="fast")
    clock.now += 31 * 86400

    ledger.prune(db, keep=2)

    assert [happening.name for happening in event.of_service(db, "fast")] == ["number 1", "number 2"]


def test_a_failed_transaction_leaves_nothing(db: Database) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        put(db, NewJob("a"), NewJob("b", needs=[12345]))

    assert db.value("SELECT count(*) FROM jobs") == 0
    assert db.connection.in_transaction is False


def test_every_step_of_the_table_is_what_advance_allows() -> None:
    for step, (sources, target) in TRANSITIONS.items():
        for now in JobState:
            if now in sources:
                assert transition(now, step) is target
            else:
                with pytest.raises(ValueError, match=step):
                    transition(now, step)


class LedgerMachine(RuleBasedStateMachine):
    """Any order of steps keeps the ledger's promises."""

    jobs: Bundle[int] = Bundle("jobs")

    @initialize()
    def start(self) -> None:
        self.db: Database = MACHINE["db"]
        self.clock = MACHINE["clock"]
        for table in ("events", "job_deps", "jobs"):
            self.db.run(f"DELETE FROM {table}")
        self.held: list[Any] = []
        self.revived: set[int] = set()
        self.ended: dict[int, JobState] = {}

    @rule(
        target=jobs,
        hard=st.lists(jobs, max_size=2),
        soft=st.lists(jobs, max_size=2),
        key=st.sampled_from([None, "k"]),
        repeats=st.booleans(),
    )
    def put_in(self, hard: list[int], soft: list[int], key: str | None, *, repeats: bool) -> int:
        needs = sorted(set(hard))
        after = sorted(set(soft) - set(needs))
        job = ledger.enqueue(self.db, NewJob("a", needs=needs, after=after, unique_key=key, repeats=repeats))[0]
        live = {need for need in (*needs, *after) if get(self.db, need).live}
        assert not repeats or not live or get(self.db, job).state in {JobState.BLOCKED, *ENDED}
        return job

    @rule()
    def claim(self) -> None:
        if held := take(self.db):
            self.held.append(held)

    @rule(data=st.data(), how=st.sampled_from(["succeed", "fail", "retry", "snooze", "release", "cancelled"]))
    def write(self, data: st.DataObject, how: str) -> None:
        if not self.held:
            return
        held = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        fenced = self._fenced(held)
        try:
            self._write(held, how)
        except Fenced:
            assert fenced
        else:
            assert not fenced

    def _fenced(self, held: Any) -> bool:
        row: Job = get(self.db, held.id)
        return row.state is not JobState.RUNNING or row.attempt != held.attempt

    def _write(self, held: Any, how: str) -> None:
        match how:
            case "succeed":
                ledger.succeed(self.db, held, None, [NewJob("a", needs=[held.id])])
            case "fail":
                ledger.fail(self.db, held, MlxqError("no"))
            case "retry":
                ledger.retry_later(self.db, held, MlxqError("no"), 5)
            case "snooze":
                ledger.snooze(self.db, held, 5, "x")
            case "release":
                ledger.release(self.db, held)
            case _:
                ledger.end_cancelled(self.db, held)

    @rule(job=jobs)
    def cancel(self, job: int) -> None:
        was = get(self.db, job).state
        try:
            ledger.cancel(self.db, job)
        except Busy:
            assert was in ENDED

    @rule(job=jobs)
    def revive(self, job: int) -> None:
        try:
            self.revived.update(ledger.revive(self.db, job))
        except (Busy, Upstream):
            return

    @rule()
    def rescue(self) -> None:
        ledger.rescue(self.db, ledger.running(self.db))

    @rule(seconds=st.integers(-3600, 3600))
    def move_the_clock(self, seconds: int) -> None:
        self.clock.now += seconds

    @invariant()
    def an_ended_job_stays_ended_unless_revived(self) -> None:
        for row in self.db.rows("SELECT id, state FROM jobs"):
            before = self.ended.get(row["id"])
            if before and row["id"] not in self.revived:
                assert row["state"] == before
            if row["state"] in ENDED:
                self.ended[row["id"]] = JobState(row["state"])
                self.revived.discard(row["id"])

    @invariant()
    def a_ukey_has_at_most_one_live_job(self) -> None:
        assert (
            self.db.value(
                "SELECT count(*) FROM jobs WHERE unique_key = 'k' AND state IN ('blocked','queued','running')"
            )
            or 0
        ) <= 1

    @invariant()
    def no_job_runs_before_its_needs(self) -> None:
        early = self.db.value(
            "SELECT count(*) FROM jobs JOIN job_deps ON job = jobs.id JOIN jobs AS need ON need.id = needs"
            " WHERE jobs.state IN ('queued', 'running', 'succeeded') AND"
            " (CASE WHEN soft THEN need.state IN ('blocked', 'queued', 'running') ELSE need.state != 'succeeded' END)"
            " AND need.id NOT IN (SELECT job FROM events WHERE name = 'revived')"
        )
        assert early == 0

    @invariant()
    def nothing_waits_for_what_cannot_come(self) -> None:
        stuck = self.db.value(
            "SELECT count(*) FROM jobs WHERE state = 'blocked' AND NOT EXISTS (SELECT 1 FROM job_deps"
            " JOIN jobs AS need ON need.id = needs WHERE job = jobs.id"
            " AND need.state IN ('blocked', 'queued', 'running'))"
        )
        assert stuck == 0

    @invariant()
    def success_is_told_once(self) -> None:
        twice = self.db.value(
            "SELECT count(*) FROM (SELECT job FROM events WHERE name = 'succeeded' GROUP BY job HAVING count(*) > 1)"
        )
        assert twice == 0


MACHINE: dict[str, Any] = {}


def test_any_order_of_steps_keeps_the_promises(home: Any, clock: Any) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    MACHINE.update(db=open_database(home, clock=clock), clock=clock)
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=share(60), stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
    assert MACHINE["db"].value("PRAGMA integrity_check") == "ok"


def test_live_and_ended_part_the_states() -> None:
    assert set(JobState) == LIVE | ENDED
    assert not LIVE & ENDED
    assert all(step.meaning for step in JobEvent)
