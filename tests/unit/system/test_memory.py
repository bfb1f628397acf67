import os

import pytest

from tasks.system import memory, process
from tasks.system.memory import Pressure, SleepClock


def test_memory_adds_up():
    seen = memory.memory()

    assert 0 < seen.available <= seen.total


@pytest.mark.parametrize(("available", "level"), [(4, "critical"), (6, "warn"), (50, "normal")])
def test_pressure_follows_what_is_left(available: int, level: str):
    assert memory.by_share(available, 100) == level


@pytest.mark.parametrize(("said", "level"), [("1\n", "normal"), ("2\n", "warn"), ("4\n", "critical"), ("", "normal")])
def test_pressure_of_a_mac_is_read(said: str, level: str):
    assert memory.parse_pressure(said) == Pressure(level)


def test_a_service_weighs_what_its_processes_weigh():
    me = process.identify(os.getpid())
    assert me is not None

    assert memory.resident(me) > 5 * 2**20
    assert memory.resident(process.Identity(me.pid, "1", me.boot)) == 0


def test_oom_kills_are_counted():
    assert memory.oom_kills() >= 0


def test_a_sleep_between_two_looks_is_noticed():
    wakes = SleepClock()
    slept = memory.asleep_s()

    assert not wakes.look(slept + 0.5, now=10.0)
    assert wakes.woke_at is None
    assert wakes.look(slept + 3600, now=20.0)
    assert wakes.woke_at == 20.0
    assert not wakes.look(slept + 3600, now=30.0)


def test_a_process_that_stood_still_counts_as_asleep():
    """A virtual machine was paused, or a container frozen: the clock ran on, and no engine could answer."""
    wakes = SleepClock()
    slept = memory.asleep_s()

    assert not wakes.look(slept, now=10.0, every_s=2.0)
    assert not wakes.look(slept, now=31.0, every_s=2.0)
    assert wakes.look(slept, now=31.0 + 2.0 + memory.SUSPENDED_S + 0.1, every_s=2.0)
    assert not wakes.look(slept, now=60.0, every_s=2.0)
    assert not wakes.look(slept, now=3600.0, every_s=3600.0)
