"""The darwin branch of processes and exits: the real code on a simulated macOS kernel (tests/support/macos.py)."""

from __future__ import annotations

import os
import random
import signal
from typing import Any

import pytest
from support.examples import share

from tests.support import macos
from tests.support.macos import Kernel

SEEDS = share(10_000)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def process(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Any:
    return macos.load(monkeypatch, kernel, "tasks.system.process")[0]


def test_a_zombie_and_a_reused_pid_are_dead(kernel: Kernel, process: Any) -> None:
    kernel.spawn(50)
    identity = process.identify(50)
    assert process.alive(identity)
    assert process.decode(process.encode(identity)) == identity

    kernel.exit(50)
    kernel.become_zombie(50)
    assert not process.alive(identity)
    assert not process.send(identity, signal.SIGTERM)
    kernel.reap(50)
    kernel.spawn(50)
    assert not process.alive(identity)
    assert process.identify(51) is None


def test_a_signal_reaches_the_process_it_is_meant_for(kernel: Kernel, process: Any) -> None:
    kernel.spawn(50)
    identity = process.identify(50)

    assert process.send(identity, signal.SIGTERM)
    assert kernel.sent == [(50, signal.SIGTERM)]
    kernel.processes[50].state = "stopped"
    assert process.frozen(identity)
    assert not process.frozen(process.Identity(51, "1.0", identity.boot))


def test_stop_ends_the_whole_group(kernel: Kernel, process: Any) -> None:
    kernel.spawn(50)
    kernel.spawn(51, group=50, parent=50)
    kernel.spawn(52)

    stopped = process.stop(process.identify(50), grace_s=0.01)

    assert stopped.outcome is process.How.KILLED
    assert {pid for pid, number in kernel.sent if number == signal.SIGKILL} == {50, 51}
    assert process.stop(process.Identity(50, "1001.0", process.boot()), 0.01).outcome is process.How.GONE


@pytest.mark.parametrize("moment", ["before", "exiting", "zombie", "gone", "while it waits", "never"])
def test_wait_sees_an_exit_at_any_moment(kernel: Kernel, process: Any, moment: str) -> None:
    kernel.spawn(50)
    identity = process.identify(50)
    if moment in {"exiting", "zombie", "gone"}:
        kernel.exit(50)
    if moment in {"zombie", "gone"}:
        kernel.become_zombie(50)
    if moment == "gone":
        kernel.reap(50)
    looks = {"before": 1, "while it waits": 2}.get(moment, 0)

    def look() -> None:
        nonlocal looks
        looks -= 1
        if looks == 0:
            kernel.exit(50)

    kernel.on_look = look

    assert process.wait(identity, 0.0) is (moment != "never")


def test_one_process_that_ends_while_it_is_looked_at_hides_no_other(kernel: Kernel, process: Any) -> None:
    """Psutil 7.2.2 raises SystemError for it, and every start looks at every process of the Mac."""
    marks = {"MLXQ_HOME": "/h", "MLXQ_SERVICE": "fast", "MLXQ_GENERATION": "4"}
    kernel.spawn(40, torn=True)
    kernel.spawn(41, foreign=True)
    kernel.spawn(50, environment=marks, session=49)

    assert process.find_orphans("/h", "fast") == {process.identify(50): 4}


def test_shims_are_found_though_their_environment_is_withheld(kernel: Kernel, process: Any, tmp_path: Any) -> None:
    argv = ["/bin/sh", "-c", process.SHIM, str(tmp_path / "fast.exit"), "python"]
    kernel.spawn(40, torn=True, arguments=argv)
    kernel.spawn(49, arguments=argv, environment={"MLXQ_SERVICE": "fast"}, apple=True)
    kernel.spawn(50, arguments=argv, session=49, parent=49)  # forked, not yet the program
    engine = process.identify(50)

    assert process.find_shims(tmp_path, "fast") == [process.identify(49)]
    assert process.shim(engine) == process.identify(49)


def test_memory_is_what_activity_monitor_shows(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, process = macos.load(monkeypatch, kernel, "tasks.system.memory", "tasks.system.process")
    kernel.spawn(50, footprint=109 << 30, resident=46 << 30)
    kernel.spawn(51, group=50, resident=1 << 30)

    assert memory.resident(process.identify(50)) == 110 << 30
    assert process.table.session() == "100007"


def test_an_engine_that_outlived_its_login_session_is_told_from_others(kernel: Kernel, process: Any) -> None:
    for pid, session in ((50, "100007"), (51, "100003")):
        kernel.spawn(pid, environment={"MLXQ_SESSION": session})
    kernel.spawn(52, environment={"MLXQ_SERVICE": "fast"})  # started by an mlxq that did not know of sessions

    outlived = [pid for pid in (50, 51, 52) if process.outlived_session(process.identify(pid))]

    assert outlived == [51]
    assert process._in_session({"A": "1"}) == {"A": "1", "MLXQ_SESSION": "100007"}


class Run:
    """One random interleaving of what processes do and what is watched."""

    NAMES = ("standard", "fast", "longctx")
    PIDS = (50, 51, 52)

    def __init__(self, kernel: Kernel, modules: list[Any], seed: int) -> None:
        self.kernel, (self.process, waiters, watchers) = kernel, modules
        self.random = random.Random(seed)
        self.reported: list[tuple[str, Any]] = []
        self.expected: set[tuple[str, Any]] = set()
        self.watcher = watchers.ExitWatcher(self.report)
        self.waiter = waiters.KqueueWaiter(self.watcher._woken)
        self.kernel.on_look = lambda: self.advance() if self.random.random() < 0.1 else None

    def report(self, name: str, identity: Any) -> None:
        process = self.kernel.processes.get(identity.pid)
        same = process is not None and repr(process.start) == identity.start
        assert not same or process.state in {"exiting", "zombie"}, "a living process was reported"
        assert (name, identity) not in self.reported, "reported twice"
        self.reported.append((name, identity))
        self.expected.discard((name, identity))

    def advance(self) -> None:
        """Let one process take its next step; a pid is used again at once."""
        pid = self.random.choice(self.PIDS)
        process = self.kernel.processes.get(pid)
        if process is None:
            self.kernel.spawn(pid)
        else:
            steps = {"running": self.kernel.exit, "exiting": self.kernel.become_zombie, "zombie": self.kernel.reap}
            steps[process.state](pid)

    def act(self) -> None:
        name = self.random.choice(self.NAMES)
        action = self.random.choice(("advance", "advance", "watch", "forget", "step"))
        if action == "advance":
            self.advance()
        elif action == "step":
            self.watcher.step(self.waiter)
        else:
            self.expected = {pair for pair in self.expected if pair[0] != name}
            identity = self.process.identify(self.random.choice(self.PIDS)) if action == "watch" else None
            if identity and (name, identity) not in self.reported:
                self.watcher.watch(name, identity)
                self.expected.add((name, identity))
            else:
                self.watcher.forget(name)

    def finish(self) -> None:
        """Let every process end, and the watcher come to rest."""
        self.kernel.on_look = lambda: None
        for pid in self.PIDS:
            while pid in self.kernel.processes:
                process = self.kernel.processes[pid]
                {"running": self.kernel.exit, "exiting": self.kernel.become_zombie, "zombie": self.kernel.reap}[
                    process.state
                ](pid)
                self.watcher.step(self.waiter)
        for _ in self.NAMES:
            self.watcher.step(self.waiter)
        self.waiter.close()
        os.close(self.watcher._woken)
        os.close(self.watcher._wake_fd)


def test_every_death_is_reported_once_in_any_interleaving(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 random ones of exit, zombie, reuse of the pid, watch and forget, in XNU's order of events."""
    names = ("tasks.system.process", "tasks.system.macos.kqueue_waiter", "tasks.system.exit_watcher")
    modules = macos.load(monkeypatch, kernel, *names)
    for seed in range(SEEDS):
        kernel.processes.clear()
        run = Run(kernel, modules, seed)
        for _ in range(30):
            run.act()
        run.finish()
        assert run.expected == set(), f"seed {seed}: never reported"
