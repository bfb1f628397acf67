"""Memory that only grows: a purge first, then a new start while others serve. And sleep is held off while needed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.ports import free_port

from state import event, ledger, secrets, service, stack
from state.db import Database
from state.paths import Home
from state.service import ServiceEvent, State
from state.stack import Engine
from tasks.plan import leak
from tasks.plan.health import read_status
from tasks.plan.leak import Advice, Trend
from tasks.runtime import runtime
from tasks.supervision import watchdog as watch
from tasks.system import memory, process
from tasks.system.sleep_inhibitor import SleepInhibitor

GIB = 2**30


def grown(per_s: float, seconds: float, start: float = GIB, purged_at: float | None = None) -> Trend:
    trend = Trend(purged_at=purged_at)
    for at in range(0, int(seconds) + 1, 30):
        trend = leak.add(trend, float(at), int(start + per_s * at))
    return trend


def test_steady_memory_is_left_alone_however_much_it_is() -> None:
    assert leak.advise(grown(0, 1200, start=9 * GIB), GIB, short=True, spare=True) == Advice.NOTHING


def test_a_rise_is_believed_after_ten_minutes() -> None:
    assert leak.rise(grown(1e6, 570)) == 0
    assert leak.rise(grown(1e6, 600)) == pytest.approx(1e6)


def test_a_rise_that_stays_within_the_budget_is_left_alone() -> None:
    slow = grown(1000, 1200)

    assert leak.advise(slow, 2 * GIB, short=False, spare=True) == Advice.NOTHING
    assert leak.advise(slow, GIB // 2, short=True, spare=True) == Advice.PURGE


def test_the_mild_step_comes_first_and_the_hard_one_waits_for_others_to_serve() -> None:
    budget = 2 * GIB
    again = grown(2e6, 300, purged_at=1.0)

    assert leak.advise(grown(2e6, 600), budget, short=False, spare=True) == Advice.PURGE
    assert leak.advise(again, budget, short=False, spare=True) == Advice.RECYCLE
    assert leak.advise(again, budget, short=False, spare=False) == Advice.NOTHING
    assert leak.advise(grown(0, 300, purged_at=1.0), budget, short=False, spare=True) == Advice.NOTHING


def test_on_a_machine_short_of_memory_no_engine_may_grow_beyond_its_budget() -> None:
    """Else it may by what sizes are estimated too low."""
    a_little_over = grown(1000, 1200, start=int(1.05 * GIB))

    assert leak.advise(a_little_over, GIB, short=False, spare=True) == Advice.NOTHING
    assert leak.advise(a_little_over, GIB, short=True, spare=True) == Advice.PURGE


def test_a_purge_of_long_ago_is_no_reason_for_a_new_start() -> None:
    long_ago = grown(2e6, leak.FORGET_PURGE_S + 60, purged_at=1.0)

    assert leak.advise(long_ago, 2 * GIB, short=False, spare=True) == Advice.PURGE


@given(st.lists(st.integers(0, 2**40), max_size=60), st.booleans())
def test_a_purge_always_comes_before_a_new_start(looks: list[int], short: bool) -> None:
    trend = Trend()
    for number, used in enumerate(looks):
        trend = leak.add(trend, number * 30.0, used)
        assert leak.advise(trend, GIB, short=short, spare=True) != Advice.RECYCLE


@pytest.fixture
def engine(home: Home, db: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the log of a stand-in engine that runs as tier fast, beside a second tier that serves."""
    monkeypatch.setattr(runtime, "home", home)
    program = Path(__file__).parents[1] / "support" / "fake_engine.py"
    log, port = home.log("fast"), free_port()
    key = secrets.ensure(home.secrets)[secrets.TIER]
    with log.open("w") as out:
        command = [sys.executable, program, "--port", str(port)]
        child = subprocess.Popen(command, stderr=out, env=os.environ | {"MLXQ_TIER_KEY": key, "MLXQ_SESSION": "1"})
    identity = process.identify(child.pid)
    assert identity
    fast = Engine("fast", "m", "int4", "file:/m", port, 2048, GIB, cache_bytes=0, concurrency=1)
    stack.replace(db, [fast])
    for name in ("fast", "standard"):
        service.ensure(db, name, "engine", port if name == "fast" else port + 1)
        service.set_desired(db, name, "up")
        service.request_start(db, name, ["engine"], "f", service.get(db, name).port)
        service.apply(db, name, ServiceEvent.SPAWNED, identity=process.encode(identity))
        service.apply(db, name, ServiceEvent.BECAME_READY)
    watch._ask(service.get(db, "fast"))
    while watch._ask(service.get(db, "fast")) is None:
        assert child.poll() is None
    yield log
    child.kill()
    child.wait()


