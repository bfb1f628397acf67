"""What machine this is.

`detect` runs a few small programs and keeps what they print; `machine` reads the figures out of those texts and
touches nothing. So a recorded Mac is read by the same code as this one: see `parse_fixture`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import math
import re
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from typing import Any, cast

from catalog import chips
from catalog.machine import Machine
from state.classes import dataclass
from tasks.system import tool

Recording = Mapping[str, str]
"""What each program printed, by the command line."""

SYSCTL = (
    "sysctl machdep.cpu.brand_string hw.memsize hw.model hw.ncpu hw.perflevel0.logicalcpu_max "
    "hw.perflevel1.logicalcpu_max hw.perflevel2.logicalcpu_max iogpu.wired_limit_mb vm.swapusage "
    "kern.osproductversion kern.hv_vmm_present"
)
IOREG = "ioreg -rc AGXAccelerator -d 1"
POWER = "pmset -g batt"
UNAME = "uname -sr"
MEMINFO = "cat /proc/meminfo"
CGROUP = "cat /sys/fs/cgroup/memory.max"
LSCPU = "lscpu"
NVIDIA = "nvidia-smi --query-gpu=name,memory.total --format=csv,noheader,nounits"
METAL = "mlx device_info"
COPY = "copy of memory, GB/s"
RECORDED_TOO = ("sw_vers", "pmset -g", "launchctl managername", "uname -sr")
"""What no figure is read from today, and a reader of the recording wants to know."""
MAC, LINUX = (SYSCTL, IOREG, POWER), (UNAME, MEMINFO, CGROUP, LSCPU, NVIDIA)
ASK_MLX = (
    "import json, mlx.core as mx; "
    "print(json.dumps({'device': mx.default_device().type.name, **mx.device_info()}, default=str))"
)
PROGRAM_WAIT_S, MLX_WAIT_S = 5.0, 30.0
COPY_BYTES, COPY_FOR_S = 64_000_000, 0.5

WITHOUT_METAL = ((36, 0.667), (64, 0.75), (math.inf, 0.8))
"""Up to this many GiB, the share of memory macOS lets the GPU use: the lowest measured on machines of that size
(10.67 of 16, 22.9 GB of 32, 48 of 64, 72 of 96 GiB). Newer macOS gives more; Metal itself is asked first."""
LINUX_SHARE = 0.8
"""What a server may plan with on Linux; the rest is the system's and the page cache's."""
CARD_SHARE = 0.9
"""What one process may plan with on an NVIDIA card; the driver keeps up to a tenth."""
CPU_CORE_TFLOPS = 0.05
"""A core with 256-bit vectors at 3 GHz in fp32; no prediction rests on it."""
SMALLEST = 64 << 20
"""Bytes below which a figure is no machine's memory but a torn text."""
UNKNOWN_BANDWIDTH, UNKNOWN_TFLOPS = 40.0, 1.0
"""A slow desktop with two channels of DDR4."""


@dataclass(frozen=True)
class Usable:
    """Bytes the engines may use, and who says so."""

    bytes: int
    source: str


def detect() -> Machine:
    """Look at this machine; takes about two seconds, most of it a child process that asks MLX."""
    if sys.platform == "darwin":
        return machine({command: _printed(command.split()) for command in MAC} | {METAL: _ask_mlx()})
    recording = {command: _printed(command.split()) for command in LINUX} | {METAL: _ask_mlx()}
    return machine(recording | {COPY: f"{copy_speed():.1f}"})


def record() -> str:
    """Return what this machine's programs print, as `parse_fixture` reads it; it names no user, host or path."""
    commands = (*MAC, *RECORDED_TOO) if sys.platform == "darwin" else LINUX
    printed = {command: _printed(command.split()) for command in commands} | {METAL: _ask_mlx()}
    if sys.platform != "darwin":
        printed[COPY] = f"{copy_speed():.1f}"
    parts = [f"$ {command}\n{text.strip()}\n" for command, text in printed.items() if text.strip()]
    return "\n".join(["Recorded by `mlxq doctor --self-test --record`.\n", *parts])


