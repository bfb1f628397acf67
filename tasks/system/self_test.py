"""What mlxq assumes about the machine, tried on it: `mlxq doctor --self-test`.

Every assumption is tried as the product uses it, in a scratch folder and with children of its own; nothing is left
behind, nothing needs an administrator. What macOS alone has is in macos/self_test.py.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path

from state import files
from state.classes import dataclass
from tasks.system import memory, ports, process

LIMIT_S = 30.0
"""Seconds for all; what has not ended by then has failed."""
SEEN_S = 3.0
"""Seconds in which what another process does must be seen."""
EXIT_LIMIT_S = 0.1
"""Seconds in which an exit must be noticed."""
DEATHS = 60
CONNECTIONS = 200
BECOMES = """import os, sys; sys.stdin.readline()
os.execv(sys.executable, [sys.executable, "-S", "-c", "input(); input()"])"""
MOST_DRIFT_S = 0.1
"""Seconds by which two clocks may differ that are read one after the other."""
SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


@dataclass(frozen=True)
class Trial:
    """How one assumption was tried."""

    holds: bool | None
    """Whether it holds; None where this system has no such thing."""
    detail: str


@dataclass(frozen=True)
class Assumption:
    """Something about the machine that mlxq relies on."""

    name: str
    matters: str
    """What does not work where it does not hold."""
    try_out: Callable[[Path], Trial]
    """Tries it in a scratch folder on the disk of the models."""


@dataclass(frozen=True)
class TriedAssumption:
    """An assumption and how it went."""

    assumption: Assumption
    trial: Trial
    seconds: float


def run(folder: Path, assumptions: Sequence[Assumption]) -> Iterator[TriedAssumption]:
    """Try the assumptions one after another in a scratch folder inside `folder`, which must exist."""
    end = time.monotonic() + LIMIT_S
    with tempfile.TemporaryDirectory(prefix=".mlxq-self-test-", dir=folder) as scratch:
        for assumption in assumptions:
            began = time.monotonic()
            trial = _bounded(assumption, Path(scratch), max(0.0, end - began))
            yield TriedAssumption(assumption, trial, time.monotonic() - began)


def _bounded(assumption: Assumption, scratch: Path, limit_s: float) -> Trial:
    """Try one in a thread: a hang, as of a disk that is gone, is a result too."""
    trials: list[Trial] = []

    def work() -> None:
        try:
            trials.append(assumption.try_out(scratch))
        except (OSError, ValueError, AttributeError, subprocess.SubprocessError) as problem:  # no symbol in a library
            trials.append(Trial(False, f"{type(problem).__name__}: {problem}"))

    thread = threading.Thread(target=work, daemon=True, name=f"self-test-{assumption.name}")
    thread.start()
    thread.join(limit_s)
    return trials[0] if trials else Trial(False, f"did not end within {limit_s:.0f} s")


@contextlib.contextmanager
def child(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, leads: bool = False
) -> Generator[subprocess.Popen[bytes]]:
    """Run a child for a trial, in a session of its own when it `leads`; it is gone at the end."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=env, start_new_session=leads) as running:
        try:
            yield running
        finally:
            running.kill()


def boot_is_stable(_: Path) -> Trial:
    """Try that the boot has an id, the same when it is asked again."""
    process.boot.cache_clear()
    first = process.boot()
    process.boot.cache_clear()
    return Trial(bool(first) and first == process.boot(), "the same twice" if first else "empty")


def start_survives_exec(_: Path) -> Trial:
    """Try that a process keeps its start mark when it becomes another program."""
    with subprocess.Popen([sys.executable, "-S", "-c", BECOMES], stdin=subprocess.PIPE) as running:
        try:
            before = process.identify(running.pid)
            assert running.stdin
            running.stdin.write(b"go\n")
            running.stdin.flush()
            _await(lambda: "input(); input()" in process.table.arguments(running.pid), SEEN_S)
            after = process.identify(running.pid)
        finally:
            running.kill()
    return Trial(before is not None and before == after, "the same before and after exec" if before else "not found")


