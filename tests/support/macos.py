"""A simulated macOS for tests on Linux: processes, psutil and kqueue that misbehave as the originals.

`load(monkeypatch, kernel)` imports fresh copies of the modules that have a darwin branch, with sys.platform patched, so
that the real code of that branch runs. Rules of the kernel, from XNU 11417 (macOS 15.4):
- an exiting process posts NOTE_EXIT (kern_exit.c:2543) before it is a zombie (:2612); until then the process table
  shows it as alive (kern_sysctl.c)
- EV_ADD of NOTE_EXIT on an exiting process or a zombie fails with ESRCH (kern_event.c:1109); on a filter that is there
  (same pid) it changes that one, and an event that waits stays
- EV_DELETE of a filter that is not there fails with ENOENT; EV_ONESHOT removes a filter as its event is taken
- the environment of Apple's own programs is withheld (cs_restricted)
"""

from __future__ import annotations

import errno
import functools
import importlib
import os
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

MODULES = (
    "tasks.system.tool",
    "tasks.system.macos.process_table",
    "tasks.system.process",
    "tasks.system.memory",
    "tasks.system.ports",
    "tasks.system.exit_watcher",
    "tasks.system.hardware",
    "tasks.system.self_test",
    "tasks.system.macos.kqueue_waiter",
    "tasks.system.macos.disk",
    "tasks.system.macos.self_test",
)


@dataclass
class Process:
    """One process of the simulated kernel."""

    pid: int
    start: float
    state: str = "running"  # running, stopped, exiting (NOTE_EXIT is posted), zombie
    parent: int = 1
    group: int = 0
    session: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    footprint: int = 0
    resident: int = 0
    apple: bool = False
    """One of Apple's programs: its environment is withheld."""
    torn: bool = False
    """Ends while its arguments are read: psutil 7.2.2 raises SystemError (psutil issue 2854)."""
    foreign: bool = False
    """Another user's."""


class Kernel:
    """Processes, and the queues that wait for their exits."""

    def __init__(self) -> None:
        self.processes: dict[int, Process] = {}
        self.queues: list[Kqueue] = []
        self.sent: list[tuple[int, int]] = []
        self.clock = 1000.0
        self.on_look: Callable[[], None] = lambda: None
        """Called before every look at the process table and every change of a filter: what may happen in between."""

    def spawn(self, pid: int, **facts: Any) -> Process:
        self.clock += 1.0
        self.processes[pid] = Process(pid, self.clock, **({"group": pid, "session": pid} | facts))
        return self.processes[pid]

    def exit(self, pid: int) -> None:
        """Post the exit; the process table shows the process until `become_zombie`."""
        self.processes[pid].state = "exiting"
        for queue in self.queues:
            queue.post(pid)

    def become_zombie(self, pid: int) -> None:
        self.processes[pid].state = "zombie"

    def reap(self, pid: int) -> None:
        del self.processes[pid]

    def kill(self, pid: int, number: int) -> None:
        if pid not in self.processes:
            raise ProcessLookupError(errno.ESRCH, "No such process")
        self.sent.append((pid, number))
        if number == signal.SIGKILL:
            self.exit(pid)
            self.become_zombie(pid)

    def group_of(self, pid: int) -> int:
        process = self.processes.get(pid)
        if process is None or process.state == "zombie":
            raise ProcessLookupError(errno.ESRCH, "No such process")
        return process.group

    def session_of(self, pid: int) -> int:
        self.group_of(pid)
        return self.processes[pid].session


class Kevent:
    """select.kevent."""

    def __init__(self, ident: int, filter: int, flags: int = 1, fflags: int = 0) -> None:  # noqa: A002 - select's own name
        self.ident, self.filter, self.flags, self.fflags = ident, filter, flags, fflags


