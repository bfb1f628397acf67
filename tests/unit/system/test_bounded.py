"""A call that hangs is left behind in time, and leaves one thread behind, however often it is made."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from state.errors import Internal, NotFound
from tasks.system import bounded


def refuse(problem: Exception) -> Callable[[], None]:
    def work() -> None:
        raise problem

    return work


def test_what_the_call_returns_or_raises_comes_back() -> None:
    assert bounded.call("here", lambda: 7, 10.0) == 7
    for problem in (OSError(5, "Input/output error"), NotFound("There is none."), TimeoutError()):
        with pytest.raises(type(problem)) as caught:
            bounded.call("here", refuse(problem), 10.0)
        assert caught.value is problem


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_the_call_is_no_silence() -> None:
    with pytest.raises(Internal):
        bounded.call("here", refuse(ValueError("a fault")), 10.0)
    assert bounded.call("here", lambda: 7, 10.0) == 7
    for thread in threading.enumerate():  # what it says as it ends belongs to this test
        if thread.name == "bounded here":
            thread.join(10)


def test_a_call_that_hangs_holds_up_others_with_its_key_alone() -> None:
    release, began = threading.Event(), threading.Event()

    def hang() -> None:
        began.set()
        release.wait()

    with pytest.raises(bounded.Hangs):
        bounded.call("disk", hang, 0.05)
    assert began.wait(60)
    for _ in range(5):
        with pytest.raises(bounded.Hangs):
            bounded.call("disk", lambda: 7, 0.01)
    assert [thread.name for thread in threading.enumerate()].count("bounded disk") == 1
    assert bounded.call("another disk", lambda: 7, 10.0) == 7

    release.set()
    assert bounded.call("disk", lambda: 7, 10.0) == 7


def test_calls_at_the_same_time_take_turns() -> None:
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda number=number: results.append(bounded.call("disk", lambda: number, 30.0)))
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(20))