def mind(db: Database, charge: watch.Monitored) -> None:
    watch.Watchdog()._check_memory(db, service.get(db, "fast"), charge, read_status({}), 2 * GIB)


def test_an_engine_that_grows_is_purged_then_drained_and_started_anew(db: Database, engine: Path) -> None:
    charge = watch.Monitored(process.decode(service.get(db, "fast").identity or ""), watch.health.begin(0.0))
    now = watch.time.monotonic()
    charge.trend = Trend(tuple((now - 900 + at, GIB + at * 10**6) for at in range(0, 900, 30)))
    mind(db, charge)
    while "purged" not in engine.read_text():
        pass
    assert event.of_service(db, "fast")[-1].name == "cache_purged"
    assert service.get(db, "fast").state == State.READY

    charge.trend = Trend(tuple((now - 400 + at, GIB + at * 10**6) for at in range(0, 400, 30)), purged_at=now - 400)
    mind(db, charge)

    one = service.get(db, "fast")
    assert one.state == State.DRAINING
    assert (one.cause or "").startswith("Its memory grows by ")
    held = ledger.claim(db, "ops", {"restart"}, "a/1/1")
    assert held
    assert held.args == {"service": "fast", "reason": "leaks"}


def test_the_only_engine_is_started_anew_while_it_is_idle(db: Database, engine: Path) -> None:
    """It serves all tiers: nothing else ever serves while it is away."""
    fast = service.get(db, "fast")
    assert watch._others_serve(db, fast)
    service.update(db, "standard", state=State.STOPPED)
    assert not watch._others_serve(db, fast), "another one is wanted, and comes back"

    service.set_desired(db, "standard", "down")
    assert watch._others_serve(db, fast)


def test_flapping_all_over_starts_the_gateway_anew_once(db: Database, home: Home, engine: Path) -> None:
    service.ensure(db, "gateway", "gateway", 4000)
    service.set_desired(db, "gateway", "up")
    service.update(db, "gateway", state=State.READY)
    watchdog = watch.Watchdog()
    for name in ("fast", "standard"):
        service.update(db, name, state=State.CRASH_LOOP)
    watchdog._escalate(db, service.listing(db))
    held = ledger.claim(db, "ops", {"restart"}, "a/1/1")
    assert held
    ledger.succeed(db, held, None)
    watchdog._escalate(db, service.listing(db))

    assert held.args == {"service": "gateway", "reason": "escalated"}
    assert ledger.claim(db, "ops", {"restart"}, "a/1/1") is None


def test_an_engine_that_outlived_its_login_session_is_replaced_once(
    db: Database, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only macOS has such sessions: the id of this process's is given here."""
    for session in ("1", "2"):
        monkeypatch.setattr(process.table, "session", lambda session=session: session)
        watchdog = watch.Watchdog()
        watchdog._take_over(db, service.listing(db))
        watchdog._take_over(db, service.listing(db))

    jobs = [ledger.claim(db, "ops", {"restart"}, f"a/{number}/1") for number in range(3)]
    assert [job.args if job else None for job in jobs] == [
        {"service": "fast", "reason": "logged_out"},
        {"service": "standard", "reason": "logged_out"},
        None,
    ]
    assert [happened.name for happened in event.of_service(db, "fast")].count("logged_out") == 1


def test_the_machine_is_kept_awake_exactly_while_that_is_needed() -> None:
    """`sleep` stands in for caffeinate, which only a Mac has."""
    awake = SleepInhibitor(["sleep", "60"])
    awake.hold(True)
    first = awake._helper
    awake.hold(True)
    assert first
    assert awake._helper is first
    first.kill()
    first.wait()
    awake.hold(True)
    second = awake._helper
    assert second
    assert second is not first
    awake.hold(False)

    assert second.poll() is not None
    awake.hold(False)


def test_only_a_mac_has_the_helper_and_it_ends_with_the_worker() -> None:
    assert memory.stay_awake_argv(812, "darwin") == ["/usr/bin/caffeinate", "-i", "-w", "812"]
    assert memory.stay_awake_argv(812, "linux") is None
    nobody = SleepInhibitor(None)
    nobody.hold(True)
    assert nobody._helper is None
