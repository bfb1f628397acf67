"""Start, name and stop processes, so that no signal ever reaches another program.

A pid alone is no identity: the kernel reuses it. An `Identity` (boot, pid, start) does, and every
signal here is sent through one. A service runs under a small /bin/sh shim that writes its exit code down,
because a worker that adopted the service later is not its parent and cannot ask the kernel.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from state.classes import dataclass
from state.errors import MlxqError

if TYPE_CHECKING:
    import signal
    import subprocess

if sys.platform == "linux":
    from tasks.system.linux import process_table as table
else:
    from tasks.system.macos import process_table as table

SHIM = """\
"$@" >&2 &
engine=$!
trap '' HUP INT TERM
echo "$engine"
exec >&2
wait "$engine"
code=$?
echo "$code $engine" >"$0.$$" && exec mv "$0.$$" "$0"
"""
"""$0 is the file for the exit code, $@ the program, stdout a pipe to us, stderr the log.
Signals to the group are for the program; the shim outlives it by one write. The pid lies beside the code
so that an old shim's late word is not taken for the new program's. The last word is an exec: a child of the shim
would bear the program's marks."""

SESSION = "MLXQ_SESSION"
"""The variable of a child with the id of the login session that it was started in."""
CONFIRM_S = 5.0
"""Seconds a killed process may take to be gone; only one stuck in the kernel takes longer."""
LAST_WORD_S = 2.0
"""Seconds a shim may take to write the exit code of a program that ended: it starts mv, on a crowded machine too."""


@dataclass(frozen=True)
class Identity:
    """One process of one boot; equal only to itself."""

    pid: int
    start: str
    """When it started, by the kernel: clock ticks since boot (Linux), unadjusted seconds (macOS)."""
    boot: str


@dataclass(frozen=True)
class Spawned:
    """What `spawn` started."""

    engine: Identity
    """The service's own process: the one to record, watch and stop."""
    shim: Identity


class How(StrEnum):
    """How a process came to its end."""

    GONE = "gone"  # it was not there any more
    ASKED = "asked"  # it ended after SIGTERM
    KILLED = "killed"  # it ended after SIGKILL
    STUCK = "stuck"  # it is still there


@dataclass(frozen=True)
class Stopped:
    """How `stop` went, and how many seconds it took."""

    outcome: How
    seconds: float


@functools.cache
def boot() -> str:
    """Return the id of this boot; it changes when the machine restarts, and only then."""
    return table.boot()


def identify(pid: int) -> Identity | None:
    """Return the identity of a living process, or None; a zombie counts as dead."""
    start = table.start(pid)
    return None if start is None else Identity(pid, start, boot())


def alive(identity: Identity) -> bool:
    """Return whether this very process still lives."""
    return identify(identity.pid) == identity


def frozen(identity: Identity) -> bool:
    """Return whether the process was stopped by a signal or a debugger, and so cannot answer anybody."""
    return table.stopped(identity.pid)


def waits(identity: Identity) -> bool | None:
    """Return whether the process runs, or waits for a processor or the disk; None where the system does not say."""
    return table.waits(identity.pid)


def cpu_s(identity: Identity) -> float:
    """Return the CPU seconds that the process has had since its start; 0 when it is gone."""
    return table.cpu_s(identity.pid)


def encode(identity: Identity) -> str:
    """Return the identity as boot/pid/start."""
    return f"{identity.boot}/{identity.pid}/{identity.start}"


def decode(text: str) -> Identity:
    """Read what `encode` wrote. Raises ValueError on anything else."""
    name, pid, start = text.split("/")
    return Identity(int(pid), start, name)


