"""How `mlxq doctor` grades what it saw. Pure: every figure is passed in, nothing is touched."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from enum import StrEnum

from catalog import units
from mlxq.autostart.unit import AutostartStatus
from mlxq.prompt_reuse import REREADS, PromptReuse
from mlxq.service_status import WAITING, ServiceStatus
from state.classes import dataclass
from state.config.problem import ConfigProblem
from state.service import Observed

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
"""Bytes of disk below which no pull is worth beginning; the floor that pulls keep is below it."""
FULL_BYTES = 500_000_000
"""Bytes of disk below which the job database itself is in danger."""
WIRED_SHARE = 0.92
"""A wired limit above this share of memory leaves macOS too little to live on."""
NEURAL_ACCELERATORS_FROM = (26, 2)
"""The macOS from which MLX uses the neural accelerators of an M5."""
CLOCK_S = 120.0
"""Seconds; a clock this far off breaks TLS and the times of jobs."""


STARTING = frozenset({"starting", "loading", WAITING})
"""Reasons of a service that is on its way to being healthy."""


class Grade(StrEnum):
    """The result of a check."""

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
    """The command that fixes it."""
    fix: str | None = None
    """The fix that `--fix` applies (fixes.FIXES); None when there is none."""


def passed(area: str, text: str) -> Finding:
    """Return a finding that passed."""
    return Finding(area, Grade.OK, text)


def warning(area: str, text: str, hint: str | None = None, fix: str | None = None) -> Finding:
    """Return a warning."""
    return Finding(area, Grade.WARN, text, hint, fix)


def error(area: str, text: str, hint: str | None = None, fix: str | None = None) -> Finding:
    """Return something that keeps mlxq from working."""
    return Finding(area, Grade.FAIL, text, hint, fix)


def config(problem: ConfigProblem) -> Finding:
    """Check a file that users edit."""
    grade = warning if problem.warning else error
    return grade("config", f"{problem.message.rstrip('.')}; {problem.done.rstrip('.')}", problem.hint)


def python(version: Version, platform: str, machine: str, *, translated: bool = False) -> Finding:
    """Check the interpreter: `platform` as sys.platform, `machine` as platform.machine(), `translated` by Rosetta."""
    text = f"Python {dotted(version)} for {machine}"
    if not OLDEST_PYTHON <= version[:2] <= NEWEST_PYTHON:
        supported = f"{dotted(OLDEST_PYTHON)} to {dotted(NEWEST_PYTHON)}"
        return error(
            "python", f"{text}; mlxq needs {supported}", f"uv tool install --python {dotted(NEWEST_PYTHON)} mlxq"
        )
    if platform == "darwin" and translated:
        return error("python", f"{text}: running under Rosetta, where MLX does not work", "uv python install 3.13")
    if platform == "darwin" and machine != "arm64":
        return error("python", f"{text}: MLX has no build for Intel Macs")
    return passed("python", text)


def sqlite(version: Version) -> Finding:
    """Check the SQLite that Python was built with."""
    text = f"SQLite {dotted(version)}"
    if WAL_RESET_FROM <= version <= WAL_RESET_TO:
        return passed(
            "sqlite",
            f"{text}: its WAL-reset bug (fixed in 3.51.3) does not affect mlxq, which has one checkpointing connection",
        )
    return passed("sqlite", text)


def back_end(platform: str, device_info: Mapping[str, object]) -> Finding:
    """Check what MLX said of its default device; it says nothing when it could not be imported."""
    if not device_info:
        return error("mlx", "MLX cannot be imported", "uv tool install --reinstall mlxq")
    device, name = str(device_info.get("device", "")), str(device_info.get("device_name", ""))
    text = f"MLX uses the {device.upper()}" + (f" ({name})" if name else "")
    if platform == "darwin" and device != "gpu":
        return error("mlx", f"{text}: MLX found no Metal device (a sandbox, or a virtual machine without a GPU)")
    if platform != "darwin" and device == "cpu":
        return passed("mlx", f"{text}: slow; expected on Linux without a GPU")
    return passed("mlx", text)


def neural_accelerators(chip: str, macos: Version) -> Finding | None:
    """Check that MLX can use an M5's neural accelerators; `chip` as Metal names it.

    MLX needs macOS 26.2 for them (mlx backend/metal/device.cpp); without them prompts are read at about half the speed.
    """
    if not re.search(r"\bM[5-9]\b", chip) or macos >= NEURAL_ACCELERATORS_FROM:
        return None
    text = f"{chip} with macOS {dotted(macos)}: prompts are read at about half the speed until macOS 26.2"
    return warning("mlx", text, "softwareupdate --list")


def hub(endpoint: str, status: int | None, *, token: bool, offline: bool) -> Finding:
    """Check the Hub's answer to "who am I": its HTTP status, None when there was none."""
    if offline:
        return warning("hub", "HF_HUB_OFFLINE is set: nothing is downloaded from the Hub", "unset HF_HUB_OFFLINE")
    if status is None:
        return warning("hub", f"{endpoint} does not answer: installed models work, new ones cannot be downloaded")
    if status in {401, 403} and token:
        return warning("hub", f"{endpoint} refuses your token (HTTP {status})", "hf auth login")
    return passed(
        "hub", f"{endpoint} answers" + (" and accepts your token" if token else "; no token, open models only")
    )


