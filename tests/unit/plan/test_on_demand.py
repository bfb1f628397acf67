"""Who is loaded next, who makes room, and when an idle engine is stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import share

from state.errors import DoesNotFit
from tasks.plan import on_demand as plan
from tasks.plan.on_demand import Evict, Hold, Resident, Start, Waiting

BUDGET = 16
NOW = 1_000.0
sizes = st.integers(1, BUDGET)
residents = st.lists(
    st.builds(
        Resident,
        name=st.sampled_from([f"r{number}" for number in range(6)]),
        bytes=sizes,
        pinned=st.booleans(),
        answering=st.booleans(),
        leaving=st.booleans(),
        starting=st.booleans(),
        used_at=st.floats(0, NOW),
        stays_until=st.floats(NOW - 50, NOW + 50),
    ),
    unique_by=lambda resident: resident.name,
    max_size=6,
)
waiting = st.lists(
    st.builds(
        Waiting,
        name=st.sampled_from([f"w{number}" for number in range(4)]),
        bytes=sizes,
        asked_at=st.floats(NOW - 200, NOW),
        background=st.booleans(),
    ),
    unique_by=lambda entry: entry.name,
    min_size=1,
    max_size=4,
)


@settings(max_examples=share(60))
@given(waiting, residents)
def test_a_step_never_takes_memory_that_is_not_there_nor_stops_what_stays(
    asked: list[Waiting], there: list[Resident]
) -> None:
    used = sum(resident.bytes for resident in there)
    by_name = {resident.name: resident for resident in there}
    for entry in asked:
        step = plan.decide(entry.name, asked, there, budget=BUDGET, now=NOW)
        if isinstance(step, Start):
            assert used + entry.bytes <= BUDGET
        elif isinstance(step, Evict):
            chosen = [by_name[name] for name in step.names]
            assert plan.line(asked, NOW)[0] == entry
            assert not any(one.pinned or one.leaving or one.starting or one.stays_until > NOW for one in chosen)
            leaving = sum(resident.bytes for resident in there if resident.leaving)
            freed = sum(one.bytes for one in chosen)
            assert used - leaving - freed + entry.bytes <= BUDGET
            assert all(used - leaving - freed + one.bytes + entry.bytes > BUDGET for one in chosen)
        else:
            assert step.reason


@settings(max_examples=share(20))
@given(st.integers(2, 4), st.integers(1, 5), st.randoms(use_true_random=False))
def test_models_of_which_one_fits_take_turns_and_each_stays(models: int, stay: int, chance: object) -> None:
    """Clients ask for all models all the time: each is served in turn, and none leaves before its stay is over.

    In whatever order the jobs of those that wait come to decide.
    """
    names = [f"m{number}" for number in range(models)]
    shuffle: Callable[[list[Any]], None] = chance.shuffle  # pyright: ignore[reportAttributeAccessIssue]
    shuffle(names)
    asked = {name: float(position) for position, name in enumerate(names)}
    loaded, loaded_at, turns, now = "", 0.0, list[str](), 10.0
    while len(turns) < 3 * models:
        now += 1
        there = [Resident(loaded, 1, used_at=now, stays_until=loaded_at + stay)] if loaded else []
        line = [Waiting(name, 1, at) for name, at in asked.items() if name != loaded]
        shuffle(line)
        for entry in line:
            step = plan.decide(entry.name, line, there, budget=1, now=now)
            if isinstance(step, Evict):
                assert now - loaded_at >= stay
                asked[loaded], loaded = now, ""
                break
            if isinstance(step, Start):
                loaded, loaded_at = entry.name, now
                turns.append(loaded)
                break
    assert turns[:models] == names
    assert all(turns[at : at + models] == names for at in range(0, len(turns), models))


def test_room_that_was_made_is_not_taken_by_one_that_asked_later() -> None:
    """The engine that gave way is gone, and the one that it gave way to has not looked again yet."""
    first, later, small = Waiting("first", 5, NOW - 2), Waiting("later", 5, NOW - 1), Waiting("small", 3, NOW)
    line = [first, later, small]
    steps = {entry.name: plan.decide(entry.name, line, [], budget=8, now=NOW) for entry in line}
    assert steps == {"first": Start(), "later": Hold("behind first"), "small": Start()}


def test_background_requests_come_last_and_are_not_starved() -> None:
    early = Waiting("early", 1, NOW - 30, background=True)
    late = Waiting("late", 1, NOW - 1)
    assert plan.line([early, late], NOW) == [late, early]
    assert plan.line([early, late], NOW + 40) == [early, late]


def test_idle_engines_go_before_those_that_answer() -> None:
    busy = Resident("busy", 4, answering=True, used_at=1)
    idle = Resident("idle", 4, used_at=NOW)
    assert plan.decide("w", [Waiting("w", 4, NOW)], [busy, idle], budget=8, now=NOW) == Evict(("idle",))
    both = plan.decide("w", [Waiting("w", 8, NOW)], [busy, idle], budget=8, now=NOW)
    assert both == Evict(("idle", "busy"))


def test_one_that_was_loaded_a_moment_ago_is_waited_for() -> None:
    young = Resident("young", 8, stays_until=NOW + 7)
    step = plan.decide("w", [Waiting("w", 8, NOW)], [young], budget=8, now=NOW)
    assert step == Hold("for young, loaded a moment ago", NOW + 7)


def test_what_never_fits_is_refused_with_the_sum() -> None:
    with pytest.raises(DoesNotFit, match=r"big needs 12 GB, and 4 GB of the budget of 10 GB can be free"):
        plan.require_room("big", 12 * 2**30, [Resident("tier", 6 * 2**30, pinned=True)], 10 * 2**30)
    plan.require_room("big", 4 * 2**30, [Resident("tier", 6 * 2**30, pinned=True), Resident("x", 9)], 10 * 2**30)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(300, 300), (0, 0), ("0", 0), (-1, -1), ("-1", -1), ("-5m", -1), ("5m", 300), ("1h30m", 5400), ("500ms", 0.5)],
)
def test_keep_alive_is_read_as_ollama_reads_it(value: object, seconds: float) -> None:
    assert plan.seconds(value) == seconds


@pytest.mark.parametrize("value", ["", "5 minutes", "m", "1e9", True, None, [], "9" * 50, 10**12, "1m-1s"])
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"duration|year"):
        plan.seconds(value)


@settings(max_examples=share(40))
@given(st.none() | st.floats(-10, 100), st.none() | st.floats(1, 100), st.floats(0, 200))
def test_an_engine_is_stopped_when_its_time_is_over_and_not_before(
    kept: float | None, setting: float | None, idle: float
) -> None:
    span = plan.idle_s(kept, setting)
    over = plan.is_over(Resident("a", 1, used_at=NOW - idle), span, NOW)
    if kept is not None:
        assert over == (kept >= 0 and NOW - (NOW - idle) >= kept)
    else:
        assert over == (setting is not None and NOW - (NOW - idle) >= setting)
    for state in ({"pinned": True}, {"answering": True}, {"leaving": True}, {"starting": True}):
        assert not plan.is_over(Resident("a", 1, used_at=NOW - idle, **state), span, NOW)
