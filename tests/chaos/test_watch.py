"""Kill it, freeze it, wedge it: a tier is back before its users notice. The worker is real.

So is the engine where it matters what an engine does; where only its process does, fake_engine.py starts at once.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import sys
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from support import recovery
from support.mlxq_home import DYING, LIMIT_S, Mlxq, until
from support.ports import free_port

from state import service, wakeup
from state.service import State
from tasks.supervision import socket_handover
from tasks.system import ports, process

pytestmark = pytest.mark.slow


def test_up_and_down_leave_nothing(mlxq: Mlxq):
    mlxq.work()
    one = mlxq.up()
    assert (one.state, one.observed, one.desired) == ("ready", "healthy", "up")

    assert mlxq.ended(mlxq.put("stop", service="fast")).state == "succeeded"

    assert (mlxq.one().state, mlxq.one().observed) == ("stopped", "stopped")
    assert mlxq.engines() == 0
    assert ports.free(one.port)
    assert mlxq.up().generation == one.generation + 1


def test_starting_what_runs_changes_nothing(mlxq: Mlxq):
    mlxq.work_with_fakes()
    one = mlxq.up()
    told = mlxq.events()
    again = mlxq.up()

    assert again.identity == one.identity
    assert mlxq.events() == told


def test_a_killed_engine_is_back_at_once(mlxq: Mlxq):
    """By its end alone, with no look of the watchdog to wait for; benchmarks/recovery.py holds the 0.25 s."""
    mlxq.work(recovery.NO_LOOKS)
    mlxq.up()
    back = recovery.hurt(mlxq, signal.SIGKILL)
    print(f"kill to restart begun {back.begun_s:.3f} s, to ready {back.ready_s:.2f} s")

    died = mlxq.db.value("SELECT json_extract(data, '$.cause') FROM events WHERE name = 'exited'")
    assert died == "Killed by SIGKILL."
    assert mlxq.engines() == 1


def test_a_frozen_engine_is_replaced(mlxq: Mlxq):
    """SIGSTOP is noticed, and the next start begun; benchmarks/recovery.py holds the 20 s."""
    mlxq.work()
    mlxq.up()
    back = recovery.hurt(mlxq, signal.SIGSTOP)
    print(f"frozen to next start {back.begun_s:.1f} s, to ready {back.ready_s:.1f} s")

    assert mlxq.engines() == 1
    assert mlxq.one().restarts == 1  # a hang that was cured counts, as a crash does


CALM = """
from tasks.system import memory
memory.crowding, memory.SUSPENDED_S = lambda: 1.0, 5.0
"""
"""A worker that is not patient, and that takes a shorter pause for a sleep, so that the test need not wait for both."""


def test_a_dead_worker_takes_no_engine_with_it(mlxq: Mlxq):
    """The engine keeps its pid, the next worker adopts it and notices its next death."""
    mlxq.work_with_fakes()
    one = mlxq.up()
    mlxq.kill_worker()
    mlxq.work_with_fakes()
    recovery.let_it_look()
    assert mlxq.one().identity == one.identity
    assert process.alive(mlxq.identity())

    process.send(mlxq.identity(), signal.SIGKILL)
    assert mlxq.await_next(one).restarts == 1


def test_an_engine_that_died_with_the_worker_comes_back(mlxq: Mlxq):
    mlxq.work_with_fakes()
    one = mlxq.up()
    mlxq.kill_worker()
    process.send(mlxq.identity(), signal.SIGKILL)
    mlxq.work_with_fakes()

    assert mlxq.await_next(one).state == State.READY


def test_a_start_that_was_never_recorded_is_adopted(mlxq: Mlxq):
    """SIGKILL of the worker between the spawn and the row: one engine in the end, the one that was started."""
    mlxq.work_with_fakes()
    one = mlxq.up()
    mlxq.kill_worker()
    mlxq.db.run("UPDATE services SET state = 'starting', identity = NULL, shim = NULL, ready_at = NULL")
    mlxq.work_with_fakes()
    after = mlxq.await_doing(State.READY)

    assert after.identity == one.identity
    assert "adopted" in mlxq.events()
    assert mlxq.engines() == 1


@pytest.mark.parametrize("wanted", ["up", "down"])
def test_a_stop_that_was_cut_short_is_finished(mlxq: Mlxq, wanted: str):
    """SIGKILL of the worker between SIGTERM and the row."""
    mlxq.work_with_fakes()
    mlxq.up()
    mlxq.kill_worker()
    mlxq.db.run("UPDATE services SET state = 'stopping', desired = ?", (wanted,))
    mlxq.work_with_fakes()

    mlxq.await_doing(State.READY if wanted == "up" else State.STOPPED)
    assert mlxq.engines() == (wanted == "up")


def test_a_start_right_after_a_death_is_a_start(mlxq: Mlxq):
    """`up` may be quicker than the watchdog; the row still says ready."""
    mlxq.work_with_fakes()
    one = mlxq.up()
    killed = mlxq.identity()
    process.send(killed, signal.SIGKILL)
    assert process.wait(killed, 60.0)
    again = mlxq.up()

    assert again.generation == one.generation + 1
    assert mlxq.engines() == 1


def test_a_reused_pid_is_never_signalled(mlxq: Mlxq):
    """The row names a pid that a stranger has now: it is buried, not stopped."""
    mlxq.work_with_fakes()
    mlxq.up()
    mlxq.ended(mlxq.put("stop", service="fast"))
    mlxq.kill_worker()
    me = process.identify(os.getpid())
    assert me is not None
    forged = process.encode(process.Identity(me.pid, "1", me.boot))
    mlxq.db.run("UPDATE services SET state = 'ready', desired = 'down', identity = ?", (forged,))
    mlxq.work_with_fakes()

    mlxq.await_doing(State.STOPPED)
    assert process.alive(me)


def test_a_stranger_on_the_port_is_named_and_left_alone(mlxq: Mlxq):
    mlxq.work_with_fakes()
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        mlxq.db.run("UPDATE engines SET port = ?", (port,))
        done = mlxq.ended(mlxq.put("start", service="fast"))

        assert done.error_code == "port_taken"
        assert f"(pid {os.getpid()})" in done.error
        assert mlxq.one().state == State.FAILED
    assert mlxq.up().port == port


def test_damaged_weights_end_in_failed_with_the_cause(mlxq: Mlxq, tiny: Path, tmp_path: Path):
    """No loop: another try would end the same way."""
    cut = shutil.copytree(tiny, tmp_path / "cut")
    os.truncate(cut / "model.safetensors", 1000)
    mlxq.db.run("UPDATE engines SET weights = ?", (str(cut),))
    mlxq.work()
    done = mlxq.ended(mlxq.put("start", service="fast"))

    assert (done.state, done.error_code) == ("failed", "damaged")
    assert done.error == "fast failed: The weights are truncated or damaged."
    assert mlxq.events().count("spawned") == 1


def test_a_start_can_be_taken_back(mlxq: Mlxq):
    """`down` while it loads: it does not wait for the load to end."""
    mlxq.work_with_fakes("--load", "10")
    starting = mlxq.put("start", service="fast")
    mlxq.await_doing(State.LOADING)
    stopping = mlxq.put("stop", service="fast")

    assert mlxq.ended(stopping).state == "succeeded"
    assert mlxq.ended(starting).result["state"] == "stopped"
    assert mlxq.one().state == State.STOPPED
    assert mlxq.engines() == 0


def test_what_was_put_down_stays_down(mlxq: Mlxq):
    mlxq.work_with_fakes()
    mlxq.up()
    mlxq.ended(mlxq.put("stop", service="fast"))
    mlxq.kill_worker()
    mlxq.work_with_fakes()
    recovery.let_it_look()

    assert mlxq.one().state == State.STOPPED
    assert service.observe(mlxq.one().state, mlxq.one().desired) == "stopped"


RECYCLING = """
from tasks.plan import leak
leak.advise = lambda *_, **__: leak.Advice.RECYCLE
"""
"""A worker that finds the memory of every engine growing."""


def test_an_engine_out_of_the_route_is_started_anew_when_the_worker_dies_before_it_asked_for_that(mlxq: Mlxq):
    """A planned restart: the row says that it drains, and no job is there yet."""
    mlxq.work_with_fakes()
    one = mlxq.up()
    mlxq.kill_worker()
    mlxq.work_with_fakes(prelude=RECYCLING + DYING, DIES_AT="tasks.supervision.repairs:new")
    assert mlxq.worker
    assert mlxq.worker.wait(LIMIT_S) == -signal.SIGKILL
    assert (mlxq.one().state, mlxq.one().identity) == (State.DRAINING, one.identity)
    mlxq.work_with_fakes()

    assert mlxq.await_next(one).restarts == 0
    assert mlxq.engines() == 1


def test_changed_tiers_are_replaced_one_after_another(mlxq: Mlxq, tiny: Path):
    """As after an upgrade: what the next worker would start otherwise is replaced while the others answer."""
    names = ("standard", "fast", "longctx")
    mlxq.serve(tiny, *names)
    mlxq.work_with_fakes("--load", "0.3")
    before = [mlxq.up(name) for name in names]
    mlxq.kill_worker()
    mlxq.db.run("UPDATE engines SET weights = ?", (str(shutil.copytree(tiny, mlxq.home.models / "other")),))

    mlxq.work_with_fakes("--load", "0.3")

    spans = [(mlxq.await_next(one).started_at or 0.0, mlxq.one(one.name).ready_at or 0.0) for one in before]
    assert all(ready <= begun for (_, ready), (begun, _) in pairwise(sorted(spans)))


MADE_AGAIN_S = 20.0
"""Seconds are promised; the rest is for a crowded machine."""


def test_sockets_and_logs_that_somebody_deleted_are_made_again(mlxq: Mlxq):
    mlxq.work_with_fakes()
    recovery.up_with_gateway(mlxq, free_port())
    sockets = [wakeup.folder(mlxq.home) / "w.sock", socket_handover.place(mlxq.home)]
    logs = [mlxq.home.log(name) for name in ("worker", "gateway")]
    for path in (*sockets, *logs):
        path.unlink()

    until(lambda: all(path.exists() for path in (*sockets, *logs)), MADE_AGAIN_S)

    holder = socket_handover.serving_process(mlxq.home)
    assert holder
    assert holder.identity == mlxq.one("gateway").identity
    mlxq.ended(mlxq.put("stop", service="fast"))
    assert "job_started" in mlxq.home.log("worker").read_text()


LOW = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits of another process are read from /proc")
def test_the_worker_raises_a_low_limit_of_open_files_before_it_starts_anything(mlxq: Mlxq):
    """Terminal on macOS gives 256."""
    mlxq.work_with_fakes(prelude=LOW)
    mlxq.up()
    assert mlxq.worker

    for pid in (mlxq.worker.pid, mlxq.identity().pid):
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] >= 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prlimit(2)")
def test_a_gateway_without_descriptors_is_replaced(mlxq: Mlxq):
    """It still answers on the connections that it has; a new one, as the probe opens, it cannot take."""
    mlxq.work_with_fakes()
    before = recovery.up_with_gateway(mlxq, free_port())
    pid = mlxq.identity("gateway").pid
    open_files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_files + 2, open_files + 2))
    with ExitStack() as clients:
        for _ in range(20):
            clients.enter_context(socket.create_connection(("127.0.0.1", before.port)))

        after = mlxq.await_next(before)

    assert after.identity != before.identity
    assert recovery.ask_gateway(mlxq) == 200