def disk(folder: str, free_bytes: int) -> Finding:
    """Check the free space of a disk."""
    text = f"{units.files(free_bytes)} free for {folder}"
    if free_bytes < FULL_BYTES:
        return error("disk", f"{text}: the job database may stop", "mlxq models")
    if free_bytes < ROOM_BYTES:
        return warning("disk", f"{text}: too little for most models", "mlxq models")
    return passed("disk", text)


def memory(total_bytes: int, available_bytes: int, pressure: str, swap_bytes: int) -> Finding:
    """Check the memory; `pressure` as tasks.system.memory names it."""
    free, total, swapped = units.memory(available_bytes), units.memory(total_bytes), units.memory(swap_bytes)
    text = f"{free} of {total} memory free, {swapped} swapped"
    if pressure == "normal":
        return passed("memory", text)
    return warning("memory", f"{text}: memory pressure is {pressure}", "mlxq status")


def wired(total_bytes: int, limit_bytes: int, usable_bytes: int, stack_bytes: int) -> Finding | None:
    """Check macOS's limit on what the GPU may hold; None where there is nothing to say. Bytes; 0 is no limit."""
    share = limit_bytes / total_bytes if total_bytes else 0.0
    if share > WIRED_SHARE:
        text = f"iogpu.wired_limit_mb gives the GPU {share:.0%} of memory: macOS may freeze"
        return warning("memory", text, f"sudo sysctl iogpu.wired_limit_mb={int(total_bytes * 0.8) >> 20}")
    if usable_bytes and stack_bytes > usable_bytes:
        text = f"the stack needs {units.memory(stack_bytes)}, the GPU may hold {units.memory(usable_bytes)}"
        return warning("memory", text, "mlxq setup")
    return passed("memory", f"wired limit {units.memory(limit_bytes)}") if limit_bytes else None


def parse_pmset(text: str) -> dict[str, int]:
    """Read the settings in use from `pmset -g`: ` sleep  1 (sleep prevented by caffeinate)` is sleep, 1 minute.

    SleepDisabled stands above them, system-wide; sleep that caffeinate prevents, as mlxq does while a tier runs, is
    told as `prevented`.
    """
    system_wide, _, used = text.partition("Currently in use:")
    pairs = re.findall(r"^\s+([\w ]+?)\s+(\d+)\b", used or text, re.MULTILINE)
    settings = {name: int(value) for name, value in pairs}
    if re.search(r"^\s+SleepDisabled\s+1\b", system_wide, re.MULTILINE):
        settings["SleepDisabled"] = 1
    if re.search(r"^\s+sleep\s+\d+\s+\(sleep prevented by [^)]*\bcaffeinate\b", used, re.MULTILINE):
        settings["prevented"] = 1
    return settings


