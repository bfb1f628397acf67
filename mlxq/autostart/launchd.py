"""launchd (macOS): the worker's property list, and how it is loaded so that a worker always runs at the end.

launchd is closed; what it does is known by recordings on real Macs. `bootout` returns before the job is gone (openclaw
issue 112731), a `bootstrap` meanwhile fails with 5 for about five seconds (headroom issue 1289), and an agent without
session types loads at the screen alone (homebrew-services issue 517). Other sources: launchd.plist(5), launchctl(1).
"""

from __future__ import annotations

import os
import plistlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

from mlxq.autostart.unit import STOP_S, AutostartStatus, Unit
from state.classes import dataclass
from state.errors import MlxqError, UsageProblem
from tasks.system import tool

LABEL = "dev.mlxq.worker"
DAEMONS = Path("/Library/LaunchDaemons")
"""On the volume of the users' homes; an agent on another one is refused with 5 for good (Pearcleaner issue 550)."""
SESSIONS = ["Aqua", "Background", "LoginWindow", "StandardIO", "System"]
"""As Homebrew's services write it: the screen's, SSH's and the system's sessions alike."""
EX_CONFIG = 78
"""launchd's exit code for a job whose folder or log it may not open."""
GONE_S = STOP_S + 10.0
"""Seconds that a job may take from bootout until launchd forgets it."""
BOOTSTRAP_S = 15.0
"""Seconds in which launchd may refuse a label that it has just let go of."""
REFUSED_FOR_A_WHILE = (5, 36, 37)
"""EIO, EINPROGRESS, EALREADY: what bootstrap says while the former job drains, or is loaded already."""
STARTED_S = 5.0
POLL_S = 0.2
"""launchctl has nothing to wait on; its answers are asked for again after so many seconds."""
FIELDS = re.compile(
    r"^(?:\t| {1,4})(state|pid|runs|last exit code|last terminating signal) = ([^\r\n]*)\r?$", re.MULTILINE
)
"""The job's own fields: those of the blocks within it are indented further."""


@dataclass(frozen=True)
class LaunchdJob:
    """What `launchctl print` says about the worker's job."""

    domain: str
    state: str
    pid: int | None
    runs: int | None
    last_exit: str

    @property
    def exit_code(self) -> int | None:
        """Return the number in front of the last exit code; None when it never exited."""
        number = re.match(r"-?\d+", self.last_exit)
        return int(number[0]) if number else None


def text(unit: Unit) -> bytes:
    """Return the property list; it holds no secret.

    Without ProcessType Interactive launchd throttles CPU and disk to a sixth (measured by others, GitLab Runner issue
    29089). AbandonProcessGroup lets engines and gateway outlive the worker.
    """
    folder, log = _reachable(unit)
    content: dict[str, object] = {
        "Label": LABEL,
        "ProgramArguments": list(unit.program),
        "EnvironmentVariables": dict(unit.environment),
        "WorkingDirectory": str(folder),
        "RunAtLoad": True,
        "KeepAlive": True,
        "ThrottleInterval": 5,
        "ProcessType": "Interactive",
        "LimitLoadToSessionType": SESSIONS,
        "ExitTimeOut": STOP_S,
        "AbandonProcessGroup": True,
        "Umask": 0o077,
        "SoftResourceLimits": {"NumberOfFiles": 8192},
        "StandardOutPath": str(log),
        "StandardErrorPath": str(log),
    }
    if unit.system:
        content["UserName"] = unit.user
    return plistlib.dumps(content, sort_keys=False)


def _reachable(unit: Unit) -> tuple[Path, Path]:
    """Return a folder and a log that launchd may open before the worker exists.

    On another volume than the user's home it may not (TCC), and the job ends with 78 and no log for ever (hermes-agent
    issues 107618, 88267).
    """
    if _volume(unit.home.root) == _volume(unit.user_home):
        return unit.home.root, unit.home.log("worker")
    return unit.user_home, unit.user_home / "Library" / "Logs" / "mlxq-worker.log"


def _volume(path: Path) -> int | None:
    """Return the device of a path, or of its nearest folder that exists."""
    for folder in (path, *path.parents):
        try:
            return folder.stat().st_dev
        except OSError:
            continue
    return None


def path(unit: Unit) -> Path:
    """Return where the property list belongs."""
    folder = DAEMONS if unit.system else unit.user_home / "Library" / "LaunchAgents"
    return folder / f"{LABEL}.plist"


def check(unit: Unit) -> None:
    """Refuse before anything is changed what cannot end with a worker. Raises MlxqError."""
    tool.ensure("plutil", "-help")
    other = next((job for job in _jobs(unit) if (job.domain == "system") != unit.system), None)
    if other:
        undo = "mlxq uninstall" if unit.system else "sudo mlxq uninstall --system"
        raise UsageProblem(f"Autostart is installed in {other.domain} already.", hint=undo)
    if not unit.system and _domain(unit) is None:
        raise MlxqError(
            f"launchd has no domain for user {unit.user_id}; nothing was changed.", hint="sudo mlxq install --system"
        )


