"""What the machine says of itself: memory, pressure, sleep."""

from __future__ import annotations

import os
import sys
import time
from enum import StrEnum
from pathlib import Path

from state.classes import dataclass
from tasks.system import tool
from tasks.system.process import Identity, members, table

WARN_SHARE = 0.10
CRITICAL_SHARE = 0.05
"""Shares of memory still available below which Linux counts as short; macOS says it itself."""
SHORTEST_SLEEP_S = 2.0
SUSPENDED_S = 20.0
"""A look that comes so much later than it should says that this process stood still."""


class Pressure(StrEnum):
    """How short of memory the machine is."""

    NORMAL = "normal"
    WARN = "warn"
    CRITICAL = "critical"


@dataclass(frozen=True)
class SystemMemory:
    """The machine's memory, in bytes."""

    total: int
    available: int
    wired: int | None
    """What macOS cannot move or compress, the GPU's share among it; None elsewhere."""
    swap_used: int
    pressure: Pressure


def memory() -> SystemMemory:
    """Look at the machine's memory."""
    import psutil

    virtual, swap = psutil.virtual_memory(), psutil.swap_memory()
    level = _macos_pressure() if sys.platform == "darwin" else by_share(virtual.available, virtual.total)
    return SystemMemory(virtual.total, virtual.available, getattr(virtual, "wired", None), swap.used, level)


def by_share(available: int, total: int) -> Pressure:
    """Judge by the share of memory (bytes) that is still available."""
    if available < CRITICAL_SHARE * total:
        return Pressure.CRITICAL
    return Pressure.WARN if available < WARN_SHARE * total else Pressure.NORMAL


def _macos_pressure() -> Pressure:
    """Ask the kernel, as Activity Monitor does."""
    return parse_pressure(tool.run("sysctl", "-n", "kern.memorystatus_vm_pressure_level", timeout_s=5.0).stdout)


def parse_pressure(text: str) -> Pressure:
    """Read kern.memorystatus_vm_pressure_level: 1 normal, 2 warning, 4 critical (XNU sys/event.h)."""
    return {"2": Pressure.WARN, "4": Pressure.CRITICAL}.get(text.strip(), Pressure.NORMAL)


def resident(identity: Identity) -> int:
    """Return the resident bytes of a service: its process and all others of its group; 0 when it is dead."""
    return sum(table.resident(member.pid) for member in members(identity))


def oom_kills() -> int:
    """Count what the kernel killed for memory since boot; 0 where it does not say (macOS)."""
    try:
        lines = Path("/proc/vmstat").read_text("ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


class OomCounter:
    """Notices that the kernel killed something for memory a moment ago."""

    def __init__(self) -> None:
        self._count = oom_kills()
        self._at: float | None = None

    def look(self) -> None:
        """Compare with the last look; meant to be called every few seconds."""
        count = oom_kills()
        if count > self._count:
            self._at = time.monotonic()
        self._count = count

    def lately(self, within_s: float = 10.0) -> bool:
        """Return whether it happened within the last seconds."""
        self.look()
        return self._at is not None and time.monotonic() - self._at <= within_s


def asleep_s() -> float:
    """Return the seconds this machine has slept since it was started; no clock setting changes it."""
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC_RAW) - time.clock_gettime(time.CLOCK_UPTIME_RAW)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class SleepClock:
    """Notices that the machine was asleep between two looks, or that all of mlxq was suspended.

    A virtual machine that is paused, or a container that is frozen, stands still while its clock runs.
    """

    def __init__(self) -> None:
        self._slept = asleep_s()
        self._looked_at: float | None = None
        self.woke_at: float | None = None
        """Monotonic seconds of the look that noticed it; None when it has not slept since we began."""

    def look(self, slept: float, now: float, every_s: float = 0.0) -> bool:
        """Take a look: `slept` from `asleep_s()`, `now` monotonic. True when it slept since the last one.

        `every_s`: how far looks are apart while nothing is suspended, in seconds.
        """
        suspended = self._looked_at is not None and now - self._looked_at > every_s + SUSPENDED_S
        woke = slept - self._slept > SHORTEST_SLEEP_S or suspended
        self._slept, self._looked_at = slept, now
        if woke:
            self.woke_at = now
        return woke


def stay_awake_argv(worker_pid: int, platform: str = sys.platform) -> list[str] | None:
    """Return the macOS command that holds off idle sleep until the worker ends or the command is stopped; else None."""
    if platform != "darwin":
        return None
    return ["/usr/bin/caffeinate", "-i", "-w", str(worker_pid)]


def crowding() -> float:
    """Return how many times more work than it can do each core has had in the last minute; 1.0 at the least."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
