"""What `mlxq doctor` makes of what it saw. Pure: every figure is handed in, nothing is touched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from catalog import units

Version = tuple[int, ...]

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)
WAL_RESET_FROM, WAL_RESET_TO = (3, 7, 0), (3, 51, 2)
"""SQLite versions in which two checkpoints at once can corrupt a WAL database (sqlite.org/wal.html#walresetbug)."""
BAD_VERSIONS: Mapping[str, Mapping[str, str]] = {
    "litellm": dict.fromkeys(("1.82.7", "1.82.8"), "a malicious upload that steals keys (OSV MAL-2026-2144)"),
}
BAD_PTH = {"litellm_init.pth": "the thief that LiteLLM 1.82.8 brought (OSV MAL-2026-2144)"}
KNOWN_PTH = re.compile(r"(distutils-precedence|_virtualenv|a1_coverage|__editable__[\w.-]*|[\w.-]*-nspkg)\.pth")
"""Files that run code at every start of Python and are known: setuptools, virtualenv, coverage, editable installs."""
ROOM_BYTES = 5_000_000_000
"""Disk below which no pull is worth beginning; the floor that pulls keep is below it."""
FULL_BYTES = 500_000_000
"""Disk below which the ledger itself is in danger."""
WIRED_SHARE = 0.92
"""A wired limit above this share of memory leaves macOS too little to live on."""
CLOCK_S = 120.0
"""A clock this far off breaks TLS and the times of jobs."""


class Grade(StrEnum):
    """How something is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report."""

    area: str
    grade: Grade
    text: str
    hint: str | None = None
    """The command that mends it."""
    fix: str | None = None
    """What `--fix` does about it; None when it can do nothing."""


def passed(area: str, text: str) -> Finding:
    """Give a finding that is as it should be."""
    return Finding(area, Grade.OK, text)


def warning(area: str, text: str, hint: str | None = None, mend: str | None = None) -> Finding:
    """Give a warning."""
    return Finding(area, Grade.WARN, text, hint, mend)


def error(area: str, text: str, hint: str | None = None, mend: str | None = None) -> Finding:
    """Give something that keeps mlxq from working."""
    return Finding(area, Grade.FAIL, text, hint, mend)


def python(version: Version, platform: str, machine: str) -> Finding:
    """Judge the interpreter: `platform` as sys.platform, `machine` as platform.machine()."""
    text = f"Python {dotted(version)} for {machine}"
    if not OLDEST_PYTHON <= version[:2] <= NEWEST_PYTHON:
        wanted = f"{dotted(OLDEST_PYTHON)} to {dotted(NEWEST_PYTHON)}"
        return error("python", f"{text}; mlxq needs {wanted}", f"uv tool install --python {dotted(NEWEST_PYTHON)} mlxq")
    if platform == "darwin" and machine != "arm64":
        return error("python", f"{text}: it runs under Rosetta, where MLX does not work", "uv python install 3.13")
    return passed("python", text)


def sqlite(version: Version) -> Finding:
    """Judge the SQLite that Python was built with."""
    text = f"SQLite {dotted(version)}"
    if WAL_RESET_FROM <= version <= WAL_RESET_TO:
        return warning(
            "sqlite",
            f"{text} has the WAL-reset bug (fixed in 3.51.3); mlxq lets one connection alone checkpoint, "
            "which is what the bug needs two of",
        )
    return passed("sqlite", text)


def back_end(platform: str, said: Mapping[str, object]) -> Finding:
    """Judge what MLX said of its default device; nothing when it could not be imported."""
    if not said:
        return error("mlx", "MLX cannot be imported", "uv tool install --reinstall mlxq")
    device, name = str(said.get("device", "")), str(said.get("device_name", ""))
    text = f"MLX runs on the {device.upper()}" + (f" ({name})" if name else "")
    if platform == "darwin" and device != "gpu":
        return error("mlx", f"{text}: Metal is not there; in a virtual machine it never is", "mlxq status --json")
    if platform != "darwin" and device == "cpu":
        return passed("mlx", f"{text}: slow, and what Linux without a card has")
    return passed("mlx", text)


def hub(endpoint: str, status: int | None, *, token: bool, offline: bool) -> Finding:
    """Judge an answer of the Hub to "who am I": its HTTP status, None when there was none."""
    if offline:
        return warning("hub", "HF_HUB_OFFLINE is set: nothing is pulled from the Hub", "unset HF_HUB_OFFLINE")
    if status is None:
        return warning("hub", f"{endpoint} does not answer: what is here serves, nothing new is pulled")
    if status in {401, 403} and token:
        return warning("hub", f"{endpoint} answers and refuses your token ({status})", "hf auth login")
    return passed("hub", f"{endpoint} answers" + (", your token is there" if token else "; no token, for open models"))


def disk(folder: str, free_bytes: int) -> Finding:
    """Judge the room on a disk."""
    text = f"{units.files(free_bytes)} free for {folder}"
    if free_bytes < FULL_BYTES:
        return error("disk", f"{text}: the job database may stop", "mlxq models")
    if free_bytes < ROOM_BYTES:
        return warning("disk", f"{text}: too little for most models", "mlxq models")
    return passed("disk", text)


def memory(total_bytes: int, available_bytes: int, pressure: str, swap_bytes: int) -> Finding:
    """Judge the memory; `pressure` as tasks.system.memory says it."""
    free, total, swapped = units.memory(available_bytes), units.memory(total_bytes), units.memory(swap_bytes)
    text = f"{free} of {total} memory free, {swapped} swapped"
    if pressure == "normal":
        return passed("memory", text)
    return warning("memory", f"{text}: the machine is short of it ({pressure})", "mlxq status")


def wired(total_bytes: int, limit_bytes: int, usable_bytes: int, stack_bytes: int) -> Finding | None:
    """Judge macOS's limit on what the GPU may hold; None where there is nothing to say. Bytes; 0 is no limit."""
    share = limit_bytes / total_bytes if total_bytes else 0.0
    if share > WIRED_SHARE:
        return warning(
            "memory",
            f"iogpu.wired_limit_mb gives the GPU {share:.0%} of memory: macOS may freeze",
            f"sudo sysctl iogpu.wired_limit_mb={int(total_bytes * 0.8) >> 20}",
        )
    if usable_bytes and stack_bytes > usable_bytes:
        return warning(
            "memory",
            f"the stack needs {units.memory(stack_bytes)}, the GPU may hold {units.memory(usable_bytes)}",
            "mlxq setup",
        )
    return passed("memory", f"wired limit {units.memory(limit_bytes)}") if limit_bytes else None


def parse_pmset(text: str) -> dict[str, int]:
    """Read the settings in use from `pmset -g`: ` sleep  1 (sleep prevented by caffeinate)` is sleep, 1 minute."""
    _, _, used = text.partition("Currently in use:")
    found = re.findall(r"^\s+([\w ]+?)\s+(\d+)\b", used or text, re.MULTILINE)
    return {name: int(value) for name, value in found}


def power(settings: Mapping[str, int], source: str) -> list[Finding]:
    """Judge sleep and power: `settings` of parse_pmset, `source` mains, battery or unknown."""
    if not settings:
        return []
    found: list[Finding] = []
    if minutes := settings.get("sleep", 0):
        found.append(
            warning("power", f"the Mac sleeps after {minutes} min, and serves nothing then", "sudo pmset -a sleep 0")
        )
    if settings.get("autorestart") == 0:
        found.append(warning("power", "the Mac stays off after a power cut", "sudo pmset -a autorestart 1"))
    if settings.get("lowpowermode") == 1 or settings.get("powermode") == 1:
        found.append(warning("power", "low power mode halves the speed", "sudo pmset -a lowpowermode 0"))
    if source == "battery":
        found.append(warning("power", "runs on battery"))
    return found or [passed("power", "never sleeps by itself, comes back after a power cut")]


def port(name: str, number: int, holder: str | None, *, ours: bool) -> Finding:
    """Judge a port: `holder` names who listens there, None for nobody."""
    if holder is None:
        return passed("ports", f"{number} is free for {name}")
    if ours:
        return passed("ports", f"{number} is held by {name}")
    setting = "litellm-port" if name == "gateway" else "page-port" if name == "page" else "tier-port-base"
    return error("ports", f"{number}, which {name} needs, is held by {holder}", f"mlxq config set {setting} PORT")


def worker(pulse: str, pid: int | None, *, services: bool) -> Finding:
    """Judge the worker: `pulse` as tasks.worker_status says it, `services`: whether any service shall run."""
    if pulse == "alive":
        return passed("worker", f"the worker lives (pid {pid})")
    if pulse == "hung":
        return error("worker", f"the worker (pid {pid}) lives and does nothing", f"kill -9 {pid} && mlxq up")
    if services:
        return warning("worker", "no worker lives: nobody watches over the services", "mlxq up")
    return passed("worker", "no worker lives, and none is needed")


def unit(*, installed: bool, loaded: bool, path: str, says: str) -> Finding:
    """Judge the unit of launchd or systemd."""
    if installed and not loaded:
        return warning("service", f"{path} is there and not running ({says})", "mlxq install")
    if installed:
        return passed("service", f"{path} keeps the worker alive")
    return warning("service", "nothing starts the worker after a reboot", "mlxq install")


def clock(skew_s: float | None) -> Finding | None:
    """Judge this machine's clock against the Hub's, in seconds; None where nobody told the time."""
    if skew_s is None:
        return None
    if abs(skew_s) <= CLOCK_S:
        return passed("clock", "the clock agrees with the Hub's")
    way = "fast" if skew_s > 0 else "slow"
    return warning("clock", f"the clock is {abs(skew_s):.0f} s {way}: downloads and times of jobs suffer")


def packages(versions: Mapping[str, str]) -> list[Finding]:
    """Judge installed versions by name."""
    wrong = [
        error("packages", f"{name} {version} is {BAD_VERSIONS[name][version]}", "uv tool install --reinstall mlxq")
        for name, version in versions.items()
        if version in BAD_VERSIONS.get(name, {})
    ]
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    return wrong or [passed("packages", told)]


def start_files(files: Mapping[str, str]) -> list[Finding]:
    """Judge the .pth files of site-packages, name -> text: their import lines run at every start of Python."""
    found: list[Finding] = []
    for name, text in sorted(files.items()):
        runs = any(line.startswith(("import ", "import\t")) for line in text.splitlines())
        if name in BAD_PTH:
            found.append(error("packages", f"{name} is {BAD_PTH[name]}", "uv tool install --reinstall mlxq"))
        elif runs and not KNOWN_PTH.fullmatch(name):
            found.append(warning("packages", f"{name} runs code at every start of Python, and is not known"))
    return found


def modes(seen: Sequence[tuple[str, int]]) -> list[Finding]:
    """Judge who may look into the home: (path, mode bits) of what is there."""
    open_ones = [(path, mode) for path, mode in seen if mode & 0o077]
    if not open_ones:
        return [passed("home", "only you can look into the home")]
    return [
        error("home", f"{path} is open to others (mode {mode:04o})", "mlxq doctor --fix", mend="modes")
        for path, mode in open_ones
    ]


def dotted(version: Sequence[int]) -> str:
    """Write a version."""
    return ".".join(map(str, version))


def scrub(text: str, secrets: Sequence[str]) -> str:
    """Take out the secrets that are known, and whatever looks like one."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "[secret]")
    return LOOKS_SECRET.sub(lambda found: (found[1] or "") + "[secret]", text)


LOOKS_SECRET = re.compile(
    r"\b(?:sk|hf|gh[pousr]|xox[a-z])[-_][A-Za-z0-9_-]{8,}"
    r"|(?i:(bearer\s+))[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
"""Keys of OpenAI's, the Hub's, GitHub's and Slack's form, bearer tokens, and passwords in addresses."""
