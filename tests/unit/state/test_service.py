import itertools

import pytest

from state import event, service
from state.db import Database, open_database
from state.errors import NotFound
from state.paths import Home
from state.service import DOWN, TRANSITIONS, Observed, ServiceEvent, State

IDENTITY = "boot/812/77"


@pytest.fixture
def db(db: Database) -> Database:
    """Return a database with one service in it."""
    service.ensure(db, "fast", "engine", 8001)
    return db


def bring_up(db: Database) -> int:
    service.set_desired(db, "fast", "up")
    generation = service.request_start(db, "fast", ["python"], "f1", 8001)
    assert generation is not None
    assert service.apply(db, "fast", ServiceEvent.SPAWNED, fence=generation, identity=IDENTITY)
    assert service.apply(db, "fast", ServiceEvent.BECAME_READY, fence=generation)
    return generation


@pytest.mark.parametrize(("now", "what"), itertools.product(State, ServiceEvent))
def test_only_the_tables_steps_are_taken(now: State, what: ServiceEvent):
    sources, target = TRANSITIONS[what]

    if now in sources:
        assert service.transition(now, what) == target
    else:
        with pytest.raises(ValueError, match=f"a {now} service cannot be {what}"):
            service.transition(now, what)


@pytest.mark.parametrize("what", ServiceEvent)
def test_a_row_takes_the_steps_of_the_table_and_no_other(db: Database, what: ServiceEvent):
    sources, target = TRANSITIONS[what]
    after: dict[State, State] = {}
    for now in State:
        db.run("UPDATE services SET state = ?", (now,))
        assert service.apply(db, "fast", what) == (now in sources)
        after[now] = service.get(db, "fast").state

    assert after == {now: target if now in sources else now for now in State}


def test_every_state_can_be_reached_and_left():
    reached = {State.STOPPED}
    for _ in State:
        reached |= {target for sources, target in TRANSITIONS.values() if sources & reached}

    assert reached == set(State)
    assert set().union(*(sources for sources, _ in TRANSITIONS.values())) == set(State)


def test_every_word_has_its_sentence():
    assert all(member.meaning for member in [*State, *ServiceEvent])


@pytest.mark.parametrize(
    ("doing", "wanted", "seen"),
    [
        ("ready", "up", "healthy"),
        ("stalled", "up", "degraded"),
        ("draining", "up", "degraded"),
        ("stopping", "down", "degraded"),
        ("loading", "up", "down"),
        ("stopped", "up", "down"),
        ("stopped", "down", "stopped"),
        ("backoff", "up", "crashed"),
        ("crash_loop", "up", "crashed"),
        ("failed", "up", "crashed"),
    ],
)
def test_five_words_for_outsiders(doing: str, wanted: service.Desired, seen: str):
    assert service.observe(State(doing), wanted) == Observed(seen)


def test_a_new_service_is_stopped_and_not_wanted(db: Database):
    one = service.get(db, "fast")

    assert (one.desired, one.state, one.observed, one.generation) == ("down", "stopped", "stopped", 0)


def test_the_way_up(db: Database):
    generation = bring_up(db)
    one = service.get(db, "fast")

    assert (generation, one.generation) == (1, 1)
    assert (one.state, one.observed, one.pid) == (State.READY, Observed.HEALTHY, 812)
    assert [it.name for it in event.of_service(db, "fast")] == [
        "start_requested",
        "starting",
        "spawned",
        "became_ready",
    ]


def test_a_service_that_is_up_is_not_started_twice(db: Database):
    bring_up(db)

    assert service.request_start(db, "fast", ["python"], "f1", 8001) is None


def test_a_start_that_was_never_finished_may_begin_again(db: Database):
    """The worker died between intent and spawn."""
    assert service.request_start(db, "fast", ["python"], "f1", 8001) == 1
    assert service.request_start(db, "fast", ["python"], "f1", 8001) == 2


def test_an_old_generation_changes_nothing(db: Database):
    """A late callback about a process that was replaced long ago."""
    bring_up(db)

    assert not service.apply(db, "fast", ServiceEvent.EXITED, fence=0)
    assert service.get(db, "fast").state == State.READY


def test_a_new_start_forgets_the_last_ones_end(db: Database):
    bring_up(db)
    service.apply(db, "fast", ServiceEvent.EXITED, exit_code=137, cause="It was killed.", exits=[5.0], restarts=1)
    assert service.get(db, "fast").exits == [5.0]

    service.request_start(db, "fast", ["python"], "f2", 8001)
    one = service.get(db, "fast")

    assert (one.identity, one.exit_code, one.cause, one.spec_hash) == (None, None, None, "f2")
    assert (one.exits, one.restarts) == ([5.0], 1)


def test_a_persons_wish_gives_a_failed_service_its_tries_back(db: Database):
    bring_up(db)
    service.apply(db, "fast", ServiceEvent.FAILED, exits=[1.0, 2.0], next_try_at=9.0)
    service.set_desired(db, "fast", "up")

    assert service.get(db, "fast").exits == []
    assert service.get(db, "fast").next_try_at is None


def test_the_wish_outlives_the_connection(db: Database, home: Home):
    service.set_desired(db, "fast", "up")
    again = open_database(home)

    assert service.get(again, "fast").desired == "up"
    again.close()


def test_only_a_service_that_is_down_is_forgotten(db: Database):
    bring_up(db)
    assert not service.remove(db, "fast")

    service.apply(db, "fast", ServiceEvent.STOPPED)
    assert service.remove(db, "fast")
    with pytest.raises(NotFound):
        service.get(db, "fast")


def test_a_port_belongs_to_a_start(db: Database):
    """Whoever looks at the service looks where it listens, and not where it shall."""
    bring_up(db)
    service.ensure(db, "fast", "engine", 9001)
    assert service.get(db, "fast").port == 8001

    service.begin_handover(db, "fast", ["python"], "f2", 9001)
    assert service.get(db, "fast").port == 8001

    service.apply(db, "fast", ServiceEvent.STOPPED)
    service.request_start(db, "fast", ["python"], "f2", 9001)
    assert service.get(db, "fast").port == 9001


def test_down_means_no_process():
    assert frozenset({"stopped", "backoff", "disk_unavailable", "crash_loop", "failed"}) == DOWN
