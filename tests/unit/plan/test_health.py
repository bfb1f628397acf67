from dataclasses import replace

import pytest

from tasks.plan import health
from tasks.plan.health import TEXT, VISION, EngineStatus, HealthSample, Track, Verdict, verdict

IDLE = health.read_status({"status": "running", "steps_executed": 7, "total_completion_tokens": 3})
BUSY = replace(IDLE, num_running=1)
T0 = 1000.0


def after(*looks: tuple[float, EngineStatus | None, bool | None]) -> Track:
    track = health.begin(T0)
    for at, status, canary in looks:
        track = health.follow(track, HealthSample(T0 + at, status, canary))
    return track


def test_status_of_the_real_engine_is_read():
    body = {
        "status": "running",
        "residency": {"state": "loaded", "last_error": None},
        "steps_executed": 41,
        "num_running": 2,
        "num_waiting": 1,
        "total_requests_processed": 9,
        "total_prompt_tokens": 100,
        "total_completion_tokens": 50,
        "metal": {"active_memory_gb": 1.5},
        "requests": [{"phase": "generation"}, {"phase": "prefill"}],
    }

    assert health.read_status(body) == EngineStatus(True, "", 41, 2, 1, True, 9, 100, 50, 1_500_000_000)


@pytest.mark.parametrize("body", [None, [], {}, {"requests": 5, "metal": None}, {"steps_executed": "many"}])
def test_an_odd_status_is_nothing_and_no_crash(body: object):
    assert health.read_status(body).steps_executed == 0


def test_an_unloaded_engine_is_well():
    """--auto-unload gave its memory back; the next request loads it again."""
    unloaded = health.read_status({"status": "not_loaded", "residency": {"state": "unloaded"}})

    assert verdict(after((2, unloaded, None)), T0 + 3) == Verdict.HEALTHY
    assert not health.canary_due(after((2, unloaded, None)), unloaded, T0 + 500)


def test_an_idle_engine_is_well():
    assert verdict(after((2, IDLE, None), (500, IDLE, None)), T0 + 501) == Verdict.HEALTHY


def test_a_busy_engine_that_moves_is_well_however_slow():
    looks = [(15 * n, replace(BUSY, steps_executed=n), None) for n in range(1, 20)]

    assert verdict(after(*looks), T0 + 15 * 19 + 1) == Verdict.HEALTHY


def test_work_without_steps_is_a_stall():
    track = after((2, BUSY, None), *((n, BUSY, None) for n in range(4, 26, 2)))

    assert verdict(track, T0 + 21) == Verdict.HEALTHY
    assert verdict(track, T0 + 24) == Verdict.STALLED


def test_work_that_only_waits_is_a_stall_too():
    """The scheduler's thread died: nothing is running, requests queue up."""
    waiting = replace(IDLE, num_waiting=3)

    assert verdict(after((2, waiting, None), (30, waiting, None)), T0 + 30) == Verdict.STALLED


def test_a_prompt_may_take_longer_to_read():
    reading = replace(BUSY, prefilling=True)

    assert verdict(after((2, reading, None), (30, reading, None)), T0 + 30) == Verdict.HEALTHY
    assert verdict(after((2, reading, None), (50, reading, None)), T0 + 50) == Verdict.STALLED


def test_silence():
    track = after((2, IDLE, None), (4, None, None), (11, None, None))

    assert verdict(track, T0 + 8) == Verdict.WAITING
    assert verdict(track, T0 + 13) == Verdict.SILENT
    assert verdict(track, T0 + 13, VISION) == Verdict.HEALTHY


def test_a_stopped_process_is_given_less_time():
    """SIGSTOP: there is no doubt that it says nothing."""
    track = health.follow(after((2, IDLE, None)), HealthSample(T0 + 7, None, frozen=True))

    assert verdict(track, T0 + 7) == Verdict.SILENT
    assert verdict(health.follow(track, HealthSample(T0 + 8, IDLE)), T0 + 8) == Verdict.HEALTHY


def test_three_failed_canaries_in_a_row_are_a_broken_engine():
    two = ((2, IDLE, False), (4, IDLE, False))

    assert verdict(after(*two), T0 + 5) == Verdict.WAITING
    assert verdict(after(*two, (6, IDLE, False)), T0 + 7) == Verdict.BROKEN
    assert verdict(after(*two, (6, IDLE, True), (8, IDLE, False)), T0 + 9) == Verdict.WAITING


def test_no_verdict_right_after_a_wake():
    """The clock ran on while everything slept; nothing had a chance to answer."""
    track = after((2, BUSY, None))

    assert verdict(track, T0 + 9000, woke_at=T0 + 8990) == Verdict.WAITING
    assert verdict(track, T0 + 9000, woke_at=T0 + 8980) == Verdict.SILENT


def test_a_canary_is_sent_only_into_silence():
    """Live traffic that makes tokens is proof enough; a miss is asked again at once."""
    quiet = after((2, IDLE, None))

    assert not health.canary_due(quiet, IDLE, T0 + 50)
    assert health.canary_due(quiet, IDLE, T0 + 63)
    assert not health.canary_due(quiet, BUSY, T0 + 63)
    assert health.canary_due(after((2, IDLE, False)), IDLE, T0 + 4)


@pytest.mark.parametrize(("size", "limit"), [(0, 120), (4e9, 124), (4e12, 600)])
def test_big_weights_may_take_longer_to_load(size: float, limit: float):
    assert health.start_limit_s(int(size)) == limit


def test_patience_fits_the_promise():
    """A frozen engine replaced within 20 s and a wedged one within 30 s, with 2 s looks and a 4 s start."""
    assert TEXT.silent_s + 2 + 4 < 20
    assert TEXT.stalled_s + 2 + 4 < 30


def test_a_crowded_machine_is_given_time():
    """Nine times the work for each core: what is late there is not dead."""
    limits = health.patience(health.TEXT, 9.0)

    assert limits.silent_s == 9 * health.TEXT.silent_s
    assert health.patience(health.TEXT, 0.2) == health.TEXT
    assert health.patience(health.TEXT, 1000.0).stalled_s == health.MOST_CROWDED * health.TEXT.stalled_s


def test_a_crowded_machine_is_given_time_to_read_a_prompt():
    assert health.patience(health.TEXT, 3.0).prefill_s == 3 * health.TEXT.prefill_s


def test_a_canary_that_sings_beside_growing_steps_clears_the_misses():
    """A token moves the steps itself."""
    track = after((2, IDLE, False), (4, IDLE, False), (6, replace(IDLE, steps_executed=8), True))

    assert (track.misses, track.token_at) == (0, T0 + 6)


def test_an_engine_that_cannot_load_its_weights_again_is_broken():
    """It gave its memory back while idle; what fails now is every request."""
    gone = health.read_status({"status": "not_loaded", "residency": {"state": "failed", "last_error": "no memory"}})

    assert verdict(after(*((at, gone, None) for at in (2, 4, 6))), T0 + 7) == Verdict.BROKEN


def test_a_canary_that_fails_beside_growing_steps_is_no_miss():
    track = health.follow(health.begin(T0), HealthSample(T0 + 1, BUSY))
    for second in (2, 4, 6):
        track = health.follow(track, HealthSample(T0 + second, replace(BUSY, steps_executed=second), canary=False))

    assert track.misses == 0
    assert health.follow(track, HealthSample(T0 + 8, replace(BUSY, steps_executed=6), canary=False)).misses == 1
