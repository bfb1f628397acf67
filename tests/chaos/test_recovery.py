"""What mlxq promises of an outage, row by row; benchmarks/recovery.py prints the same as figures."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import recovery
from support.mlxq_home import DYING, LIMIT_S, Mlxq
from support.ports import free_port
from support.suspend import suspend

from state import safe_mode, settings
from state.service import ROUTED, State
from tasks.system import process

pytestmark = pytest.mark.slow


def test_a_wedged_engine_is_replaced(mlxq: Mlxq):
    """Health is green, requests are taken, no token comes; benchmarks/recovery.py holds the 30 s."""
    mlxq.work_with_fakes()
    mlxq.up()
    recovery.wedge(mlxq)

    assert mlxq.engines() == 1


def test_a_gateway_that_hangs_is_replaced(mlxq: Mlxq):
    """SIGSTOP: callers get answers again; benchmarks/recovery.py holds the 10 s."""
    mlxq.work_with_fakes()
    port = free_port()
    frozen = recovery.up_with_gateway(mlxq, port)
    back = recovery.hurt(mlxq, signal.SIGSTOP, "gateway")
    print(f"frozen gateway to next start {back.begun_s:.1f} s, to ready {back.ready_s:.1f} s")

    assert recovery.ask_gateway(mlxq) == 200
    assert mlxq.engines("gateway") == 1
    assert mlxq.one("gateway").identity != frozen.identity


def test_an_engine_that_dies_at_once_is_not_tried_for_ever(mlxq: Mlxq):
    """Backoff, then flapping: out of the route, the next try in about five minutes."""
    mlxq.work_with_fakes("--exit-after", "0.05", "--exit-code", "9")
    one = recovery.start_dying(mlxq)

    assert one.state not in ROUTED
    assert len(one.exits) == 6
    assert one.next_try_at is not None
    assert 200 < one.next_try_at - mlxq.db.now() < 400
    assert mlxq.engines() == 0


def test_after_an_unclean_boot_what_was_up_comes_up_smaller_and_what_was_down_stays_down(mlxq: Mlxq, tiny: Path):
    mlxq.serve(tiny, "fast", "longctx")
    mlxq.work_with_fakes()
    before = mlxq.up("fast")
    mlxq.up("longctx")
    mlxq.ended(mlxq.put("stop", service="longctx"))
    recovery.unclean_boot(mlxq)
    mlxq.work_with_fakes()
    after = mlxq.await_next(before)

    assert after.spec_hash != before.spec_hash
    assert safe_mode.of(mlxq.db, "fast").level == 2
    assert mlxq.one("longctx").state == State.STOPPED
    assert "unclean_boot" in mlxq.events()

    again = mlxq.up()
    assert again.spec_hash == before.spec_hash


def test_an_up_that_comes_while_the_watchdog_restarts_a_tier_in_safe_mode_lifts_that(mlxq: Mlxq):
    """It attaches to the restart that runs, which began with the smaller cache."""
    mlxq.work_with_fakes("--load", "2")
    before = mlxq.up()
    recovery.unclean_boot(mlxq)
    mlxq.work_with_fakes("--load", "2")
    mlxq.await_doing(State.LOADING)

    again = mlxq.up()

    assert (again.state, again.spec_hash) == (State.READY, before.spec_hash)
    assert safe_mode.of(mlxq.db, "fast").level == 0


def test_what_dies_while_a_chain_waits_for_a_pull_is_restarted_at_once(mlxq: Mlxq):
    """The chain's start of the same service waits for ten minutes, longer than `hurt`. Nothing attaches to that one."""
    mlxq.work_with_fakes()
    gate = recovery.up_with_gateway(mlxq, free_port())
    recovery.wait_behind_a_pull(mlxq)

    for name in ("gateway", "fast"):
        back = recovery.hurt(mlxq, signal.SIGKILL, name)
        print(f"{name}: restart begun after {back.begun_s:.3f} s")
    mlxq.ended(mlxq.put("stop", service="gateway"))
    assert mlxq.up("gateway").generation == gate.generation + 2
    done = mlxq.ended(mlxq.put("restart", service="gateway"))
    assert (done.state, mlxq.one("gateway").generation) == ("succeeded", gate.generation + 3)


