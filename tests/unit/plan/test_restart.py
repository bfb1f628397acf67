from hypothesis import given
from hypothesis import strategies as st

from tasks.plan import restart

NOW = 1_000_000.0


def pauses(count: int) -> list[float]:
    return [restart.pause(exits) for exits in range(1, count + 1)]


def test_the_first_try_comes_at_once():
    assert restart.next_try([NOW], NOW, 0.5) == restart.Retry(NOW, crash_loop=False)


def test_pauses_double_up_to_a_minute():
    assert pauses(10) == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_more_than_five_exits_in_ten_minutes_flap():
    five = [NOW - 400, NOW - 300, NOW - 200, NOW - 100, NOW]

    assert not restart.next_try(five, NOW, 0.5).crash_loop
    assert restart.next_try([NOW - 500, *five], NOW, 0.5) == restart.Retry(NOW + 300, crash_loop=True)
    assert not restart.next_try([NOW - 700, *five], NOW, 0.5).crash_loop


def test_a_person_sets_how_many_and_how_long():
    assert restart.next_try([NOW - 1, NOW], NOW, 0.5, most=1).crash_loop
    assert restart.next_try([NOW - 1, NOW], NOW, 0.5, first_pause_s=5) == restart.Retry(NOW + 5, crash_loop=False)


def test_ten_good_minutes_clear_the_past():
    assert restart.remember([NOW - 700, NOW - 650], NOW, ready_s=600) == [NOW]
    assert restart.remember([NOW - 700, NOW - 650], NOW, ready_s=599) == [NOW - 700, NOW - 650, NOW]


def test_exits_from_the_future_are_dropped():
    """The clock was set back."""
    assert restart.remember([NOW + 900], NOW, ready_s=0) == [NOW]


@given(st.lists(st.floats(0, 5000), max_size=60), st.floats(0, 1, exclude_max=True))
def test_a_try_always_comes_and_never_late(gaps: list[float], rand: float):
    """Whatever the history: not in the past, and within six minutes."""
    exits: list[float] = []
    now = NOW
    for gap in gaps:
        now += gap
        exits = restart.remember(exits, now, ready_s=0)
        retry = restart.next_try(exits, now, rand)
        assert now <= retry.at <= now + restart.CRASH_LOOP_S * (1 + restart.JITTER)
        assert len(exits) <= restart.KEPT_EXITS


@given(exits=st.integers(1, 200), rand=st.floats(0, 1, exclude_max=True), spent=st.floats(0, 1000))
def test_every_pause_is_waited_out_and_no_longer(exits: int, rand: float, spent: float):
    until = restart.next_try([NOW] * exits, NOW, rand).at

    assert restart.left_s(until, NOW + spent) == max(0.0, until - (NOW + spent))


def test_a_clock_that_was_set_back_ends_the_pause():
    assert restart.left_s(NOW + 60, NOW - 3600) == 0
    assert restart.left_s(None, NOW) == 0
