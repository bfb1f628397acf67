import queue
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tasks.system import process
from tasks.system.exit_watcher import ExitWaiter, ExitWatcher
from tasks.system.process import Identity

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
LIMIT_S = 60.0
"""An end is told within milliseconds; a crowded machine may be late."""
Told = queue.Queue[tuple[str, Identity]]


@pytest.fixture
def told() -> Told:
    return queue.Queue()


@pytest.fixture
def exits(told: Told) -> Iterator[ExitWatcher]:
    thread = ExitWatcher(lambda name, identity: told.put((name, identity)))
    thread.start()
    yield thread
    thread.close()


@pytest.fixture
def sleeper() -> Iterator[Identity]:
    with subprocess.Popen(SLEEPER) as child:
        yield _identity(child.pid)
        child.kill()


@pytest.fixture
def stranger() -> Iterator[Identity]:
    """Give a process that is not our child, as every service is to a worker that adopted it."""
    code = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=-3, stderr=-3).pid)"
    parent = subprocess.run([sys.executable, "-c", code, *SLEEPER], capture_output=True, text=True, check=True)
    identity = _identity(int(parent.stdout))
    yield identity
    process.send(identity, signal.SIGKILL)


def _identity(pid: int) -> Identity:
    found = process.identify(pid)
    assert found is not None
    return found


def test_a_death_is_told_once_and_unasked(exits: ExitWatcher, told: Told, stranger: Identity):
    exits.watch("fast", stranger)
    process.send(stranger, signal.SIGKILL)

    assert told.get(timeout=LIMIT_S) == ("fast", stranger)
    with pytest.raises(queue.Empty):
        told.get(timeout=0.1)


def test_the_dead_are_told_when_they_are_added(exits: ExitWatcher, told: Told, stranger: Identity):
    """The process may end between its start and the first look."""
    process.send(stranger, signal.SIGKILL)
    process.wait(stranger, LIMIT_S)
    exits.watch("fast", stranger)

    assert told.get(timeout=LIMIT_S) == ("fast", stranger)


def test_a_reused_pid_counts_as_dead(exits: ExitWatcher, told: Told, sleeper: Identity):
    earlier = Identity(sleeper.pid, "1", sleeper.boot)
    exits.watch("fast", earlier)

    assert told.get(timeout=LIMIT_S) == ("fast", earlier)


def test_the_forgotten_are_not_told(exits: ExitWatcher, told: Told, sleeper: Identity, stranger: Identity):
    exits.watch("fast", sleeper)
    exits.forget("fast")
    exits.watch("standard", stranger)
    process.send(sleeper, signal.SIGKILL)
    process.wait(sleeper, LIMIT_S)
    process.send(stranger, signal.SIGKILL)

    assert told.get(timeout=LIMIT_S) == ("standard", stranger)
    assert told.empty()


def test_a_new_process_takes_the_name(exits: ExitWatcher, told: Told, sleeper: Identity, stranger: Identity):
    exits.watch("fast", sleeper)
    exits.watch("fast", stranger)
    process.send(sleeper, signal.SIGKILL)
    process.wait(sleeper, LIMIT_S)
    process.send(stranger, signal.SIGKILL)

    assert told.get(timeout=LIMIT_S) == ("fast", stranger)


def test_many_die_together(exits: ExitWatcher, told: Told):
    children = [subprocess.Popen(SLEEPER) for _ in range(8)]
    for number, child in enumerate(children):
        exits.watch(f"tier-{number}", _identity(child.pid))
    for child in children:
        child.kill()
        child.wait()

    assert {told.get(timeout=LIMIT_S)[0] for _ in children} == {f"tier-{number}" for number in range(8)}


class CountingWatcher(ExitWatcher):
    """Counts how often it looks at what it watches."""

    steps = 0

    def step(self, waiter: ExitWaiter) -> None:
        self.steps += 1
        super().step(waiter)


def test_waiting_looks_at_nothing(sleeper: Identity):
    """One look when it begins, one when there is something to watch, one when it ends."""
    exits = CountingWatcher(lambda *_: None)
    exits.start()
    exits.watch("fast", sleeper)
    process.wait(sleeper, 1)
    exits.close()

    assert exits.steps <= 3
