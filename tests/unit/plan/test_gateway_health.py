"""A gateway that hangs is seen within seconds; one that a busy machine keeps from the processor is left alone."""

from typing import Any

import pytest

from tasks.plan import gateway_health
from tasks.plan.gateway_health import ASLEEP_S, MISSES, SILENT_S, SPENT_S, STARVED_S, STOPPED_S, GatewaySample

T0 = 1000.0
CPU = 5.0
"""CPU seconds at its last answer."""


def seen_after(seconds: float, step: float = 0.5, *, woke_at: float | None = None, **process: Any) -> bool:
    """Return whether it counts as hung after looks that saw the same; `cpu`: CPU seconds that it spends a second."""
    rate = float(process.pop("cpu", 0.0))
    track, at = gateway_health.begin(T0, CPU), T0
    while at < T0 + seconds:
        at = min(T0 + seconds, at + step)
        sample = GatewaySample(at, answered=False, cpu_s=CPU + rate * (at - T0), **process)
        track = gateway_health.follow(track, sample)
    return gateway_health.hangs(track, at, woke_at=woke_at)


def test_one_that_was_stopped_is_seen_first():
    assert not seen_after(STOPPED_S, stopped=True)
    assert seen_after(STOPPED_S + 1, stopped=True)


def test_one_that_sleeps_while_a_question_waits_hangs():
    assert not seen_after(SILENT_S, waits=False)
    assert seen_after(max(SILENT_S, ASLEEP_S) + 1, waits=False)


def test_one_that_spins_hangs():
    assert not seen_after(SILENT_S, waits=True, cpu=1.0)
    assert seen_after(SILENT_S + 0.5, waits=True, cpu=1.0)


def test_one_that_gets_no_processor_is_left_alone():
    """Also with a share of a twentieth, as at a load of forty on two processors."""
    assert not seen_after(STARVED_S, waits=True)
    assert not seen_after(SPENT_S / 0.05, waits=True, cpu=0.05)
    assert seen_after(STARVED_S + 1, waits=True)


def test_where_the_system_does_not_say_the_processor_tells():
    """On macOS every process counts as runnable: one that waits for a processor still gets some of it."""
    assert not seen_after(10, waits=None, cpu=0.05)
    assert seen_after(max(SILENT_S, ASLEEP_S) + 1, waits=None)


def test_few_questions_are_not_enough():
    """The one who asks may have been short of the processor."""
    assert not seen_after((MISSES - 1) * 5, 5, waits=False)
    assert seen_after(MISSES * 5, 5, waits=False)


@pytest.mark.parametrize(("woke_s", "hangs"), [(1, False), (20, True)])
def test_a_machine_that_woke_is_given_time(woke_s: float, hangs: bool):
    assert seen_after(10, waits=False, woke_at=T0 + 10 - woke_s) is hangs


def test_an_answer_clears_everything():
    track = gateway_health.begin(T0, CPU)
    for at in range(5):
        track = gateway_health.follow(track, GatewaySample(T0 + at, answered=False, cpu_s=CPU))
    assert gateway_health.hangs(track, T0 + 4)
    track = gateway_health.follow(track, GatewaySample(T0 + 5, answered=True, cpu_s=CPU))
    assert not gateway_health.hangs(track, T0 + 5)
