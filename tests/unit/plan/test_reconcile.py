import dataclasses

import pytest

from state.service import Desired, Service, State
from tasks.plan.reconcile import Action, decide, escalate, is_repair

NOW = 1000.0
READY = Service(
    name="fast",
    kind="engine",
    desired="up",
    state=State.READY,
    observed="healthy",  # type: ignore[arg-type]
    generation=3,
    argv=[],
    spec_hash="f1",
    port=8001,
    identity="boot/812/77",
    shim=None,
    started_at=NOW,
    ready_at=NOW,
    exits=[],
    restarts=0,
    next_try_at=None,
    exit_code=None,
    cause_code=None,
    cause=None,
    hint=None,
    memory_bytes=None,
    updated_at=NOW,
)


def seen(
    doing: str, wanted: Desired = "up", *, alive: bool = True, next_try_at: float | None = None, held: bool = False
) -> Action:
    one = dataclasses.replace(READY, state=State(doing), desired=wanted, next_try_at=next_try_at)
    return decide(one, alive=alive, now=NOW, spec_hash="f1", locked=held)


@pytest.mark.parametrize(
    ("doing", "need"),
    [
        ("stopped", "start"),
        ("starting", "start"),
        ("loading", "start"),
        ("ready", "judge"),
        ("stalled", "judge"),
        ("degraded", "judge"),
        ("draining", "replace"),
        ("stopping", "start"),
        ("backoff", "start"),
        ("crash_loop", "start"),
        ("failed", "leave"),
    ],
)
def test_what_a_wanted_service_needs(doing: str, need: str):
    """A start is asked for in loading too, and a drained one is replaced: the worker may have died in between."""
    assert seen(doing) == need


@pytest.mark.parametrize("doing", ["stopped", "starting", "loading", "stopping", "backoff", "crash_loop"])
def test_what_a_job_is_starting_needs_no_other(doing: str):
    assert seen(doing, held=True) == Action.NONE


@pytest.mark.parametrize("doing", State)
def test_an_unwanted_service_is_stopped_whatever_it_does(doing: State):
    assert seen(doing, "down") == (Action.NONE if doing == State.STOPPED else Action.STOP)


def test_a_replacement_that_was_cut_short_is_finished():
    one = dataclasses.replace(READY, successor={"argv": [], "spec_hash": "f2"})

    assert decide(one, alive=True, now=NOW, spec_hash="f1", locked=False) == Action.REPLACE
    assert (
        decide(dataclasses.replace(one, desired="down"), alive=True, now=NOW, spec_hash="f1", locked=False)
        == Action.STOP
    )


@pytest.mark.parametrize("doing", ["starting", "loading", "ready", "stalled", "degraded", "draining"])
def test_a_death_nobody_saw_is_settled_first(doing: str):
    assert seen(doing, alive=False) == Action.RECORD_EXIT


def test_a_stop_that_was_cut_short_is_finished():
    """The worker died after it told the process to end; the end itself was asked for and counts for nothing."""
    assert seen("stopping", "down", alive=False) == Action.STOP
    assert seen("stopping", "up", alive=False) == Action.START


@pytest.mark.parametrize("doing", ["backoff", "crash_loop"])
def test_the_next_try_waits_for_its_time(doing: str):
    assert seen(doing, alive=False, next_try_at=NOW + 1) == Action.NONE
    assert seen(doing, alive=False, next_try_at=NOW) == Action.START


def test_a_clock_set_back_keeps_nothing_down():
    assert seen("backoff", alive=False, next_try_at=NOW + 3600) == Action.START


@pytest.mark.parametrize(
    ("doing", "why", "this_boot", "mending"),
    [
        ("backoff", "gone", True, True),
        ("crash_loop", "gone", True, True),
        ("backoff", "gone", False, False),
        ("loading", "gone", True, False),
        ("stopped", "gone", True, False),
        ("degraded", "hung", True, True),
        ("ready", "escalated", True, True),
        ("ready", "changed", True, False),
        ("draining", "leaks", True, False),
    ],
)
def test_only_what_died_or_hangs_is_mended(doing: str, why: str, this_boot: bool, mending: bool):
    """The rest is bringing up what is wanted, which auto-health-check does not switch off."""
    assert is_repair(dataclasses.replace(READY, state=State(doing)), why, this_boot=this_boot) == mending


def test_another_fingerprint_is_replaced_and_an_unknown_one_is_not():
    assert decide(READY, alive=True, now=NOW, spec_hash="f2", locked=False) == Action.REPLACE
    assert decide(READY, alive=True, now=NOW, spec_hash=None, locked=False) == Action.PROBE


def flapping(*doing: str, gateway: str = "ready") -> bool:
    engines = [dataclasses.replace(READY, name=f"t{n}", state=State(each)) for n, each in enumerate(doing)]
    down = dataclasses.replace(READY, name="spare", state=State.STOPPED, desired="down")
    gate = dataclasses.replace(READY, name="gateway", kind="gateway", state=State(gateway))
    return escalate([*engines, down, gate])


def test_only_when_every_tier_flaps_the_trouble_is_above_them():
    assert flapping("crash_loop", "crash_loop")
    assert not flapping("crash_loop", "ready")
    assert not flapping("crash_loop", "failed")
    assert not flapping("crash_loop")
    assert not flapping("crash_loop", "crash_loop", gateway="loading")
    assert not flapping()