def exits_are_noticed(_: Path) -> Trial:
    """Try that every exit of a process that is no child is noticed, once and soon."""
    from tasks.system.exit_watcher import ExitWatcher

    noticed: dict[str, list[float]] = {}
    watcher = ExitWatcher(lambda name, _identity: noticed.setdefault(name, []).append(time.monotonic()))
    watcher.start()
    late: list[float] = []
    for number in range(DEATHS):
        name = str(number)
        with subprocess.Popen(["/bin/sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE) as parent:
            assert parent.stdout
            stranger = int(parent.stdout.readline())
            if identity := process.identify(stranger):
                watcher.watch(name, identity)
            died = time.monotonic()
            os.kill(stranger, signal.SIGKILL)
            _await(lambda name=name: name in noticed, 10 * EXIT_LIMIT_S)
            late.append(noticed.get(name, [died + 9.0])[0] - died)
            parent.kill()
    watcher.close()
    once = all(len(times) == 1 for times in noticed.values())
    missed = DEATHS - len(noticed)
    detail = f"{DEATHS - missed} of {DEATHS}, the slowest after {max(late) * 1000:.0f} ms"
    return Trial(once and not missed and max(late) <= EXIT_LIMIT_S, detail)


def environment_is_readable(_: Path) -> Trial:
    """Try that the environment of a Python child can be read: engines that were never recorded are found by it."""
    with child(SLEEPER, env={"MLXQ_SERVICE": "self-test"}) as running:
        readable = _await(lambda: process.table.environment(running.pid).get("MLXQ_SERVICE") == "self-test", SEEN_S)
    return Trial(readable, "of a Python child" if readable else "withheld by the system")


def arguments_are_readable(_: Path) -> Trial:
    """Try that the command line of /bin/sh can be read: shims are found by it."""
    with child(["/bin/sh", "-c", "sleep 60 & wait", "self-test"], leads=True) as running:
        readable = _await(lambda: process.table.arguments(running.pid)[3:] == ["self-test"], SEEN_S)
        os.killpg(running.pid, signal.SIGKILL)
    return Trial(readable, "of /bin/sh" if readable else "withheld by the system")


def stop_is_seen(_: Path) -> Trial:
    """Try that a stopped process is seen as such."""
    with child(SLEEPER) as running:
        identity = process.identify(running.pid)
        running.send_signal(signal.SIGSTOP)
        noticed = identity is not None and _await(lambda: process.frozen(identity), SEEN_S)
    return Trial(noticed, "after SIGSTOP")


def sockets_are_handed_over(_: Path) -> Trial:
    """Try that a listening socket changes hands without a connection refused."""
    ours, theirs = socket.socketpair()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port, refused = listener.getsockname()[1], 0
    for number in range(CONNECTIONS):
        if number == CONNECTIONS // 2:
            socket.send_fds(ours, [b"!"], [listener.fileno()])
            received = socket.recv_fds(theirs, 1, 1)[1]
            listener.close()
            listener = socket.socket(fileno=received[0])
        try:
            socket.create_connection(("127.0.0.1", port), 2.0).close()
        except OSError:
            refused += 1
    for end in (listener, ours, theirs):
        end.close()
    return Trial(not refused, f"{refused} of {CONNECTIONS} refused")


def taken_ports_are_seen(_: Path) -> Trial:
    """Try that a port is not called free beside a listener on all addresses, and that its holder is named."""
    wrong: list[str] = []
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104 - for a moment
        if family == socket.AF_INET6 and not socket.has_dualstack_ipv6():
            continue
        with socket.create_server((address, 0), family=family) as listener:
            wrong += [f"{address} {problem}" for problem in _wrong_about(listener.getsockname()[1])]
    return Trial(not wrong, "; ".join(wrong) or "0.0.0.0 and ::")


def _wrong_about(number: int) -> Iterator[str]:
    """Yield what is not seen of a port on which this process listens."""
    holder, own = ports.holder(number), process.identify(os.getpid())
    if ports.free(number):
        yield "was called free"
    if holder is None or holder.pid != os.getpid():
        yield "was given no holder, or another"
    if own is None or ports.taken_from(number, own):
        yield "was called another program's"


def wake_ups_work(_: Path) -> Trial:
    """Try the longest path of a socket, and that a full socket drops wake-ups instead of blocking."""
    from state.wakeup import LONGEST_SOCKET_PATH

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = f"{folder}/{'s' * (LONGEST_SOCKET_PATH - len(folder) - 1)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, _datagram() as sender:
            listener.bind(path)
            for sent in range(100_000):
                try:
                    sender.sendto(b"!", path)
                except OSError as problem:
                    expected = problem.errno in {errno.ENOBUFS, errno.EAGAIN}
                    return Trial(expected, f"{len(path)} bytes; {errno.errorcode[problem.errno or 0]} after {sent}")
    return Trial(False, "a full socket took everything")


def _datagram() -> socket.socket:
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.setblocking(False)
    return sender


def disk_can_do_it(scratch: Path) -> Trial:
    """Try locks, hard links, sparse files and a durable write on the disk of the models."""
    path = scratch / "disk"
    cannot: list[str] = []
    with path.open("wb+") as file, path.open("rb+") as other:
        fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            cannot.append("locks")
        file.truncate(1 << 30)
        os.pwrite(file.fileno(), b"end", (1 << 30) - 3)
        files.sync(file.fileno())
        if os.pread(file.fileno(), 3, (1 << 30) - 3) != b"end" or os.pread(file.fileno(), 3, 1 << 20) != bytes(3):
            cannot.append("sparse files")
        size = os.fstat(file.fileno()).st_blocks * 512
    try:
        os.link(path, scratch / "link")
    except OSError:
        cannot.append("hard links")
    folds = (scratch / "DISK").exists()
    path.unlink()
    detail = f"{'folds case' if folds else 'tells case'}, 1 GB sparse takes {size / 1e6:.1f} MB"
    return Trial(
        "locks" not in cannot and "sparse files" not in cannot, ", ".join([detail, *(f"no {c}" for c in cannot)])
    )


def sleep_is_counted(_: Path) -> Trial:
    """Try that the time asleep is known, and does not grow while awake."""
    before = memory.asleep_s()
    time.sleep(0.5)
    grown = memory.asleep_s() - before
    return Trial(before > -MOST_DRIFT_S and abs(grown) < MOST_DRIFT_S, f"{max(0.0, before):.0f} s since it was started")


def memory_is_known(_: Path) -> Trial:
    """Try that memory, its pressure and what this process takes are known."""
    now = memory.memory()
    me = process.identify(os.getpid())
    taken = process.table.resident(os.getpid())
    detail = (
        f"{now.available >> 20} of {now.total >> 20} MiB free, pressure {now.pressure}, this process {taken >> 20} MiB"
    )
    return Trial(me is not None and 0 < taken < now.total and 0 < now.available <= now.total, detail)


def _await(true: Callable[[], bool], limit_s: float) -> bool:
    """Wait for another process to get somewhere; it tells no one when it does."""
    end = time.monotonic() + limit_s
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


PORTABLE = (
    Assumption("boot id", "processes of an earlier boot would be taken for ours", boot_is_stable),
    Assumption("start of a process", "a service would be taken for another program", start_survives_exec),
    Assumption("exits", "a crash is noticed up to 2 s later", exits_are_noticed),
    Assumption("environment of engines", "an engine that was never recorded is not found", environment_is_readable),
    Assumption("command line of shims", "a shim without its worker is not ended", arguments_are_readable),
    Assumption("stopped processes", "an engine that was stopped is taken for one that hangs", stop_is_seen),
    Assumption("handing over sockets", "a new gateway refuses requests for a moment", sockets_are_handed_over),
    Assumption("ports", "a service starts on a port that is taken", taken_ports_are_seen),
    Assumption("wake-ups", "commands wait up to a second longer", wake_ups_work),
    Assumption("disk of the models", "downloads are not safe there; choose another model-dir", disk_can_do_it),
    Assumption("time asleep", "services are called hung after the machine slept", sleep_is_counted),
    Assumption("memory", "models are chosen and watched by wrong figures", memory_is_known),
)
"""What holds on every system."""


def assumptions() -> tuple[Assumption, ...]:
    """Return what this system must hold to."""
    if sys.platform != "darwin":
        return PORTABLE
    from tasks.system.macos import self_test as macos

    return (*PORTABLE, *macos.ASSUMPTIONS)
