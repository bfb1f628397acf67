"""The process table of Linux: /proc (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path

from state.classes import dataclass


@dataclass(frozen=True)
class ProcStat:
    """The fields of /proc/PID/stat that matter here."""

    state: str
    parent: int
    start: str
    """Clock ticks from boot to its start; no clock setting moves it."""
    cpu_ticks: int
    """Of user and system time."""


def boot() -> str:
    """Return the id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def start(pid: int) -> str | None:
    """Return the start mark of a living process; None for a zombie, or when there is none."""
    stat = _stat(pid)
    return stat.start if stat and stat.state not in "ZX" else None


def stopped(pid: int) -> bool:
    """Return whether a signal or a debugger has stopped the process."""
    stat = _stat(pid)
    return stat is not None and stat.state in "Tt"


def waits(pid: int) -> bool | None:
    """Return whether the process's first thread runs, or waits for a processor or the disk."""
    stat = _stat(pid)
    return stat is not None and stat.state in "RD"


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process since its start; 0 when it is gone."""
    stat = _stat(pid)
    return stat.cpu_ticks / os.sysconf("SC_CLK_TCK") if stat else 0.0


def parent(pid: int) -> int | None:
    """Return the pid of a living process's parent."""
    stat = _stat(pid)
    return stat.parent if stat else None


def pids() -> list[int]:
    """Return the pids of all processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - Path.iterdir is 5 times slower


def environment(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with; {} for another user's."""
    pairs = (entry.partition("=") for entry in _strings(pid, "environ"))
    return {name: value for name, _, value in pairs if name}


def arguments(pid: int) -> list[str]:
    """Return the command line of a process; [] for one that is gone."""
    return _strings(pid, "cmdline")


def resident(pid: int) -> int:
    """Return a process's resident bytes; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def session() -> str:
    """Return the login session that a process may not outlive; Linux has none."""
    return ""


def _stat(pid: int) -> ProcStat | None:
    """Read /proc/PID/stat. The name in brackets may hold spaces and brackets, so count from its end."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    ticks = int(fields[11]) + int(fields[12])
    return ProcStat(state=fields[0], parent=int(fields[1]), start=fields[19], cpu_ticks=ticks)


def _strings(pid: int, name: str) -> list[str]:
    """Return the NUL-terminated strings of a file of the process."""
    try:
        raw = Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return []
    return raw.decode(errors="replace").split("\0")[:-1]