def spawn(argv: Sequence[str], env: Mapping[str, str], log: Path, run: Path, name: str) -> Spawned:
    """Start `argv` in a session of its own, its output appended to `log`, its exit code kept in `run`.

    Raises MlxqError when no process could be made for it.
    """
    import subprocess  # `mlxq status` starts nothing

    exit_file = _exit_file(run, name)
    exit_file.unlink(missing_ok=True)
    with appended(log) as output:
        shim = subprocess.Popen(
            ["/bin/sh", "-c", SHIM, str(exit_file), *argv],
            env=_in_session(env),
            cwd=run,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            start_new_session=True,
        )
    pid, shim_identity = _first_word(shim), _name(shim.pid)
    threading.Thread(target=shim.wait, name=f"reap-{name}", daemon=True).start()
    if not pid:
        raise MlxqError(f"{name} ended at once.", hint=f"mlxq logs {name}")
    return Spawned(_name(pid), shim_identity)


def _in_session(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with the login session that the process begins in; only macOS has one that matters."""
    session = table.session()
    return {**env, SESSION: session} if session else dict(env)


def outlived_session(identity: Identity) -> bool:
    """Return whether the login session that a process was started in is another one than this process's.

    After a log-out of macOS it can compile no Metal kernel any more (codex issue 36696, omlx issue 1335).
    """
    began = table.environment(identity.pid).get(SESSION)
    return began is not None and began != table.session()


def _exit_file(run: Path, name: str) -> Path:
    """Return where the shim of a service writes its exit code."""
    return run / f"{name}.exit"


def _first_word(shim: subprocess.Popen[bytes]) -> int:
    """Read the pid the shim says first; 0 when it says nothing."""
    assert shim.stdout is not None
    with shim.stdout as pipe:
        return int(pipe.readline().strip() or 0)


def _name(pid: int) -> Identity:
    """Name a process of ours; one that has ended already gets an identity that none has, and is dead like any other."""
    return identify(pid) or Identity(pid, "ended", boot())


@contextlib.contextmanager
def appended(log: Path) -> Generator[int]:
    """Open a log so that it can be truncated under its writer: O_APPEND writes at the new end."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def exit_status(run: Path, name: str, engine: Identity) -> int | None:
    """Return the exit code the shim kept for `engine`, 128 + N after signal N; None when none was kept."""
    try:
        code, pid = _exit_file(run, name).read_text("ascii").split()
    except (OSError, ValueError):
        return None
    return int(code) if int(pid) == engine.pid else None


def sentence(code: int | None) -> str:
    """Return an exit code in words."""
    if code is None:
        return "ended without a word"
    if code > 128 and (name := _signal_name(code - 128)):  # noqa: PLR2004 - the shell's rule
        return f"killed by {name}"
    return f"exited with code {code}"


def _signal_name(number: int) -> str:
    """Return SIGKILL for 9; empty for a number that is no signal."""
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return ""


def stop(identity: Identity, grace_s: float) -> Stopped:
    """End a service: SIGTERM to its group, SIGKILL after `grace_s` seconds, and see it gone.

    All other processes of the group end with it, but for the shim, which ends by itself after its last
    write. Nothing is signalled that is not the process, or was not in its group when the stop began.
    """
    import signal

    began = time.monotonic()
    group = members(identity)
    if not group:
        return Stopped(How.GONE, 0.0)
    outcome = How.ASKED
    for member in group:
        send(member, signal.SIGTERM)
    if not wait(identity, grace_s):
        send(identity, signal.SIGKILL)
        outcome = How.KILLED if wait(identity, CONFIRM_S) else How.STUCK
    for member in group:
        if member != identity and not wait(member, 1.0):
            send(member, signal.SIGKILL)
    return Stopped(outcome, time.monotonic() - began)


def members(identity: Identity) -> list[Identity]:
    """Return the living processes of the group that `identity` is in, itself among them; [] when it is dead."""
    try:
        group = os.getpgid(identity.pid)
    except ProcessLookupError:
        return []
    alive_members = members_of_group(group)
    return alive_members if identity in alive_members else []


def members_of_group(group: int) -> list[Identity]:
    """Return the living processes of a group, also of one whose leader is dead."""
    return [member for pid in _pids_of_group(group) if (member := identify(pid))]


def _pids_of_group(group: int) -> list[int]:
    """Return the pids that belong to a process group."""
    pids: list[int] = []
    for pid in table.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) == group:
                pids.append(pid)
    return pids


