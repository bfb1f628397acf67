"""After a boot that nobody asked for, and after want of memory, tiers come back smaller."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from mlxq import cli, status_report
from state import event, safe_mode, secrets, service, stack, weights, worker
from state.db import Database
from state.paths import Home
from state.safe_mode import SafeMode
from state.service import ServiceEvent, State
from state.stack import Engine
from tasks.plan import safe_mode as plan
from tasks.supervision import exits, lifecycle, spec, unclean_boot
from tasks.system import process
from tasks.system.process import Identity

FAST = Engine("fast", "m", "int4", "file:/m", 9261, 2048, 2**30, cache_bytes=2**30, concurrency=8)
BEFORE = "boot-before"
NOW = process.boot()


def runs(db: Database, tmp_path: Path, *names: str, state: State = State.READY, memory: int = 1) -> None:
    """Write down what the last boot left: a worker that did not sign off, and engines that ran."""
    worker.beat(db, f"{BEFORE}/1/1", 1, "0", 1.0)
    tiers = [
        *stack.tiers(db),
        *(replace(FAST, name=name, port=9261 + len(name), weights=str(tmp_path)) for name in names),
    ]
    stack.replace(db, tiers)
    for name in names:
        service.ensure(db, name, "engine", 9261 + len(name))
        service.set_desired(db, name, "up")
        identity = process.encode(Identity(2**22 - 1, "1", BEFORE))
        service.update(db, name, state=state, identity=identity, memory_bytes=memory, started_at=1.0)


def test_a_machine_that_went_down_under_engines_names_the_suspect(db: Database, tmp_path: Path) -> None:
    runs(db, tmp_path, "fast")
    runs(db, tmp_path, "longctx", memory=2**40)

    assert unclean_boot.handle(db, NOW) == "longctx"

    assert {name: held.level for name, held in safe_mode.listing(db).items()} == {"fast": 1, "longctx": 2}
    assert "unclean_boot" in [each.name for each in event.of_service(db, "longctx")]


def test_what_was_loading_is_suspected_before_what_is_big(db: Database, tmp_path: Path) -> None:
    runs(db, tmp_path, "longctx", memory=2**40)
    runs(db, tmp_path, "fast", state=State.LOADING)

    assert unclean_boot.handle(db, NOW) == "fast"


@pytest.mark.parametrize("ended", ["signed off", "same boot", "nothing ran"])
def test_an_orderly_end_raises_no_suspicion(db: Database, tmp_path: Path, ended: str) -> None:
    runs(db, tmp_path, "fast", state=State.STOPPED if ended == "nothing ran" else State.READY)
    if ended == "signed off":
        worker.sign_off(db, f"{BEFORE}/1/1")

    assert unclean_boot.handle(db, BEFORE if ended == "same boot" else NOW) is None

    assert safe_mode.listing(db) == {}


def test_a_suspect_that_takes_the_machine_down_twice_is_left_down(db: Database, tmp_path: Path) -> None:
    levels: list[int] = []
    for _ in range(2):
        runs(db, tmp_path, "fast") if not levels else service.update(
            db, "fast", state=State.LOADING, identity=f"{BEFORE}/1/1"
        )
        worker.beat(db, f"{BEFORE}/1/1", 1, "0", 1.0)
        unclean_boot.handle(db, NOW)
        levels.append(safe_mode.of(db, "fast").level)

    one = service.get(db, "fast")
    assert levels == [2, 2]
    assert (one.state, one.desired) == (State.FAILED, "up")
    assert one.cause == "The machine went down again while fast ran, even in safe mode."


def test_status_and_why_tell_of_it(
    home: Home, db: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(db, tmp_path, "fast")
    unclean_boot.handle(db, NOW)

    assert [name for name, _, _ in status_report.collect(db).troubles] == ["fast"]
    cli.run(["status"])
    cli.run(["why", "fast"])

    out, err = capsys.readouterr()
    assert out.count("The machine went down while fast ran; fast is the suspect.") == 3
    assert "mlxq up" in err


def test_a_level_means_less_of_everything() -> None:
    one, two = plan.reduced(FAST, 1), plan.reduced(FAST, 2)

    assert plan.reduced(FAST, 0) is FAST
    assert (one.cache_bytes, one.concurrency) == (2**28, 4)
    assert (two.cache_bytes, two.concurrency) == (0, 1)
    assert plan.reduced(two, 1).concurrency == 1


def test_the_next_start_of_a_tier_that_is_held_back_is_smaller(home: Home, db: Database, tmp_path: Path) -> None:
    runs(db, tmp_path, "fast")
    secrets.ensure(home.secrets)
    whole = spec.launch_spec(db, home, "fast")
    safe_mode.enter(db, "fast", SafeMode(2, "unclean_boot", "so"))
    held = spec.launch_spec(db, home, "fast")
    safe_mode.leave(db, "fast")

    assert "--cache-memory-mb" in whole.argv
    assert "--disable-prefix-cache" in held.argv
    assert held.spec_hash != whole.spec_hash
    assert spec.launch_spec(db, home, "fast").spec_hash == whole.spec_hash


def test_tiers_come_up_one_after_another_and_the_suspect_last(db: Database, tmp_path: Path) -> None:
    runs(db, tmp_path, "a-suspect", memory=2)
    runs(db, tmp_path, "z")
    unclean_boot.handle(db, NOW)

    def turns(now: float) -> list[str]:
        held = safe_mode.listing(db)
        return [name for name in ("a-suspect", "z", "gateway") if plan.may_start(name, service.listing(db), held, now)]

    service.update(db, "z", state=State.LOADING)
    assert turns(100) == ["z", "gateway"]
    service.update(db, "z", state=State.READY, ready_at=100.0)
    assert turns(110) == ["z", "gateway"]
    assert turns(100 + plan.SETTLE_S) == ["a-suspect", "z", "gateway"]
    assert turns(50) == ["a-suspect", "z", "gateway"]  # the clock was set back
    service.update(db, "z", state=State.FAILED)
    assert turns(110) == ["a-suspect", "z", "gateway"]
    service.update(db, "z", state=State.STOPPED, desired="down")
    assert turns(110) == ["a-suspect", "z", "gateway"]


def test_the_first_want_of_memory_is_let_pass_and_each_further_one_costs_a_level(db: Database, clock) -> None:  # noqa: ANN001
    levels: list[int] = []
    for wait_s in (0, 60, 60, 60, 7200):
        clock.now += wait_s
        safe_mode.record_oom(db, "fast", plan.MOST)
        levels.append(safe_mode.of(db, "fast").level)

    assert levels == [0, 1, 2, 2, 2]


def test_an_engine_killed_for_memory_twice_is_held_back(home: Home, db: Database, tmp_path: Path) -> None:
    stack.replace(db, [FAST])
    service.ensure(db, "fast", "engine", 9261)
    service.set_desired(db, "fast", "up")
    home.log("fast").write_text("libc++abi: kIOGPUCommandBufferCallbackErrorOutOfMemory\n")
    me = process.identify(os.getpid())
    assert me
    for start in (1, 2):
        service.request_start(db, "fast", ["engine"], "f", 9261)
        gone = replace(me, start=str(start))
        service.apply(db, "fast", ServiceEvent.SPAWNED, identity=process.encode(gone))
        cause = exits.record_exit(db, home, "fast", gone)
        assert cause
        assert cause.code == "out_of_memory"

    assert safe_mode.of(db, "fast").level == 1


def test_weights_that_an_engine_served_are_known_to_load(home: Home, db: Database, tmp_path: Path) -> None:
    runs(db, tmp_path, "fast", state=State.LOADING)
    facts = {
        "revision": "1", "model_type": "llama", "parameters": 1, "bits": 4.0, "quantization": None, "context": 1,
        "kv_bytes_per_token": 1, "size": 1, "vision": 0, "recipe": None,
    }  # fmt: skip
    weights.record(db, str(tmp_path), "file:/m", facts)

    lifecycle.mark_ready(db, service.get(db, "fast"))

    assert [each.loaded_at for each in weights.listing(db)] == [db.now()]
