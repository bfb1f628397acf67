"""The worker under launchd (macOS) or systemd (Linux): what is written, how it is loaded, what the system says."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mlxq import worker_process
from mlxq.autostart import launchd, systemd
from mlxq.autostart.unit import AutostartStatus, Unit, describe
from state.errors import MlxqError, UsageProblem
from state.settings import write_private

__all__ = ["AutostartStatus", "Unit", "describe", "install", "path", "status", "text", "uninstall"]


def text(unit: Unit) -> str:
    """Return the unit's file for this system."""
    return launchd.text(unit).decode() if sys.platform == "darwin" else systemd.text(unit)


def path(unit: Unit) -> str:
    """Return where the unit's file belongs."""
    return str(launchd.path(unit) if sys.platform == "darwin" else systemd.path(unit))


def status(unit: Unit) -> AutostartStatus:
    """Return what is installed and what the system says about it."""
    return launchd.status(unit) if sys.platform == "darwin" else systemd.status(unit)


def install(unit: Unit) -> list[str]:
    """Write the unit's file and load it in place of what ran; return sentences on what was done. Raises MlxqError.

    A worker always runs at the end: what cannot work is refused before anything changes, and a worker that a command
    had started in the background is started again when the system did not load the unit.
    """
    manager = launchd if sys.platform == "darwin" else systemd
    if unit.system and os.geteuid() != 0:
        raise UsageProblem("Installing a system-wide worker needs root.", hint="sudo mlxq install --system")
    manager.check(unit)
    target = manager.path(unit)
    done = [_write(unit, target)]
    if stopped := worker_process.stop_any(unit.home):  # it would keep the lock from the system's
        done.append("Stopped the worker in the background; the system's takes over.")
    try:
        return [*done, *manager.load(unit)]
    except MlxqError:
        if stopped and not unit.system:
            worker_process.ensure(unit.home)
        raise


def _write(unit: Unit, target: Path) -> str:
    if not unit.system:
        unit.home.make()
    target.parent.mkdir(parents=True, exist_ok=True)
    write_private(target, text(unit))
    if unit.system:
        target.chmod(0o644)
    return f"Wrote {target}."


def uninstall(unit: Unit) -> list[str]:
    """Stop the worker and remove its unit; services keep running. Raises MlxqError."""
    manager = launchd if sys.platform == "darwin" else systemd
    target = manager.path(unit)
    if not target.exists() and not status(unit).state:
        return ["Autostart is not installed."]
    if unit.system and os.geteuid() != 0:
        raise UsageProblem("Removing a system-wide worker needs root.", hint="sudo mlxq uninstall --system")
    manager.unload(unit)
    target.unlink(missing_ok=True)
    if sys.platform != "darwin":
        systemd.forget(unit)
    return [f"Removed {target}.", "Services keep running; `mlxq down` stops them."]