def send(identity: Identity, number: signal.Signals) -> bool:
    """Signal this very process; tell whether it was there.

    On Linux a pidfd pins the process before it is compared, so its pid cannot change hands between.
    """
    import signal

    if sys.platform == "linux":
        with _pinned(identity) as descriptor:
            if descriptor is None:
                return False
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
            return True
    if not alive(identity):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(identity.pid, number)
    return True


def wait(identity: Identity, limit_s: float) -> bool:
    """Wait until the process is gone, `limit_s` seconds at most; tell whether it is."""
    if sys.platform == "linux":
        with _pinned(identity) as descriptor:
            if descriptor is None:
                return True
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            return bool(poll.poll(max(0, limit_s) * 1000))
    return table.await_exit(identity.pid, lambda: alive(identity), limit_s)


@contextlib.contextmanager
def _pinned(identity: Identity) -> Generator[int | None]:
    """Hold a pidfd on the process, or None when it is gone. Linux only."""
    descriptor = pin(identity)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def pin(identity: Identity) -> int | None:
    """Open a pidfd; the identity is read again afterwards, as the pid may have changed hands before."""
    assert sys.platform == "linux"
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    if alive(identity):
        return descriptor
    os.close(descriptor)
    return None


def find_orphans(home: str, service: str) -> dict[Identity, int]:
    """Find our service's processes by the marks in their environment: identity -> generation.

    Meant for those that were started and never recorded. The shim bears the same marks and is left out, as is what
    the service has started itself.
    """
    orphans = {identity: generation for identity, generation in _marked(home, service) if not _is_shim(identity.pid)}
    pids = {identity.pid for identity in orphans}
    return {identity: generation for identity, generation in orphans.items() if table.parent(identity.pid) not in pids}


def services_of(home: str) -> list[Identity]:
    """Return every process that was started as a service of this home, whatever its name."""
    marked = (pid for pid in table.pids() if _is_service_of(home, table.environment(pid)))
    return [identity for pid in marked if (identity := identify(pid))]


def _is_service_of(home: str, marks: Mapping[str, str]) -> bool:
    return marks.get("MLXQ_HOME") == home and "MLXQ_SERVICE" in marks


def find_shims(run: Path, service: str) -> list[Identity]:
    """Find the shims of our service's processes by their command line.

    macOS withholds the environment of /bin/sh, as of every program of Apple's (XNU kern_sysctl.c, cs_restricted).
    """
    exit_file = [str(_exit_file(run, service))]
    shims = (pid for pid in table.pids() if table.arguments(pid)[3:4] == exit_file and _is_shim(pid))
    return [identity for pid in shims if (identity := identify(pid))]


def shim(engine: Identity) -> Identity | None:
    """Find the shim of a living process that we started: its parent, and the leader of its session. None when gone."""
    parent = table.parent(engine.pid)
    leader = identify(parent) if parent else None
    return leader if leader and alive(engine) and _session(engine.pid) == leader.pid else None


def end_barren(shim: Identity) -> None:
    """End a shim whose program is not there.

    It writes an exit code, and is gone in a moment; or it lost its worker before it started the program, and would
    start it after the search for one has ended.
    """
    import signal

    if members(shim) == [shim] and not wait(shim, LAST_WORD_S) and members(shim) == [shim]:
        send(shim, signal.SIGKILL)
        wait(shim, CONFIRM_S)


def _marked(home: str, service: str) -> Generator[tuple[Identity, int]]:
    """Return the living processes that bear our marks, each with its generation."""
    wanted = {"MLXQ_HOME": home, "MLXQ_SERVICE": service}
    for pid in table.pids():
        marks = table.environment(pid)
        if wanted.items() <= marks.items() and (identity := identify(pid)):
            yield identity, int(marks.get("MLXQ_GENERATION", "0"))


def _is_shim(pid: int) -> bool:
    """Return whether the process leads its session: a spawned shim does, the program under it does not."""
    return _session(pid) == pid


def _session(pid: int) -> int | None:
    """Return the pid of the leader of a process's session; None for one that is gone."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None
