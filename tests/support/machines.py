"""Macs as they were sold, for tests of the catalog."""

from __future__ import annotations

from catalog import chips
from catalog.load import entries
from catalog.machine import Machine

KNOWN = entries()
GIB = 1 << 30


def mac(one: chips.Bin, gib: int) -> Machine:
    """Build a Mac of one bin with so much memory and macOS's usual share of it for the GPU."""
    size = gib * GIB
    share = 0.667 if gib <= 36 else 0.75 if gib <= 64 else 0.8
    return Machine(
        one.chip, "metal", "macOS 26", size, int(share * size), one.bandwidth, "table", one.fp16, one.gpu, one.cpu
    )


MACS = [mac(one, gib) for some in chips.bins().values() for one in some for gib in one.memory]


def named(chip: str, gib: int) -> Machine:
    """Give the fullest bin of a chip that was sold with so much memory."""
    return mac([one for one in chips.bins()[chip] if gib in one.memory][-1], gib)
