"""The worker under launchd (macOS) or systemd (Linux): the text of the units, and how they are put in place.

The texts are pure and hold no secret; the worker reads its keys from its home. Sources: launchd.plist(5),
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
"""What launchd and systemd give the worker to stop; above the worker's own 12 s."""
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "HF_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE", "NO_PROXY", "SSL_CERT_FILE")
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy")
NOT_LOADED = (3, 113)
"""launchctl's exit codes for a service that is not there (ESRCH, and its own 113)."""


@dataclass(frozen=True)
class Unit:
    """A worker that the system keeps running."""

    program: Sequence[str]
    """Absolute path of the installed command and its arguments."""
    home: Home
    environment: Mapping[str, str]
    system: bool = False
    """Run at boot (a launch daemon, a system unit) instead of with the user's session."""
    user: str = ""
    """Who it runs as when `system`."""


def environment(base: Mapping[str, str], home: Home) -> dict[str, str]:
    """Return the variables the worker needs of the user's shell; a proxy that holds a password is left out."""
    variables = {name: base[name] for name in KEPT_VARIABLES if base.get(name)}
    variables |= {name: base[name] for name in PROXY_VARIABLES if base.get(name) and "@" not in base[name]}
    return variables | {"MLXQ_HOME": str(home.root)}


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
    """Return the unit file. KillMode=process leaves engines and gateway alone when the worker stops or restarts."""
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


def describe(*, system: bool) -> Unit:
    """Return the unit for this user and this installation. Raises NotSetUp for a system one without a home.

    Under sudo the user is the one who called it, not root: the worker, its home and its files stay theirs.
    """
    base = _sudo_user(os.environ) if system else dict(os.environ)
    chosen = Home(Path(base.get("MLXQ_HOME") or Path(base["HOME"], ".mlxq")).absolute()) if system else get_home()
    if system and not chosen.root.is_dir():
        raise NotSetUp(f"mlxq is not set up in {chosen.root}.", hint="mlxq setup   (without sudo)")
    return Unit(program(), chosen, environment(base, chosen), system, base["USER"] if system else "")


def _sudo_user(base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with HOME and USER of the user who called sudo."""
    import pwd

    entry = pwd.getpwnam(base["SUDO_USER"]) if base.get("SUDO_USER") else pwd.getpwuid(os.getuid())
    return {**base, "HOME": entry.pw_dir, "USER": entry.pw_name}


def path(*, system: bool) -> Path:
    """Return where the unit's file belongs."""
    if sys.platform == "darwin":
        folder = Path("/Library/LaunchDaemons") if system else Path("~/Library/LaunchAgents").expanduser()
        return folder / f"{LABEL}.plist"
    folder = Path("/etc/systemd/system") if system else Path("~/.config/systemd/user").expanduser()
    return folder / UNIT


def text(unit: Unit) -> str:
    """Return the unit's file for this system; it holds no secret."""
    return launchd(unit).decode() if sys.platform == "darwin" else systemd(unit)


def install(unit: Unit) -> list[str]:
    """Write the unit's file and start it; return sentences on what was done. Raises MlxqError."""
    if unit.system and os.geteuid() != 0:
        raise UsageProblem("Installing a system-wide worker needs root.", hint="sudo mlxq install --system")
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
    """Load the property list again: bootout of one that is not loaded is no error."""
    target_domain = domain(system=unit.system)
    _run("plutil", "-lint", str(target))
    _run("launchctl", "bootout", f"{target_domain}/{LABEL}", allowed=NOT_LOADED)
    _run("launchctl", "enable", f"{target_domain}/{LABEL}")
    _run("launchctl", "bootstrap", target_domain, str(target))
    return [f"launchd keeps the worker running ({target_domain}/{LABEL})."]


def _load_systemd(unit: Unit) -> list[str]:
    scope = [] if unit.system else ["--user"]
    _run("systemctl", *scope, "daemon-reload")
    _run("systemctl", *scope, "enable", "--now", UNIT)
    if unit.system:
        return ["systemd keeps the worker running."]
    _run("loginctl", "enable-linger")
    return ["systemd keeps the worker running, also while you are logged out."]


def uninstall(*, system: bool) -> list[str]:
    """Stop the worker and remove its unit; services keep running. Raises MlxqError."""
    target = path(system=system)
    if not target.exists():
        return ["Autostart is not installed."]
    if sys.platform == "darwin":
        _run("launchctl", "bootout", f"{domain(system=system)}/{LABEL}", allowed=NOT_LOADED)
        target.unlink()
    else:
        scope = [] if system else ["--user"]
        _run("systemctl", *scope, "disable", "--now", UNIT)
        target.unlink()
        _run("systemctl", *scope, "daemon-reload")
    return [f"Removed {target}.", "Services keep running; `mlxq down` stops them."]


def status(*, system: bool) -> dict[str, object]:
    """Return what the system says: {"path", "installed", "loaded", "says"}."""
    target = path(system=system)
    if sys.platform == "darwin":
        command = ["launchctl", "print", f"{domain(system=system)}/{LABEL}"]
    else:
        command = ["systemctl", *([] if system else ["--user"]), "is-active", UNIT]
    loaded, says = _ask(command)
    return {"path": str(target), "installed": target.exists(), "loaded": loaded, "says": says}


def domain(*, system: bool) -> str:
    """Return launchd's domain: the system's, the user's desktop, or without one (over SSH) the user's."""
    if system:
        return "system"
    user = os.getuid()
    desktop, _ = _ask(["launchctl", "print", f"gui/{user}"])
    return f"gui/{user}" if desktop else f"user/{user}"


def _ask(command: Sequence[str]) -> tuple[bool, str]:
    if shutil.which(command[0]) is None:
        return False, f"{command[0]} is not installed"
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.returncode == 0, (done.stdout or done.stderr).strip().partition("\n")[0]


def _run(*command: str, allowed: Sequence[int] = ()) -> None:
    """Run one of the system's own tools. Raises MlxqError with its output."""
    if shutil.which(command[0]) is None:
        raise MlxqError(f"{command[0]} is not installed.", hint="mlxq worker   (run it with your own supervisor)")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode and done.returncode not in allowed:
        output = (done.stderr or done.stdout).strip() or "nothing"
        raise MlxqError(f"`{' '.join(command)}` failed ({done.returncode}): {output}", hint=" ".join(command))
