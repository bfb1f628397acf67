"""Run the worker under launchd (macOS) or systemd (Linux): the units, and how they are installed.

The units are pure text without secrets; the worker reads its keys from its home. Sources: launchd.plist(5),
launchctl(1), systemd.service(5), systemd.exec(5), sd_notify(3), loginctl(1).
"""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from state.errors import MlxqError, NotSetUp, UsageProblem
from state.paths import Home, get_home
from state.settings import write_private

LABEL = "dev.mlxq.worker"
UNIT = "mlxq-worker.service"
STOP_S = 20
"""Seconds that launchd and systemd give the worker to stop; more than the worker's own 12 s."""
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "NO_PROXY", "SSL_CERT_FILE")
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy")
NOT_LOADED = (3, 113)
"""launchctl's exit codes for a unit that is not loaded (ESRCH, and its own 113)."""


@dataclass(frozen=True)
class Unit:
    """The unit of one worker."""

    program: Sequence[str]
    """Absolute path of the installed command and its arguments."""
    home: Home
    environment: Mapping[str, str]
    system: bool = False
    """Start at boot (a launch daemon, a system unit) instead of at login."""
    user: str = ""
    """The user that a system unit runs as."""


def environment(base: Mapping[str, str], home: Home) -> dict[str, str]:
    """Return the variables of the user's shell that the worker needs; a proxy URL with a password is omitted."""
    kept = {name: base[name] for name in KEPT_VARIABLES if base.get(name)}
    kept |= {name: base[name] for name in PROXY_VARIABLES if base.get(name) and "@" not in base[name]}
    return kept | {"MLXQ_HOME": str(home.root)}