def parse_fixture(text: str) -> Machine:
    """Return the machine a recording describes.

    A recording is made of parts, each a line `$ command` and under it what that command printed; lines before the
    first are remarks. Commands are those of this module; one that is missing is treated as silent. Raises
    ValueError when there is neither a `sysctl` nor a `/proc/meminfo` to read.
    """
    parts = re.split(r"^\$ (.*)$", text, flags=re.MULTILINE)
    recording = {_known_command(command): printed for command, printed in zip(parts[1::2], parts[2::2], strict=True)}
    if SYSCTL not in recording and MEMINFO not in recording:
        raise ValueError("This is no recording of a machine: it has neither `$ sysctl` nor `$ cat /proc/meminfo`.")
    return machine(recording)


def _known_command(line: str) -> str:
    """Return the full command a shortened one such as `sysctl` stands for."""
    commands = (*MAC, *LINUX, METAL, COPY)
    return next((command for command in commands if command.startswith(line.strip())), line.strip())


def machine(recording: Recording) -> Machine:
    """Read the machine out of what the programs printed. Raises ValueError when memory cannot be read at all."""
    if recording.get(SYSCTL, "").strip():
        return _mac(recording)
    return _card(recording) or _linux(recording)


def _mac(recording: Recording) -> Machine:
    facts = pairs(recording[SYSCTL])
    brand, size = facts.get("machdep.cpu.brand_string", ""), _number(facts.get("hw.memsize"))
    if size < SMALLEST:
        raise ValueError("hw.memsize is missing or no size of a memory.")
    cpu, gpu = _number(facts.get("hw.ncpu")), gpu_cores(recording.get(IOREG, ""))
    chip = chips.identify(brand, gpu, cpu, size)
    metal = mlx_info(recording.get(METAL, ""))
    limit = _number(facts.get("iogpu.wired_limit_mb")) << 20
    usable = _metal_usable(metal, limit, size)
    swap_total, swap_used = swap(facts.get("vm.swapusage", ""))
    return Machine(
        chip=chip.chip or "unknown",
        backend="cpu" if metal.get("device") == "cpu" else "metal",
        os=f"macOS {facts.get('kern.osproductversion', '')}".strip(),
        memory_bytes=size,
        usable_bytes=usable.bytes,
        usable_source=usable.source,
        bandwidth_gbps=chip.bandwidth,
        bandwidth_source="cautious guess" if chip.guess else "table",
        fp16_tflops=chip.fp16,
        gpu_cores=gpu or chip.gpu,
        cpu_cores=cpu or chip.cpu,
        model_identifier=facts.get("hw.model", ""),
        wired_limit_bytes=limit,
        swap_total_bytes=swap_total,
        swap_used_bytes=swap_used,
        power=power(recording.get(POWER, "")),
        virtual="(Virtual)" in brand or facts.get("kern.hv_vmm_present") == "1",
        note=chip.guess,
    )


def _metal_usable(metal: Mapping[str, Any], limit: int, size: int) -> Usable:
    """Ask Metal before the user's limit, and that before a rule of thumb: Metal's figure already follows it."""
    reported = int(metal.get("max_recommended_working_set_size") or 0)
    if reported >= SMALLEST:
        return Usable(min(reported, size), "Metal")
    if limit:
        return Usable(min(limit, size), "wired limit")
    share = next(share for top, share in WITHOUT_METAL if size <= top * chips.GIB)
    return Usable(int(share * size), "estimate: Metal was not asked")


def _linux(recording: Recording) -> Machine:
    facts, cpu = pairs(recording.get(MEMINFO, "")), pairs(recording.get(LSCPU, ""))
    size = _number(facts.get("MemTotal")) << 10
    if size < SMALLEST:
        raise ValueError("MemTotal is missing or no size of a memory.")
    ceiling = max(_number(recording.get(CGROUP)) or size, SMALLEST)
    cores = _number(cpu.get("CPU(s)")) or 1
    measured = float(recording.get(COPY, "").strip() or 0)
    return Machine(
        chip=cpu.get("Model name", "CPU"),
        backend="cpu",
        os=recording.get(UNAME, "Linux").strip(),
        memory_bytes=min(size, ceiling),
        usable_bytes=int(LINUX_SHARE * min(size, ceiling)),
        usable_source="MemTotal" if ceiling >= size else "cgroup",
        bandwidth_gbps=measured or UNKNOWN_BANDWIDTH,
        bandwidth_source="measured" if measured else "cautious guess",
        fp16_tflops=CPU_CORE_TFLOPS * cores,
        cpu_cores=cores,
        swap_total_bytes=_number(facts.get("SwapTotal")) << 10,
        swap_used_bytes=(_number(facts.get("SwapTotal")) - _number(facts.get("SwapFree"))) << 10,
        virtual="Hypervisor vendor" in cpu,
    )


