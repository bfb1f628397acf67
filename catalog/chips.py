"""The table of chips: which bin of which chip this is, and what it can do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, cast

from state.classes import dataclass

GIB = 1 << 30
SOURCE = Path(__file__).parent / "chips.yaml"
COMPILED = Path(__file__).parent / "chips.json"
"""The same, made by `python -m catalog.compile`."""
_SIZES = ("Ultra", "Max", "Pro", "")
_OLDEST = "M1"


@dataclass(frozen=True)
class Bin:
    """One variant of a chip: bandwidth in GB/s, fp16 TFLOPS, the memory sizes sold in GiB."""

    chip: str
    gpu: int
    cpu: int
    bandwidth: float
    fp16: float
    memory: tuple[int, ...]
    accelerated: bool
    guess: str = ""
    """Why these figures are only a cautious guess; empty when the chip is known."""


@cache
def table() -> dict[str, Any]:
    """Return what chips.yaml says, from the JSON that is made of it: to import yaml takes 15 ms."""
    return json.loads(COMPILED.read_text(encoding="utf-8"))


def source() -> dict[str, Any]:
    """Return what chips.yaml says, from itself."""
    import yaml

    with SOURCE.open(encoding="utf-8") as file:
        return cast("dict[str, Any]", yaml.load(file, Loader=yaml.CSafeLoader))


@cache
def bins() -> dict[str, tuple[Bin, ...]]:
    """Return every Apple chip with its bins, oldest chip first."""
    return {chip: tuple(_bin(chip, entry, row) for row in entry["bins"]) for chip, entry in table()["apple"].items()}


def _bin(chip: str, entry: dict[str, Any], row: dict[str, Any]) -> Bin:
    accelerated = bool(entry.get("neural_accelerators"))
    return Bin(chip, row["gpu"], row["cpu"], row["bandwidth"], row["fp16"], tuple(row["memory"]), accelerated)


def chip_name(brand: str) -> str:
    """Turn machdep.cpu.brand_string into the name used here: "Apple M2 Pro (Virtual)" is "M2 Pro"."""
    return re.sub(r"\s*\(.*?\)", "", brand).removeprefix("Apple").strip()


def identify(brand: str, gpu_cores: int = 0, cpu_cores: int = 0, memory_bytes: int = 0) -> Bin:
    """Say which bin of which Apple chip this is; 0 stands for not known.

    Cores of the GPU tell most bins apart, then cores of the CPU, then memory (the M5 Max and the M6 bins
    differ in nothing else). Among bins that still agree the slowest is taken. A chip that is not in the table
    gets the slowest bin of its size in the newest generation, marked as a guess.
    """
    name = chip_name(brand)
    known_bins = bins().get(name)
    if known_bins is None:
        return _stranger(name)
    size = round(memory_bytes / GIB)
    candidates = list(known_bins)
    for agrees in (_has_gpu(gpu_cores), _has_cpu(cpu_cores), _has_memory(size)):
        candidates = [candidate for candidate in candidates if agrees(candidate)] or candidates
    return _slowest(candidates)


def _has_gpu(cores: int) -> Callable[[Bin], bool]:
    return lambda candidate: candidate.gpu == cores


def _has_cpu(cores: int) -> Callable[[Bin], bool]:
    return lambda candidate: candidate.cpu == cores


def _has_memory(size: int) -> Callable[[Bin], bool]:
    return lambda candidate: size in candidate.memory


def _slowest(some: list[Bin]) -> Bin:
    return min(some, key=lambda candidate: (candidate.bandwidth, candidate.fp16))


def _stranger(name: str) -> Bin:
    """Return cautious figures for an Apple chip this table does not know."""
    nearest = _OLDEST
    if re.match(r"M\d+( |$)", name):
        size = next(size for size in _SIZES if name.endswith(size))
        nearest = [chip for chip in bins() if chip.partition(" ")[2] == size][-1]
    like = _slowest(list(bins()[nearest]))
    guess = f"{name or 'This chip'} is not in the table of chips; the figures are those of the slowest {nearest}."
    return Bin(name, like.gpu, like.cpu, like.bandwidth, like.fp16, like.memory, like.accelerated, guess)


def nvidia(name: str) -> tuple[float, float] | None:
    """Return bandwidth (GB/s) and dense fp16 TFLOPS of an NVIDIA card by nvidia-smi's name, or None."""
    for part, row in table()["nvidia"].items():
        if part.lower() in name.lower():
            return float(row["bandwidth"]), float(row["fp16"])
    return None
