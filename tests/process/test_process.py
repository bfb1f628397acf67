import os
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.suspend import suspend

from tasks.system import process
from tasks.system.process import How, Identity, Spawned

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
LIMIT_S = 60.0
"""Longer than a crowded machine takes for anything here; who waits so long waits in vain."""
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEPER}"


class Place:
    """A folder to spawn in, and the end of all that was spawned there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "fast.log"
        self.spawned: list[Spawned] = []

    def spawn(self, code: str, **env: str) -> Spawned:
        return self.spawn_argv([sys.executable, "-c", code], **env)

    def spawn_argv(self, argv: list[str], **env: str) -> Spawned:
        one = process.spawn(argv, env, self.log, self.folder, "fast")
        self.spawned.append(one)
        return one

    def await_log(self, text: str) -> str:
        until(lambda: text in self.log.read_text())
        return self.log.read_text()

    def status(self, one: Spawned) -> int | None:
        assert process.wait(one.shim, LIMIT_S)
        return process.exit_status(self.folder, "fast", one.engine)


def until(true: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for one in made.spawned:
        process.send(one.engine, signal.SIGKILL)
        process.send(one.shim, signal.SIGKILL)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE) as one:
        assert one.stdout is not None
        one.stdout.readline()
        yield one
        one.kill()


def test_identity_survives_its_text():
    me = process.identify(os.getpid())

    assert me is not None
    assert process.decode(process.encode(me)) == me


@pytest.mark.parametrize("text", ["", "a/b", "boot/pid/1", "a/1/2/3"])
def test_a_broken_identity_is_refused(text: str):
    with pytest.raises(ValueError, match=r".*"):
        process.decode(text)


def test_a_living_process_keeps_its_identity(child: subprocess.Popen[bytes]):
    one = process.identify(child.pid)

    assert one == process.identify(child.pid)
    assert process.alive(one)


def test_a_zombie_is_dead(child: subprocess.Popen[bytes]):
    """It has a pid and a stat line until its parent asks, but it serves nobody."""
    one = process.identify(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert process.identify(child.pid) is None
    assert not process.alive(one)
    assert process.wait(one, 0)


@pytest.mark.parametrize("change", [{"start": "1"}, {"boot": "another"}], ids=["start", "boot"])
def test_a_reused_pid_is_never_signalled(child: subprocess.Popen[bytes], change: dict[str, str]):
    """A row that names pid 812 of last week must not reach whoever has 812 today."""
    stranger = replace(process.identify(child.pid), **change)

    assert not process.send(stranger, signal.SIGKILL)
    assert process.stop(stranger, 0).outcome == How.GONE
    assert child.poll() is None


def test_spawn_names_the_program_and_not_the_shim(place: Place):
    one = place.spawn(f"import os; print('pid', os.getpid(), flush=True); {SLEEPER}")

    assert f"pid {one.engine.pid}\n" in place.await_log("up")
    assert process.alive(one.shim)


def test_the_program_starts_clean(place: Place):
    """Its own session, no input, only the environment it was given, no descriptor of ours."""
    ours = os.open(__file__, os.O_RDONLY)
    os.set_inheritable(ours, True)
    place.spawn(
        "import os; print(os.getsid(0) != "
        f"{os.getsid(0)}, os.read(0, 1), dict(os.environ).get('A'), 'HOME' in os.environ, "
        "sorted(os.listdir('/proc/self/fd'))[:3], len(os.listdir('/proc/self/fd')), 'done')",
        A="1",
    )
    os.close(ours)

    assert "True b'' 1 False ['0', '1', '2'] 4 done" in place.await_log("done")


def test_the_log_is_private_and_appended(place: Place):
    place.log.write_text("before\n")
    place.log.chmod(0o600)
    place.spawn("print('after')")

    assert place.await_log("after") == "before\nafter\n"
    assert stat.S_IMODE(place.log.stat().st_mode) == 0o600


def test_a_truncated_log_goes_on_at_its_start(place: Place):
    """Without O_APPEND the file comes back full of NULs (20 MB of them, when it was measured)."""
    one = place.spawn(
        "import signal\nprint('x' * 9999, flush=True)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('again', flush=True))\n"
        "while True: signal.pause()"
    )
    place.await_log("x\n")
    os.truncate(place.log, 0)
    until(lambda: process.send(one.engine, signal.SIGUSR1) and place.log.stat().st_size)

    assert place.log.read_text().startswith("again\n")


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("raise SystemExit(3)", 3, "exited with code 3"),
        ("pass", 0, "exited with code 0"),
        ("import os; os.kill(os.getpid(), 9)", 137, "killed by SIGKILL"),
        ("import os; os.abort()", 134, "killed by SIGABRT"),
    ],
)
def test_the_exit_code_is_kept(place: Place, code: str, status: int, words: str):
    one = place.spawn(f"import time; time.sleep(0.2); {code}")

    assert place.status(one) == status
    assert process.sentence(status) == words


def test_the_exit_code_of_an_earlier_program_is_not_ours(place: Place):
    """A late shim may write after its successor was started."""
    first = place.spawn("import time; time.sleep(0.2); raise SystemExit(3)")
    assert place.status(first) == 3

    second = place.spawn(SLEEPER)
    assert process.exit_status(place.folder, "fast", second.engine) is None
    (place.folder / "fast.exit").write_text(f"3 {first.engine.pid}\n")
    assert process.exit_status(place.folder, "fast", second.engine) is None


def test_a_killed_shim_loses_the_code_and_not_the_program(place: Place):
    one = place.spawn(SLEEPER)
    place.await_log("up")
    process.send(one.shim, signal.SIGKILL)
    assert process.wait(one.shim, LIMIT_S)

    assert process.alive(one.engine)
    assert process.stop(one.engine, LIMIT_S).outcome == How.ASKED
    assert process.exit_status(place.folder, "fast", one.engine) is None


def test_a_signal_to_the_shim_does_not_end_it(place: Place):
    """At a shutdown everybody gets SIGTERM; the shim still has to write the program's code."""
    one = place.spawn(DEAF)
    place.await_log("up")
    process.send(one.shim, signal.SIGTERM)
    process.send(one.engine, signal.SIGKILL)

    assert place.status(one) == 137