def _card(recording: Recording) -> Machine | None:
    """Return the first NVIDIA card, when MLX itself would run on it. Experimental."""
    name, _, megabytes = recording.get(NVIDIA, "").strip().partition("\n")[0].rpartition(",")
    if not name or mlx_info(recording.get(METAL, "")).get("device") != "gpu":
        return None
    size = _number(megabytes) << 20
    if size < SMALLEST:
        return None
    figures = chips.nvidia(name)
    bandwidth, tflops = figures or (UNKNOWN_BANDWIDTH * 10, UNKNOWN_TFLOPS * 10)
    return Machine(
        chip=name.strip(),
        backend="cuda",
        os=recording.get(UNAME, "Linux").strip(),
        memory_bytes=size,
        usable_bytes=int(CARD_SHARE * size),
        usable_source="nvidia-smi",
        bandwidth_gbps=bandwidth,
        bandwidth_source="table" if figures else "cautious guess",
        fp16_tflops=tflops,
        cpu_cores=_number(pairs(recording.get(LSCPU, "")).get("CPU(s)")),
        note="NVIDIA is experimental."
        if figures
        else "NVIDIA is experimental, and this card is not in the table; the figures are a cautious guess.",
    )


def pairs(text: str) -> dict[str, str]:
    """Read `key: value` lines, as sysctl, lscpu and /proc/meminfo print them."""
    lines = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in lines}


def _number(text: str | None) -> int:
    """Return the first whole number of a text; 0 when there is none."""
    match = re.search(r"\d+", text or "")
    return int(match[0]) if match else 0


def gpu_cores(text: str) -> int:
    """Read the GPU's cores from ioreg, or from the text of system_profiler SPDisplaysDataType; 0 if neither says."""
    match = re.search(r'"gpu-core-count"\s*=\s*(\d+)', text) or re.search(r"Total Number of Cores:\s*(\d+)", text)
    return int(match[1]) if match else 0


def swap(text: str) -> tuple[int, int]:
    """Read vm.swapusage, `total = 2048.00M  used = 1032.25M ...`, in bytes; the locale may set a decimal comma."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = dict(re.findall(r"(total|used) = ([\d.]+[KMG])", text.replace(",", ".")))
    total, used = (sizes.get(name, "0K") for name in ("total", "used"))
    return int(float(total[:-1]) * units[total[-1]]), int(float(used[:-1]) * units[used[-1]])


def power(text: str) -> str:
    """Read pmset -g batt: "mains", "battery" or "unknown"."""
    if "'AC Power'" in text:
        return "mains"
    return "battery" if "'Battery Power'" in text else "unknown"


def mlx_info(text: str) -> dict[str, Any]:
    """Read what the MLX child printed; empty when it said nothing."""
    match = re.search(r"\{.*\}", text, re.DOTALL)
    try:
        return cast("dict[str, Any]", json.loads(match[0])) if match else {}
    except json.JSONDecodeError:
        return {}


def copy_speed() -> float:
    """Measure how fast all cores together copy memory, in GB/s read plus written; takes about half a second."""
    threads = cpu_count() or 1
    blocks = [
        (ctypes.create_string_buffer(COPY_BYTES), ctypes.create_string_buffer(COPY_BYTES)) for _ in range(threads)
    ]
    best, deadline = 0.0, time.monotonic() + COPY_FOR_S
    with ThreadPoolExecutor(threads) as pool:
        while not best or time.monotonic() < deadline:
            start = time.perf_counter()
            list(pool.map(_copy, blocks))
            best = max(best, 2 * threads * COPY_BYTES / (time.perf_counter() - start) / 1e9)
    return best


def _copy(block: tuple[Any, Any]) -> None:
    """Copy one block; ctypes lets the other threads run meanwhile."""
    ctypes.memmove(block[0], block[1], COPY_BYTES)


def _ask_mlx() -> str:
    """Ask MLX for its device in a child, so that the worker itself never loads MLX."""
    if importlib.util.find_spec("mlx") is None:
        return ""
    return _printed([sys.executable, "-P", "-c", ASK_MLX], MLX_WAIT_S)


def _printed(argv: list[str], wait_s: float = PROGRAM_WAIT_S) -> str:
    """Return what a program printed, also when it failed half way; nothing when it is missing or hangs."""
    return tool.run(*argv, timeout_s=wait_s).stdout
