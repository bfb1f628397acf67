"""Bytes, and lists of names, as people read them.

Bytes are counted as macOS counts: memory in powers of 1024, disks and downloads in powers of 1000.

A Mac sold with 128 GB has 128 * 2**30 bytes, and Activity Monitor calls that 128 GB; the Finder and the Hub call 10**9
bytes of a file 1 GB. Every size that mlxq shows is written here.
"""

from __future__ import annotations

from collections.abc import Iterable


def memory(count: float | None) -> str:
    """Write bytes of memory; a dash where it is not known."""
    return _written(count, 1024)


def apart(first: float, second: float) -> tuple[str, str]:
    """Write two sizes of memory in the unit in which they differ: MB where both would be the same GB."""
    texts = memory(first), memory(second)
    if texts[0] != texts[1] or first == second:
        return texts
    return f"{first / 1024**2:.0f} MB", f"{second / 1024**2:.0f} MB"


def files(count: float | None) -> str:
    """Write bytes that are on a disk or come over the network; a dash where it is not known."""
    return _written(count, 1000)


def gigabytes_of_files(count: float) -> str:
    """Write bytes as `files` does, all of them in GB, for a column whose head names the unit."""
    return f"{count / 1000**3:.1f}"


def _written(count: float | None, step: int) -> str:
    """Write a size in the unit that leaves it fewer than `step`; only gigabytes need a decimal."""
    if count is None:
        return "-"
    for unit in ("B", "KB", "MB"):
        if round(count) < step:
            return f"{count:.0f} {unit}"
        count /= step
    return f"{count:.1f}".removesuffix(".0") + " GB"


def listed(names: Iterable[str]) -> str:
    """Return names as a sentence has them: `a`, `a and b`, `a, b and c`; empty for none."""
    *before, last = [*names] or [""]
    return " and ".join(filter(None, (", ".join(before), last)))
