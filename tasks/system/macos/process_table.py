"""The process table of macOS: psutil, libproc and kqueue.

psutil 7.2.2 raises SystemError when a process ends while its arguments are read (psutil issue 2854, fixed in 8), and
psutil.Error for the rest, so every look catches both. Facts of the kernel are cited from XNU 11417 (macOS 15.4).
"""

from __future__ import annotations

import ctypes
import functools
import select
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import psutil

from tasks.system import tool

assert sys.platform == "darwin"

T = TypeVar("T")
LOST = (psutil.Error, SystemError, OSError)
"""What a look at a process raises that ends, or may not be seen."""
LIBPROC = "/usr/lib/libproc.dylib"


class RusageInfo(ctypes.Structure):
    """XNU's rusage_info_v0 (sys/resource.h); sizes in bytes, times in Mach units."""

    _fields_ = [
        ("uuid", ctypes.c_uint8 * 16),
        ("user_time", ctypes.c_uint64),
        ("system_time", ctypes.c_uint64),
        ("package_idle_wakeups", ctypes.c_uint64),
        ("interrupt_wakeups", ctypes.c_uint64),
        ("pageins", ctypes.c_uint64),
        ("wired_size", ctypes.c_uint64),
        ("resident_size", ctypes.c_uint64),
        ("physical_footprint", ctypes.c_uint64),
        ("start_time", ctypes.c_uint64),
        ("exit_time", ctypes.c_uint64),
    ]


class AuditInfo(ctypes.Structure):
    """XNU's auditinfo_addr (bsm/audit.h)."""

    _fields_ = [
        ("user", ctypes.c_uint32),
        ("mask", ctypes.c_uint32 * 2),
        ("terminal", ctypes.c_uint32 * 6),
        ("session", ctypes.c_int32),
        ("flags", ctypes.c_uint64),
    ]


def boot() -> str:
    """Return the id of this boot; setting the clock does not change it (XNU kern_sysctl.c)."""
    return tool.ensure("sysctl", "-n", "kern.bootsessionuuid", timeout_s=5.0).strip()


def _look(pid: int, question: Callable[[psutil.Process], T], otherwise: T) -> T:
    """Ask psutil about a process; `otherwise` when it is gone or may not be seen."""
    try:
        return question(psutil.Process(pid))
    except LOST:
        return otherwise


def start(pid: int) -> str | None:
    """Return the start mark of a living process; None for a zombie, or when there is none.

    psutil's public create_time moves when the clock is set; its monotonic one (7.1) is the kernel's p_starttime, fixed
    at fork and kept over exec.
    """

    def mark_of(process: Any) -> str | None:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return repr(process._proc.create_time(monotonic=True))  # noqa: SLF001 - see above

    return _look(pid, mark_of, None)


def stopped(pid: int) -> bool:
    """Return whether a signal or a debugger has stopped the process."""
    return _look(pid, lambda process: process.status() == psutil.STATUS_STOPPED, otherwise=False)


def waits(pid: int) -> bool | None:  # noqa: ARG001 - as on Linux
    """Return None: every process that was not stopped has the state SRUN (XNU bsd/kern/kern_fork.c)."""
    return None


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process since its start; 0 when it is gone."""
    return _look(pid, lambda process: sum(process.cpu_times()[:2]), 0.0)


def parent(pid: int) -> int | None:
    """Return the pid of a living process's parent."""
    return _look(pid, lambda process: process.ppid(), None)


def pids() -> list[int]:
    """Return the pids of all processes."""
    return psutil.pids()


def environment(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with.

    {} for another user's, and for programs of Apple's such as /bin/sh, whose environment the kernel withholds
    (kern_sysctl.c, cs_restricted).
    """
    return _look(pid, lambda process: process.environ(), {})


def arguments(pid: int) -> list[str]:
    """Return the command line of a process, also of Apple's programs; [] for one that is gone or another user's."""
    return _look(pid, lambda process: process.cmdline(), [])


def resident(pid: int) -> int:
    """Return a process's physical footprint in bytes, as Activity Monitor and jetsam count it; 0 when it is gone.

    The resident size counts neither compressed pages nor what the GPU holds: 46 GB for 109 (mlx issue 3896). The same
    user may read it (proc_info.c).
    """
    usage = RusageInfo()
    if _library(LIBPROC).proc_pid_rusage(pid, 0, ctypes.byref(usage)) == 0:
        return usage.physical_footprint
    return resident_set(pid)


def resident_set(pid: int) -> int:
    """Return a process's resident bytes, without what is compressed or on the GPU; 0 when it is gone."""
    return _look(pid, lambda process: process.memory_info().rss, 0)


def session() -> str:
    """Return the id of this process's audit session, which a log-out ends; "" when the kernel does not say.

    A process that outlives its session can compile no Metal kernel any more (codex issue 36696).
    """
    audit = AuditInfo()
    code = _library(None).getaudit_addr(ctypes.byref(audit), ctypes.sizeof(audit))
    return str(audit.session) if code == 0 else ""


@functools.cache
def _library(path: str | None) -> Any:
    return ctypes.CDLL(path)


def exit_event(pid: int, flags: int) -> select.kevent:
    """Return the kqueue filter that fires when `pid` exits; macOS allows it for processes that are no children."""
    return select.kevent(pid, select.KQ_FILTER_PROC, flags, select.KQ_NOTE_EXIT)


def await_exit(pid: int, alive: Callable[[], bool], limit_s: float) -> bool:
    """Wait until the process that is `alive` exits, `limit_s` seconds at most; return whether it has.

    Adding the filter fails with ESRCH for a process that is exiting (kern_event.c), so no exit falls between.
    """
    queue = select.kqueue()
    try:
        queue.control([exit_event(pid, select.KQ_EV_ADD | select.KQ_EV_ONESHOT)], 0)
        return not alive() or bool(queue.control(None, 1, max(0.0, limit_s)))
    except ProcessLookupError:
        return True
    finally:
        queue.close()