def test_what_was_up_comes_up_after_a_boot_also_when_deaths_are_left_alone(mlxq: Mlxq):
    """auto-health-check=false leaves the dead to the person, and means nothing for what was wanted up."""
    settings.write(mlxq.home, "auto-health-check", False)
    mlxq.work_with_fakes()
    before = mlxq.up()
    recovery.unclean_boot(mlxq)
    mlxq.work_with_fakes()
    after = mlxq.await_next(before)

    process.send(mlxq.identity(), signal.SIGKILL)
    mlxq.await_doing(State.BACKOFF)
    recovery.let_it_look()
    assert mlxq.one().generation == after.generation
    assert mlxq.engines() == 0


def test_an_engine_that_is_frozen_while_it_loads_is_started_anew(mlxq: Mlxq):
    mlxq.work_with_fakes("--load", "2")
    mlxq.put("start", service="fast")
    loading = mlxq.await_doing(State.LOADING)
    suspend(mlxq.identity())

    assert mlxq.await_next(loading).generation == loading.generation + 1
    assert mlxq.engines() == 1


def test_an_engine_whose_requests_all_fail_is_put_aside_also_when_the_worker_dies_meanwhile(mlxq: Mlxq):
    """No process is left that no row tells of."""
    mlxq.work_with_fakes("--broken", prelude=DYING, DIES_AT="tasks.supervision.exits:give_up")
    mlxq.put("start", service="fast")
    assert mlxq.worker
    assert mlxq.worker.wait(LIMIT_S) == -9

    assert mlxq.engines() == 0


@pytest.mark.parametrize("manner", ["silent", "talks"])
def test_a_port_stolen_between_stop_and_start_is_told(mlxq: Mlxq, manner: str):
    """The thief comes after the port was looked at and before the engine binds it. It is left alone."""
    mlxq.work(recovery.THIEF, PORT=str(mlxq.port()), MANNER=manner)
    done = mlxq.ended(mlxq.put("start", service="fast"))

    assert done.error_code == "port_taken", done.error
    assert (mlxq.one().state, mlxq.one().cause_code) == (State.FAILED, "port_taken")
    assert mlxq.engines() == 0
    assert mlxq.worker
    assert mlxq.worker.poll() is None  # the thief is in it

    mlxq.kill_worker()
    mlxq.work_with_fakes()
    assert mlxq.up().state == State.READY


def test_an_engine_without_its_tokenizer_does_not_count_as_up(mlxq: Mlxq, tiny: Path, tmp_path: Path):
    """Its health is green, its model list is right, and every request fails."""
    bare = shutil.copytree(tiny, tmp_path / "bare")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    mlxq.db.run("UPDATE engines SET weights = ?", (str(bare),))
    settings.write(mlxq.home, "max-restarts", 1)
    mlxq.work()
    done = mlxq.ended(mlxq.put("start", service="fast"))
    print(done.error)

    assert done.state == "failed"
    assert mlxq.one().state not in ROUTED
    assert mlxq.engines() == 0


def test_two_who_bring_up_at_once_get_one_engine(mlxq: Mlxq):
    """Two commands, one worker, one job: the second attaches to the first."""
    mlxq.work_with_fakes("--load", "1")
    argv = [sys.executable, "-P", "-m", "mlxq", "up", "--tier", "fast"]
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    told = [each.communicate(timeout=120)[0] for each in both]

    assert [each.returncode for each in both] == [0, 0], told
    assert mlxq.one().generation == 1
    assert mlxq.engines() == 1


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
    mlxq.work_with_fakes("--load", "2")
    recovery.up_with_gateway(mlxq, free_port())
    load, at = recovery.kill_under_load(mlxq)
    _, later = load.lost(at)
    assert later == 0

    recovery.hurt(mlxq, signal.SIGKILL, "gateway")
    assert mlxq.one("gateway").state == State.READY