class Kqueue:
    """select.kqueue over the simulated kernel; the wake-up pipe is ready when it has bytes."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.filters: dict[int, Process] = {}
        self.pending: list[int] = []
        self.pipes: list[int] = []
        kernel.queues.append(self)

    def post(self, pid: int) -> None:
        if self.filters.get(pid) is self.kernel.processes[pid] and pid not in self.pending:
            self.pending.append(pid)

    def control(self, changes: list[Kevent] | None, count: int, timeout: float | None = 0) -> list[Kevent]:
        for change in changes or ():
            self.kernel.on_look()
            self._change(change)
        if not count:
            return []
        taken, self.pending = self.pending[:count], self.pending[count:]
        for pid in taken:
            del self.filters[pid]
        return [Kevent(pid, -5) for pid in taken] + [Kevent(pipe, -1) for pipe in self.pipes if _readable(pipe)]

    def _change(self, change: Kevent) -> None:
        if change.filter == -1:
            self.pipes.append(change.ident)
        elif change.flags & 2:
            if change.ident not in self.filters:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory")
            del self.filters[change.ident]
            self.pending = [pid for pid in self.pending if pid != change.ident]
        elif change.ident not in self.filters:
            process = self.kernel.processes.get(change.ident)
            if process is None or process.state in {"exiting", "zombie"}:
                raise ProcessLookupError(errno.ESRCH, "No such process")
            self.filters[change.ident] = process

    def close(self) -> None:
        self.kernel.queues.remove(self)


def _readable(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(0))


class PsutilError(Exception):
    """psutil.Error."""


class PsutilProcess:
    """psutil.Process of the simulated process table."""

    def __init__(self, kernel: Kernel, pid: int) -> None:
        kernel.on_look()
        if pid not in kernel.processes:
            raise PsutilError(f"no process {pid}")
        self._process = kernel.processes[pid]
        self._proc = SimpleNamespace(create_time=lambda *, monotonic: self._process.start if monotonic else 0.0)

    def status(self) -> str:
        return "idle" if self._process.state == "exiting" else self._process.state

    def ppid(self) -> int:
        return self._process.parent

    def environ(self) -> dict[str, str]:
        self._check_access()
        return {} if self._process.apple else self._process.environment

    def cmdline(self) -> list[str]:
        self._check_access()
        return self._process.arguments

    def memory_info(self) -> Any:
        return SimpleNamespace(rss=self._process.resident)

    def _check_access(self) -> None:
        if self._process.torn:
            raise SystemError("returned NULL without setting an exception")
        if self._process.foreign or self._process.state == "zombie":
            raise PsutilError("access denied")


def _psutil(kernel: Kernel) -> ModuleType:
    """Return a psutil that looks at the simulated process table."""
    module: Any = ModuleType("psutil")
    module.Error = PsutilError
    module.STATUS_ZOMBIE, module.STATUS_STOPPED = "zombie", "stopped"
    module.Process = functools.partial(PsutilProcess, kernel)
    module.pids = lambda: list(kernel.processes)
    return module


class Libraries:
    """ctypes.CDLL of libproc and libSystem."""

    audit_session = 100_007

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def proc_pid_rusage(self, pid: int, _flavor: int, usage: Any) -> int:
        process = self.kernel.processes.get(pid)
        if process is None or not process.footprint:
            return -1
        usage._obj.physical_footprint = process.footprint
        return 0

    def getaudit_addr(self, audit: Any, _size: int) -> int:
        audit._obj.session = self.audit_session
        return 0


class CoreFoundation:
    """ctypes.CDLL of CoreFoundation: what a volume's URL tells, by the name of the key."""

    def __init__(self, capacities: dict[str, int]) -> None:
        self.capacities, self.released = capacities, 0
        self.path = b""
        self.noted: list[tuple[bytes, str, Any]] = []
        self.takes_notes = True

    def CFURLCreateFromFileSystemRepresentation(self, _allocator: Any, path: bytes, length: int, _folder: bool) -> int:  # noqa: N802
        self.path = path
        return 1 if len(path) == length else 0

    def CFURLCopyResourcePropertyForKey(self, _url: Any, key: str, number: Any, _error: Any) -> bool:  # noqa: N802
        number._obj.value = self.capacities.get(key)
        return key in self.capacities

    def CFURLSetResourcePropertyForKey(self, _url: Any, key: str, value: Any, _error: Any) -> bool:  # noqa: N802
        self.noted.append((self.path, key, value))
        return self.takes_notes

    def CFNumberGetValue(self, number: Any, _type: int, value: Any) -> bool:  # noqa: N802
        value._obj.value = number.value
        return True

    def CFRelease(self, _object: Any) -> None:  # noqa: N802
        self.released += 1


def load(monkeypatch: pytest.MonkeyPatch, kernel: Kernel, *names: str) -> list[Any]:
    """Return fresh copies of modules with their darwin branches, on the simulated kernel."""
    names_of_select = {"KQ_FILTER_READ": -1, "KQ_FILTER_PROC": -5, "KQ_EV_ADD": 1, "KQ_EV_DELETE": 2}
    fake_select = SimpleNamespace(
        **names_of_select, KQ_EV_ONESHOT=16, KQ_NOTE_EXIT=0x80000000, kevent=Kevent, kqueue=lambda: Kqueue(kernel)
    )
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "psutil", _psutil(kernel))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
        package, _, short = name.rpartition(".")
        monkeypatch.delattr(importlib.import_module(package), short, raising=False)
    monkeypatch.setitem(sys.modules, "select", fake_select)
    modules = [importlib.import_module(name) for name in names]
    monkeypatch.setitem(sys.modules, "select", select)
    table: Any = sys.modules["tasks.system.macos.process_table"]
    table._library = lambda _path: Libraries(kernel)
    table.boot = lambda: "00000000-0000-0000-0000-000000000001"
    for name in MODULES:
        if name in sys.modules and hasattr(sys.modules[name], "os"):
            monkeypatch.setattr(sys.modules[name], "os", _Os(kernel))
    return modules


class _Os:
    """os, with the simulated kernel's processes."""

    def __init__(self, kernel: Kernel) -> None:
        self.kill, self.getpgid, self.getsid = kernel.kill, kernel.group_of, kernel.session_of

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)
