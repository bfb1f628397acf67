"""systemd (Linux): the worker's unit file, and how it is loaded.

Sources: systemd.service(5), systemd.exec(5), systemctl(1), sd_notify(3), loginctl(1), pam_systemd(8).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from mlxq.autostart.unit import STOP_S, AutostartStatus, Unit
from state.errors import MlxqError, UsageProblem
from tasks.system import tool

NAME = "mlxq-worker.service"
STARTED_S = 10.0
POLL_S = 0.2
PROPERTIES = ("ActiveState", "SubState", "MainPID", "NRestarts", "ExecMainCode", "ExecMainStatus", "Result")


def text(unit: Unit) -> str:
    """Return the unit file; it holds no secret.

    KillMode=process leaves engines and gateway alone when the worker stops or restarts. Without StartLimitIntervalSec=0
    systemd gives up for good after a few failures; TimeoutStartSec lets a worker wait for the one that runs.
    """
    log = _escaped(str(unit.home.log("worker")))
    lines = [
        "[Unit]",
        "Description=mlxq worker: keeps the models of this machine serving",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={' '.join(_quoted(word) for word in unit.program)}",
        *(f"Environment={_quoted(f'{name}={value}')}" for name, value in unit.environment.items()),
        f"WorkingDirectory={_escaped(str(unit.home.root))}",
        f"StandardOutput=append:{log}",
        f"StandardError=append:{log}",
        "Restart=always",
        "RestartSec=5",
        "TimeoutStartSec=infinity",
        "WatchdogSec=60",
        "KillMode=process",
        f"TimeoutStopSec={STOP_S}",
        "UMask=0077",
        "LimitNOFILE=8192:524288",
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


def path(unit: Unit) -> Path:
    """Return where the unit file belongs."""
    folder = Path("/etc/systemd/system") if unit.system else unit.user_home / ".config" / "systemd" / "user"
    return folder / NAME


def check(unit: Unit) -> None:
    """Refuse before anything is changed what cannot end with a worker. Raises MlxqError."""
    if tool.path("systemctl") is None:
        raise MlxqError("systemctl is not installed.", hint="mlxq worker   (run it with your own supervisor)")
    if path(_other(unit)).exists():
        undo = "mlxq uninstall" if unit.system else "sudo mlxq uninstall --system"
        raise UsageProblem(f"Autostart is installed already ({path(_other(unit))}).", hint=undo)
    _join_user_bus(unit)
    output = tool.run("systemctl", *_scope(unit), "show", "--property=Version")
    if output.code:
        raise MlxqError(
            f"systemd of {'the system' if unit.system else 'this user'} does not answer; nothing was changed: "
            f"{output.message}",
            hint="sudo mlxq install --system" if not unit.system else "mlxq worker   (run it with your own supervisor)",
        )


def _join_user_bus(unit: Unit) -> None:
    """Name the user's bus where the session did not (`su`, cron), if it is there."""
    folder = Path(f"/run/user/{os.getuid()}")
    if not unit.system and "XDG_RUNTIME_DIR" not in os.environ and (folder / "bus").exists():
        os.environ["XDG_RUNTIME_DIR"] = str(folder)


def _other(unit: Unit) -> Unit:
    return Unit(unit.program, unit.home, {}, not unit.system, unit.user, unit.user_id, unit.user_home)


def _scope(unit: Unit) -> list[str]:
    return [] if unit.system else ["--user"]


def load(unit: Unit) -> list[str]:
    """Start the unit at `path(unit)` in place of what ran; return sentences. Raises MlxqError."""
    scope = _scope(unit)
    tool.ensure("systemctl", *scope, "daemon-reload")
    tool.ensure("systemctl", *scope, "enable", NAME)
    tool.run("systemctl", *scope, "reset-failed", NAME)
    tool.ensure("systemctl", *scope, "restart", "--no-block", NAME)
    return [*_linger(unit), *_warnings(unit)]


def _linger(unit: Unit) -> Iterator[str]:
    """Let the user's services run while the user is logged out; a policy may forbid it, which is no failure."""
    if unit.system:
        yield "systemd keeps the worker running."
    elif (output := tool.run("loginctl", "enable-linger")).code == 0:
        yield "systemd keeps the worker running, also while you are logged out."
    else:
        yield f"systemd keeps the worker running while you are logged in; lingering failed: {output.message}"
        yield "To keep it running after you log out: sudo loginctl enable-linger $USER"


def _warnings(unit: Unit) -> Iterator[str]:
    """Return what to know when the worker does not run within a few seconds."""
    end = time.monotonic() + STARTED_S
    while not (report := status(unit)).running:
        if time.monotonic() > end:
            yield f"It does not run yet: {report.message or report.state}."
            return
        time.sleep(POLL_S)


def unload(unit: Unit) -> None:
    """Stop the worker's unit and forget that it starts. Raises MlxqError."""
    _join_user_bus(unit)
    if path(unit).exists():
        tool.ensure("systemctl", *_scope(unit), "disable", "--now", NAME)
    else:
        tool.ensure("systemctl", *_scope(unit), "stop", NAME)


def forget(unit: Unit) -> None:
    """Make systemd notice that the unit's file is gone."""
    tool.run("systemctl", *_scope(unit), "daemon-reload")
    tool.run("systemctl", *_scope(unit), "reset-failed", NAME)


def status(unit: Unit) -> AutostartStatus:
    """Return what is installed, and what systemd says about it."""
    target = path(unit)
    _join_user_bus(unit)
    output = tool.run("systemctl", *_scope(unit), "show", NAME, f"--property={','.join(PROPERTIES)}")
    if output.code:
        return AutostartStatus(str(target), target.exists(), False, message=output.message.partition("\n")[0])
    fields = dict(line.split("=", 1) for line in output.stdout.splitlines() if "=" in line)
    return parse(str(target), fields, installed=target.exists(), scope="system" if unit.system else "user")


def parse(target: str, fields: dict[str, str], *, installed: bool, scope: str) -> AutostartStatus:
    """Return the status from `systemctl show`'s properties, by name."""
    state, sub = fields.get("ActiveState", ""), fields.get("SubState", "")
    running = state == "active" and sub == "running"
    pid, restarts = int(fields.get("MainPID") or 0), int(fields.get("NRestarts") or 0)
    ended = fields.get("ExecMainStatus", "0") if fields.get("ExecMainCode", "0") != "0" else ""
    word = f"{state} ({sub})" if sub else state
    failed = fields.get("Result", "success") != "success"
    message = "" if running else f"{word}, {fields['Result']}, last exit {ended}" if failed else word
    return AutostartStatus(target, installed, running, scope, word, pid or None, restarts + 1, ended, message)