def test_stop_asks_first(place: Place):
    one = place.spawn(SLEEPER)
    place.await_log("up")

    assert process.stop(one.engine, LIMIT_S).outcome == How.ASKED
    assert place.status(one) == 143
    assert process.stop(one.engine, LIMIT_S).outcome == How.GONE


def test_stop_kills_the_deaf(place: Place):
    one = place.spawn(DEAF)
    place.await_log("up")

    stopped = process.stop(one.engine, 0.3)

    assert stopped.outcome == How.KILLED
    assert stopped.seconds >= 0.3
    assert place.status(one) == 137


def test_stop_takes_a_frozen_process(place: Place):
    """A stopped process gets no SIGTERM; SIGKILL needs no cooperation."""
    one = place.spawn(SLEEPER)
    place.await_log("up")
    suspend(one.engine)

    assert process.stop(one.engine, 0.2).outcome == How.KILLED


def test_stop_takes_the_whole_group(place: Place):
    """A helper the program started must not keep its memory or its port."""
    one = place.spawn(
        f"import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', {DEAF!r}]);"
        "print('helper', c.pid, 'is', flush=True); c.wait()"
    )
    place.await_log("up")
    helper = process.identify(int(place.await_log(" is").split("helper ")[1].split()[0]))
    assert isinstance(helper, Identity)

    process.stop(one.engine, LIMIT_S)

    assert process.wait(helper, LIMIT_S)


def test_no_zombie_stays_behind(place: Place):
    one = place.spawn("pass")
    place.status(one)

    until(lambda: not Path(f"/proc/{one.shim.pid}").exists())


def test_a_program_that_is_not_there_says_so(place: Place):
    """The shell answers 127 for it."""
    assert place.status(place.spawn_argv(["/no/such/program"])) == 127

    assert "not found" in place.await_log("not found")