def launchd(unit: Unit) -> bytes:
    """Return the property list.

    Without ProcessType Interactive launchd throttles CPU and disk to a sixth (measured by others, GitLab Runner issue
    29089). AbandonProcessGroup lets engines and gateway outlive the worker.
    """
    log = str(unit.home.log("worker"))
    content: dict[str, object] = {
        "Label": LABEL,
        "ProgramArguments": list(unit.program),
        "EnvironmentVariables": dict(unit.environment),
        "WorkingDirectory": str(unit.home.root),
        "RunAtLoad": True,
        "KeepAlive": True,
        "ThrottleInterval": 5,
        "ProcessType": "Interactive",
        "ExitTimeOut": STOP_S,
        "AbandonProcessGroup": True,
        "Umask": 0o077,
        "SoftResourceLimits": {"NumberOfFiles": 8192},
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    if unit.system:
        content["UserName"] = unit.user
    return plistlib.dumps(content, sort_keys=False)


def systemd(unit: Unit) -> str:
    """Return the unit file. KillMode=process keeps the services running when the worker stops or restarts."""
    lines = [
        "[Unit]",
        "Description=mlxq worker: keeps the models of this machine serving",
        "StartLimitIntervalSec=300",
        "StartLimitBurst=10",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={' '.join(_quoted(word) for word in unit.program)}",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in unit.environment.items()),
        f"WorkingDirectory={_escaped(str(unit.home.root))}",
        f"StandardOutput=append:{_escaped(str(unit.home.log('worker')))}",
        f"StandardError=append:{_escaped(str(unit.home.log('worker')))}",
        "Restart=always",
        "RestartSec=1",
        "WatchdogSec=60",
        "KillMode=process",
        f"TimeoutStopSec={STOP_S}",
        "UMask=0077",
        *([f"User={unit.user}"] if unit.system else []),
        "",
        "[Install]",
        f"WantedBy={'multi-user.target' if unit.system else 'default.target'}",
    ]
    return "\n".join(lines) + "\n"


def _quoted(word: str) -> str:
    escaped = _escaped(word).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _escaped(word: str) -> str:
    """Keep systemd from expanding its % specifiers in our paths."""
    return word.replace("%", "%%")


def program() -> list[str]:
    """Return the absolute command line of this installation's worker."""
    installed = Path(sys.executable).with_name("mlxq")
    if installed.exists():
        return [str(installed), "worker"]
    return [sys.executable, "-P", "-m", "mlxq", "worker"]


def place(*, system: bool) -> Unit:
    """Return the unit of this user and installation. Raises NotSetUp for a system unit without a home.

    Under sudo the user is the one who called it, not root, so that the worker and its files belong to them.
    """
    base = _person(os.environ) if system else dict(os.environ)
    chosen = Home(Path(base.get("MLXQ_HOME") or Path(base["HOME"], ".mlxq")).absolute()) if system else get_home()
    if system and not chosen.root.is_dir():
        raise NotSetUp(f"There is no mlxq in {chosen.root}.", hint="mlxq setup   (without sudo)")
    return Unit(program(), chosen, environment(base, chosen), system, base["USER"] if system else "")


def _person(base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with HOME and USER of the user who called sudo."""
    import pwd

    entry = pwd.getpwnam(base["SUDO_USER"]) if base.get("SUDO_USER") else pwd.getpwuid(os.getuid())
    return {**base, "HOME": entry.pw_dir, "USER": entry.pw_name}


def path(*, system: bool) -> Path:
    """Return the path of the unit file."""
    if sys.platform == "darwin":
        folder = Path("/Library/LaunchDaemons") if system else Path("~/Library/LaunchAgents").expanduser()
        return folder / f"{LABEL}.plist"
    folder = Path("/etc/systemd/system") if system else Path("~/.config/systemd/user").expanduser()
    return folder / UNIT


def text(unit: Unit) -> str:
    """Return the content of the unit file for this system; it holds no secret."""
    return launchd(unit).decode() if sys.platform == "darwin" else systemd(unit)


def install(unit: Unit) -> list[str]:
    """Write the unit file and start the unit. Return sentences about what was done. Raises MlxqError."""
    if unit.system and os.geteuid() != 0:
        raise UsageProblem("A system-wide worker is installed by the administrator.", hint="sudo mlxq install --system")
    if not unit.system:
        unit.home.make()
    target = path(system=unit.system)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_private(target, text(unit))
    if unit.system:
        target.chmod(0o644)
    done = [f"Wrote {target}."]
    return done + (_load_launchd(unit, target) if sys.platform == "darwin" else _load_systemd(unit))


def _load_launchd(unit: Unit, target: Path) -> list[str]:
    """Reload the property list; booting out a unit that is not loaded is no error."""
    where = domain(system=unit.system)
    _run("plutil", "-lint", str(target))
    _run("launchctl", "bootout", f"{where}/{LABEL}", allowed=NOT_LOADED)
    _run("launchctl", "enable", f"{where}/{LABEL}")
    _run("launchctl", "bootstrap", where, str(target))
    return [f"launchd keeps the worker alive ({where}/{LABEL})."]


def _load_systemd(unit: Unit) -> list[str]:
    scope = [] if unit.system else ["--user"]
    _run("systemctl", *scope, "daemon-reload")
    _run("systemctl", *scope, "enable", "--now", UNIT)
    if unit.system:
        return ["systemd keeps the worker alive."]
    _run("loginctl", "enable-linger")
    return ["systemd keeps the worker alive, also while you are logged out."]


def uninstall(*, system: bool) -> list[str]:
    """Stop the worker and remove its unit; services keep running. Raises MlxqError."""
    target = path(system=system)
    if not target.exists():
        return ["No worker is installed."]
    if sys.platform == "darwin":
        _run("launchctl", "bootout", f"{domain(system=system)}/{LABEL}", allowed=NOT_LOADED)
        target.unlink()
    else:
        scope = [] if system else ["--user"]
        _run("systemctl", *scope, "disable", "--now", UNIT)
        target.unlink()
        _run("systemctl", *scope, "daemon-reload")
    return [f"Removed {target}.", "Engines and gateway go on as they are; `mlxq down` stops them."]


def status(*, system: bool) -> dict[str, object]:
    """Return the unit's status: {"path", "installed", "loaded", "says"}."""
    target = path(system=system)
    if sys.platform == "darwin":
        command = ["launchctl", "print", f"{domain(system=system)}/{LABEL}"]
    else:
        command = ["systemctl", *([] if system else ["--user"]), "is-active", UNIT]
    loaded, says = _ask(command)
    return {"path": str(target), "installed": target.exists(), "loaded": loaded, "says": says}


def domain(*, system: bool) -> str:
    """Return launchd's domain: the system's, the user's desktop, or (over SSH) the user's background domain."""
    if system:
        return "system"
    user = os.getuid()
    desktop, _ = _ask(["launchctl", "print", f"gui/{user}"])
    return f"gui/{user}" if desktop else f"user/{user}"


def _ask(command: Sequence[str]) -> tuple[bool, str]:
    if shutil.which(command[0]) is None:
        return False, f"{command[0]} is not on this machine"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.returncode == 0, (done.stdout or done.stderr).strip().partition("\n")[0]


def _run(*command: str, allowed: Sequence[int] = ()) -> None:
    """Run a system tool. Raises MlxqError with its output."""
    if shutil.which(command[0]) is None:
        raise MlxqError(f"This machine has no {command[0]}.", hint="mlxq worker   (keep it alive with your own tool)")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode and done.returncode not in allowed:
        said = (done.stderr or done.stdout).strip() or "nothing"
        raise MlxqError(f"`{' '.join(command)}` failed ({done.returncode}): {said}", hint=" ".join(command))
