"""The machine that serves: what the catalog needs to know of it, as one row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal

from state.classes import dataclass

SLACK = 0.9
"""Share of the usable memory that is planned for; predicted peaks were short by up to a tenth."""
PANIC_SHARE = 0.85
"""From this share of all memory on, macOS may panic (Rapid-MLX, ModelSizing.swift)."""
Backend = Literal["metal", "cpu", "cuda"]


@dataclass(frozen=True)
class Machine:
    """One machine. Bytes are bytes; bandwidth is GB/s (1e9 bytes), fp16 TFLOPS."""

    chip: str
    """"M4 Max" on a Mac; the processor's or the card's own name elsewhere."""
    backend: Backend
    os: str
    """"macOS 26.2", "Linux 6.8"."""
    memory_bytes: int
    """All memory; on CUDA that of the card."""
    usable_bytes: int
    """What Metal or the operating system lets the engines use."""
    bandwidth_gbps: float
    bandwidth_source: str
    """Where the figure is from: "table", "measured", or a sentence that says it is a guess."""
    fp16_tflops: float
    gpu_cores: int = 0
    cpu_cores: int = 0
    model_identifier: str = ""
    """hw.model on a Mac, such as Mac16,5."""
    usable_source: str = ""
    """"Metal", "wired limit", "MemTotal", or a sentence that says it is an estimate."""
    wired_limit_bytes: int = 0
    """iogpu.wired_limit_mb as set by the user; 0 is macOS's default."""
    swap_total_bytes: int = 0
    swap_used_bytes: int = 0
    power: str = "unknown"
    """"mains", "battery" or "unknown"."""
    virtual: bool = False
    note: str = ""
    """What a user should know of these figures; empty when all were found."""

    def as_row(self) -> dict[str, Any]:
        """Return the machine as a JSON-able dict."""
        return asdict(self)


def from_row(row: Mapping[str, Any]) -> Machine:
    """Read back what `as_row` gave; keys of another version of mlxq are passed over.

    Raises TypeError when a field without a default is missing.
    """
    names = {field.name for field in fields(Machine)}
    return Machine(**{key: value for key, value in row.items() if key in names})


def budget(machine: Machine) -> int:
    """Return the bytes to plan for: nine tenths of what Metal allows, well away from where macOS panics."""
    return planned(machine.usable_bytes, machine.memory_bytes)


def planned(usable_bytes: int, memory_bytes: int, percent: int | None = None) -> int:
    """Return the bytes to plan for on a machine with so much memory, of which the engines may use so much.

    `percent` is the share of all memory that the user named; it never raises what the machine can give.
    """
    most = int(SLACK * min(usable_bytes, PANIC_SHARE * memory_bytes))
    return most if percent is None else min(memory_bytes * percent // 100, most)