def test_a_program_that_ended_before_it_was_named_is_dead_like_any_other(place: Place, monkeypatch: pytest.MonkeyPatch):
    """Its exit code tells why, and the next try comes after a pause as after any death."""
    monkeypatch.setattr(process, "identify", lambda _: None)
    one = place.spawn("raise SystemExit(3)")
    monkeypatch.undo()

    until(lambda: process.exit_status(place.folder, "fast", one.engine) == 3)
    assert process.decode(process.encode(one.engine)) == one.engine
    assert not process.alive(one.engine)


def test_orphans_are_found_by_their_marks(place: Place):
    """Started, and the worker died before it wrote the pid down: adopt it, do not start a second."""
    marks = {"MLXQ_HOME": str(place.folder), "MLXQ_SERVICE": "fast", "MLXQ_GENERATION": "4"}
    one = place.spawn(SLEEPER, **marks)
    place.await_log("up")

    assert process.find_orphans(str(place.folder), "fast") == {one.engine: 4}
    assert process.find_orphans(str(place.folder), "standard") == {}
    assert process.find_orphans("/another/home", "fast") == {}


def test_what_a_service_started_itself_is_no_orphan(place: Place):
    marks = {"MLXQ_HOME": str(place.folder), "MLXQ_SERVICE": "fast"}
    one = place.spawn(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPER!r}])", **marks)
    place.await_log("up")

    assert list(process.find_orphans(str(place.folder), "fast")) == [one.engine]


def test_the_last_word_of_a_shim_is_no_orphan(place: Place):
    """Its marks are the service's, and the service is gone."""
    slow = place.folder / "mv"
    slow.write_text('#!/bin/sh\necho moving\nread -r _ < "${0%/*}/go"\nPATH=/bin exec mv "$@"\n')
    slow.chmod(0o700)
    os.mkfifo(place.folder / "go")
    path = f"{place.folder}:{os.environ['PATH']}"
    one = place.spawn("pass", MLXQ_HOME=str(place.folder), MLXQ_SERVICE="fast", PATH=path)
    place.await_log("moving")

    assert process.find_orphans(str(place.folder), "fast") == {}
    (place.folder / "go").write_text("go\n")
    assert place.status(one) == 0


def test_a_shim_that_may_yet_start_its_program_is_ended(place: Place):
    """It lost its worker in between: what it starts later, nobody would know."""
    argv = ["/bin/sh", "-c", "read line; sleep 600 & wait", str(place.folder / "fast.exit")]
    with subprocess.Popen(argv, env={}, stdin=subprocess.PIPE, start_new_session=True) as slow:
        until(lambda: process.find_shims(place.folder, "fast"))  # exec ends a moment before its arguments are there
        (barren,) = process.find_shims(place.folder, "fast")
        process.end_barren(barren)

        assert slow.wait(LIMIT_S) == -signal.SIGKILL


def test_a_shim_that_looks_after_its_program_is_left_alone(place: Place):
    one = place.spawn(SLEEPER, MLXQ_HOME=str(place.folder), MLXQ_SERVICE="fast")

    assert process.find_shims(place.folder, "fast") == [one.shim]
    process.end_barren(one.shim)

    assert process.alive(one.shim)
    assert process.alive(one.engine)


@pytest.mark.skipif(sys.platform != "linux", reason="macOS waits by kqueue")
def test_a_death_is_awaited_and_not_looked_for(place: Place, monkeypatch: pytest.MonkeyPatch):
    """A single wait in the kernel returns at the exit; polling would notice it up to one interval late."""
    one, waits = place.spawn(SLEEPER), list[float]()

    class Poll:
        def __init__(self) -> None:
            self.register, self.real = (made := select.poll()).register, made

        def poll(self, limit_ms: float) -> list[tuple[int, int]]:
            waits.append(limit_ms)
            threading.Timer(0.1, process.send, (one.engine, signal.SIGKILL)).start()
            return self.real.poll(limit_ms)

    monkeypatch.setattr(process, "select", SimpleNamespace(poll=Poll, POLLIN=select.POLLIN))

    assert process.wait(one.engine, LIMIT_S)
    assert waits == [LIMIT_S * 1000]
