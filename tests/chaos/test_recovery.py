"""What mlxq promises of an outage, row by row; benchmarks/recovery.py prints the same as figures."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from support import recovery
from support.mlxq_home import Mlxq
from support.ports import free_port

from state import restraint
from state.service import ROUTED, Doing

pytestmark = pytest.mark.slow


def test_a_wedged_engine_is_replaced(mlxq: Mlxq):
    """Health is green, requests are taken, no token comes: at most 30 s, and more only on a crowded machine."""
    mlxq.work_with_fakes()
    mlxq.up()
    before = recovery.patience()
    back = recovery.wedge(mlxq)

    assert back.ready_s <= 30 * max(before, recovery.patience())
    assert mlxq.engines() == 1


def test_a_killed_engine_costs_its_own_start_and_a_second(mlxq: Mlxq):
    mlxq.work_with_fakes("--load", "2")
    mlxq.up()
    back = recovery.hurt(mlxq, signal.SIGKILL)

    assert back.begun_s <= 0.25
    assert back.extra_s <= 1


def test_an_engine_that_dies_at_once_is_not_tried_for_ever(mlxq: Mlxq):
    """Backoff, then flapping: out of the route, the next try in about five minutes."""
    mlxq.work_with_fakes("--exit-after", "0.05", "--exit-code", "9")
    one = recovery.start_dying(mlxq)

    assert one.doing not in ROUTED
    assert len(one.exits) == 6
    assert one.next_try_at is not None
    assert 200 < one.next_try_at - mlxq.db.now() < 400
    assert mlxq.engines() == 0


def test_a_dead_worker_changes_nothing_and_the_next_one_notices_the_next_death(mlxq: Mlxq):
    mlxq.work()
    mlxq.up()
    same, back = recovery.kill_worker_then_engine(mlxq)

    assert same
    assert back.begun_s <= 0.25


def test_after_an_unclean_boot_what_was_up_comes_up_smaller_and_what_was_down_stays_down(mlxq: Mlxq, tiny: Path):
    mlxq.serve(tiny, "fast", "longctx")
    mlxq.work()
    before = mlxq.up("fast")
    mlxq.up("longctx")
    mlxq.ended(mlxq.put("stop", service="longctx"))
    recovery.unclean_boot(mlxq)
    mlxq.work()
    after = mlxq.await_next(before)

    assert after.fingerprint != before.fingerprint
    assert restraint.of(mlxq.db, "fast").level == 2
    assert mlxq.one("longctx").doing == Doing.STOPPED
    assert "unclean_boot" in mlxq.events()

    again = mlxq.up()
    assert again.fingerprint == before.fingerprint


def test_a_restart_may_delete_the_old_prompts(mlxq: Mlxq):
    mlxq.work_with_fakes()
    one = mlxq.up()
    prompts = mlxq.home.root / "cache" / "fast" / "model" / "entry_0_tokens.bin"
    prompts.parent.mkdir(parents=True)
    prompts.write_bytes(b"what a user wrote")

    assert mlxq.ended(mlxq.put("restart", service="fast", purge=True)).state == "succeeded"

    assert not prompts.exists()
    assert mlxq.one().generation == one.generation + 1


@pytest.mark.timeout(600)
def test_a_tier_killed_under_load_costs_no_request_but_those_in_flight(mlxq: Mlxq, tiny: Path):
    """Through the gateway, whose fallback serves meanwhile; then the gateway itself is killed."""
    mlxq.serve(tiny, "standard", "fast")
    mlxq.work()
    recovery.up_with_gateway(mlxq, free_port())
    load, at = recovery.kill_under_load(mlxq)
    _, later = load.lost(at)
    assert later == 0

    assert recovery.hurt(mlxq, signal.SIGKILL, "gateway").extra_s <= 1