def load(unit: Unit) -> list[str]:
    """Load the property list at `path(unit)` in place of what was loaded; return sentences. Raises MlxqError."""
    tool.ensure("plutil", "-lint", str(path(unit)))
    unload(unit)
    domain = _domain(unit)
    if domain is None:
        raise MlxqError(f"launchd has no domain for user {unit.user_id} now.", hint="mlxq install")
    tool.ensure("launchctl", "enable", f"{domain}/{LABEL}")
    _bootstrap(domain, path(unit))
    return [f"launchd keeps the worker running ({domain}/{LABEL}).", *_warnings(domain)]


def unload(unit: Unit) -> None:
    """Remove the job from every domain that has it, and wait until launchd has let go of it. Raises MlxqError."""
    for job in _jobs(unit):
        if (job.domain == "system") == unit.system:
            _bootout(job.domain)


def _bootout(domain: str) -> None:
    target = f"{domain}/{LABEL}"
    output = tool.run("launchctl", "bootout", target)
    end = time.monotonic() + GONE_S
    while _print(domain) is not None:
        if time.monotonic() > end:
            raise MlxqError(
                f"launchd has not ended the former worker ({target}) within {GONE_S:.0f} s: {output.message}",
                hint="mlxq install",
            )
        time.sleep(POLL_S)


def _bootstrap(domain: str, target: Path) -> None:
    """Load the job; what launchd refuses for a while is tried again. Raises MlxqError."""
    end = time.monotonic() + BOOTSTRAP_S
    while True:
        output = tool.run("launchctl", "bootstrap", domain, str(target))
        if output.code == 0 or (output.code == REFUSED_FOR_A_WHILE[-1] and _print(domain)):
            return
        if output.code not in REFUSED_FOR_A_WHILE or time.monotonic() > end:
            raise MlxqError(
                f"launchd did not load {target} ({output.code}): {output.message}. The file is written.",
                hint="mlxq install" if _volume(target) == _volume(DAEMONS) else "sudo mlxq install --system",
            )
        time.sleep(POLL_S)


def _warnings(domain: str) -> Iterator[str]:
    """Return what to know when the job does not run within a few seconds."""
    end = time.monotonic() + STARTED_S
    while (job := _print(domain)) is None or job.state != "running":
        if time.monotonic() > end:
            yield f"It does not run yet: {_meaning(job) if job else 'launchd has let go of it'}."
            return
        time.sleep(POLL_S)


def status(unit: Unit) -> AutostartStatus:
    """Return what is installed, and what launchd says in whichever domain has the job."""
    target = path(unit)
    job = next((job for job in _jobs(unit) if (job.domain == "system") == unit.system), None)
    if job is None:
        return AutostartStatus(str(target), target.exists(), False, message="not loaded")
    running = job.state == "running"
    message = "" if running else _meaning(job)
    return AutostartStatus(
        str(target), target.exists(), running, job.domain, job.state, job.pid, job.runs, job.last_exit, message
    )


def _meaning(job: LaunchdJob) -> str:
    """Return why a loaded job does not run."""
    if job.exit_code == EX_CONFIG:
        return "78 (EX_CONFIG): launchd may not open its folder or log; give it Full Disk Access or move MLXQ_HOME"
    exits = f", last exit {job.last_exit}" if job.exit_code is not None else ""
    again = f", started {job.runs} times" if (job.runs or 0) > 1 else ""
    return f"{job.state or 'in an unknown state'}{again}{exits}"


def _jobs(unit: Unit) -> list[LaunchdJob]:
    """Return the worker's job in each domain that has it; over SSH and at the screen they differ."""
    jobs = (_print(domain) for domain in (*_user_domains(unit), "system"))
    return [job for job in jobs if job]


def _user_domains(unit: Unit) -> tuple[str, str]:
    user = unit.user_id if unit.user_id >= 0 else os.getuid()
    return f"gui/{user}", f"user/{user}"


def _domain(unit: Unit) -> str | None:
    """Return the domain to load into: the system, the desktop, or without one (over SSH) the user; None if none."""
    if unit.system:
        return "system"
    return next((domain for domain in _user_domains(unit) if tool.run("launchctl", "print", domain).code == 0), None)


def _print(domain: str) -> LaunchdJob | None:
    """Return the job in a domain; None when the domain, or the job in it, is not there."""
    output = tool.run("launchctl", "print", f"{domain}/{LABEL}")
    return parse(domain, output.stdout) if output.code == 0 else None


def parse(domain: str, printed: str) -> LaunchdJob:
    """Read `launchctl print` of a job; lines that are missing leave their field empty."""
    fields: dict[str, str] = {}
    for name, value in FIELDS.findall(printed):
        fields.setdefault(name, value.strip())
    ended = fields.get("last exit code", "")
    killed = fields.get("last terminating signal", "")
    return LaunchdJob(
        domain,
        fields.get("state", ""),
        _number(fields.get("pid")),
        _number(fields.get("runs")),
        killed or ("" if "never" in ended else ended),
    )


def _number(value: str | None) -> int | None:
    return int(value) if value and value.isdecimal() else None