def power(settings: Mapping[str, int], source: str) -> list[Finding]:
    """Check sleep and power: `settings` of parse_pmset, `source` mains, battery or unknown."""
    if not settings:
        return []
    findings: list[Finding] = []
    minutes = settings.get("sleep", 0)
    if minutes and not (settings.get("SleepDisabled") or settings.get("prevented")):
        findings.append(
            warning(
                "power", f"the Mac sleeps after {minutes} min and does not serve while asleep", "sudo pmset -a sleep 0"
            )
        )
    if settings.get("autorestart") == 0:
        findings.append(warning("power", "the Mac stays off after a power failure", "sudo pmset -a autorestart 1"))
    if settings.get("lowpowermode") == 1 or settings.get("powermode") == 1:
        findings.append(warning("power", "low power mode is on: about half the speed", "sudo pmset -a lowpowermode 0"))
    if source == "battery":
        findings.append(warning("power", "running on battery"))
    return findings or [passed("power", "does not sleep; restarts after a power failure")]


def port(name: str, number: int, holder: str | None, cures: str, *, ours: bool) -> Finding:
    """Check a port: `holder` names the program that listens there, None when it is free; `cures` what helps then."""
    if holder is None:
        return passed("ports", f"{number} is free for {name}")
    if ours:
        return passed("ports", f"{number} is used by {name}")
    return error("ports", f"{number}, which {name} needs, is used by {holder}", cures)


def proxy(exceptions: str | None) -> list[Finding]:
    """Check that clients ask the gateway directly: `exceptions`, what NO_PROXY should be, None where all is well."""
    if exceptions is None:
        return []
    text = (
        "a proxy is set and NO_PROXY does not except 127.0.0.1: clients ask it for the gateway, which it cannot reach"
    )
    return [warning("ports", text, f"export NO_PROXY={shlex.quote(exceptions)}")]


def worker(state: str, pid: int | None, *, services: bool, unwritable: str | None = None) -> Finding:
    """Check the worker: `state` of tasks.worker_status, `services`: whether any service is requested to run.

    `unwritable`: why the home cannot be written, and with it no heartbeat.
    """
    if state == "alive":
        return passed("worker", f"running (pid {pid})")
    if state == "hung" and unwritable:
        return error("worker", f"the worker (pid {pid}) cannot write its heartbeat: {unwritable}", "mlxq logs worker")
    if state == "hung":
        return error("worker", f"the worker (pid {pid}) hangs: no heartbeat", f"kill -9 {pid} && mlxq up")
    if services:
        return warning("worker", "no worker is running: nothing restarts a crashed service", "mlxq up")
    return passed("worker", "not running; started when it is needed")


def service(name: str, status: ServiceStatus, cause: str | None, hint: str | None) -> Finding:
    """Check a service that is requested to run; `cause` and `hint` as its row tells them."""
    text = f"{name} is {status.words}" + (f": {cause.rstrip('.')}" if cause else "")
    if status.state is Observed.HEALTHY:
        return passed("services", text)
    if status.state is Observed.DEGRADED or status.reason in STARTING:
        return warning("services", text, hint or f"mlxq why {name}")
    return error("services", text, hint or f"mlxq up {name}")


def reuse(tier: str, prompts: PromptReuse, *, agents: bool, remedy: str) -> Finding | None:
    """Check what a tier's second turn did not read again; None before it was asked.

    Agents send their whole conversation every turn, so that it is a warning for them alone (`agents`); `remedy` is
    the command that helps.
    """
    if prompts.second_turn is None:
        return None
    if not prompts.rereads:
        return passed("reuse", f"{tier} read {1 - prompts.second_turn:.0%} of a conversation again at its second turn")
    if not agents:
        return passed("reuse", f"{tier} {REREADS}")
    return warning("reuse", f"{tier} {REREADS}: each turn of an agent waits for all of it", remedy)


def autostart(status: AutostartStatus) -> Finding:
    """Check autostart: whether the system runs a worker of it now, not only whether it is there."""
    if not status.installed and not status.state:
        return warning("autostart", "not installed: the worker does not start after a reboot", "mlxq install")
    if status.running:
        return passed("autostart", f"running (pid {status.pid}): {status.path}")
    text = f"{status.path} is installed but its worker does not run: {status.message or status.state}"
    return error("autostart", text, "mlxq logs worker") if status.state else warning("autostart", text, "mlxq install")


def clock(skew_s: float | None) -> Finding | None:
    """Check this machine's clock against the Hub's, in seconds; None where the Hub did not answer."""
    if skew_s is None:
        return None
    if abs(skew_s) <= CLOCK_S:
        return passed("clock", "in sync with the Hub's")
    way = "fast" if skew_s > 0 else "slow"
    return warning("clock", f"{abs(skew_s):.0f} s {way}: downloads may fail, times of jobs are wrong")


def packages(versions: Mapping[str, str]) -> list[Finding]:
    """Check installed versions by name."""
    wrong = [
        error("packages", f"{name} {version} is {BAD_VERSIONS[name][version]}", "uv tool install --reinstall mlxq")
        for name, version in versions.items()
        if version in BAD_VERSIONS.get(name, {})
    ]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return wrong or [passed("packages", listed)]


def newer(version: str | None) -> Finding | None:
    """Return that there is a newer mlxq, where one was looked for and found."""
    return warning("mlxq", f"{version} is available", "mlxq upgrade") if version else None


def network(host: str, *, encrypted: bool) -> Finding | None:
    """Check whether what other machines ask can be read on the way; nothing to say where none can ask."""
    if host == "127.0.0.1":
        return None
    if encrypted:
        return passed("network", f"other machines reach the gateway on {host}, encrypted")
    return warning(
        "network", f"the gateway answers other machines on {host} unencrypted", "mlxq config set gateway-tls true"
    )


def node(name: str, problem: str | None) -> Finding:
    """Check another node of the fleet. `problem`: what is wrong with it, as `mlxq node list` has it."""
    if problem is None:
        return passed("network", f"the node {name} answers")
    return warning("network", f"the node {name}: {problem}", "mlxq node list")


def start_files(files: Mapping[str, str]) -> list[Finding]:
    """Check the .pth files of site-packages, name -> text: their import lines run at every start of Python."""
    findings: list[Finding] = []
    for name, text in sorted(files.items()):
        runs = any(line.startswith(("import ", "import\t")) for line in text.splitlines())
        if name in BAD_PTH:
            findings.append(error("packages", f"{name} is {BAD_PTH[name]}", "uv tool install --reinstall mlxq"))
        elif runs and not KNOWN_PTH.fullmatch(name):
            findings.append(warning("packages", f"{name} is unknown and runs code at every start of Python"))
    return findings


def modes(entries: Sequence[tuple[str, int]]) -> list[Finding]:
    """Check who may read the home: (path, mode bits) of what exists."""
    open_ones = [(path, mode) for path, mode in entries if mode & 0o077]
    if not open_ones:
        return [passed("home", "readable by you only")]
    return [
        error("home", f"{path} is readable by other users (mode {mode:04o})", "mlxq doctor --fix", fix="modes")
        for path, mode in open_ones
    ]


def dotted(version: Sequence[int]) -> str:
    """Return a version as text."""
    return ".".join(map(str, version))


def scrub(text: str, secrets: Sequence[str]) -> str:
    """Return the text without the secrets that are known, and without whatever looks like one."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "[secret]")
    return LOOKS_SECRET.sub(lambda match: (match[1] or "") + "[secret]", text)


LOOKS_SECRET = re.compile(
    r"\b(?:sk|hf|gh[pousr]|xox[a-z])[-_][A-Za-z0-9_-]{8,}"
    r"|(?i:(bearer\s+))[A-Za-z0-9._~+/=-]{8,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
"""Keys of OpenAI's, the Hub's, GitHub's and Slack's form, bearer tokens, and passwords in addresses."""
