"""The background worker: started once, when a command needs a worker and none is running.

A command that starts the worker takes run/starter.lock and lets the worker inherit it. The lock is held from before the
worker exists until it has exited, so that no other command has to wait or guess. A worker that launchd, systemd or a
user started holds run/worker.lock only.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from state import files
from state.paths import Home

if TYPE_CHECKING:
    import subprocess

STOP_LIMIT_S = 20.0
"""Seconds to wait for the worker's exit; it gives running jobs 12 s."""
LOOK_S = 0.05


def ensure(home: Home, python: str | None = None) -> subprocess.Popen[bytes] | None:
    """Ensure that a worker is running or starting. Return the process if this call started it.

    `python`: the interpreter of the version to start; by default of the one that is used in this home.
    """
    with _starter_lock(home).open("a") as file:
        # the holder is a worker, or is starting one
        if not files.take_lock(file) or files.locked(home.worker_lock):
            return None
        return _start(home, file.fileno(), python or _chosen(home))


def stop_any(home: Home) -> bool:
    """Stop the worker that a command started, also one that is only starting. Return whether one has exited."""
    if not files.locked(_starter_lock(home)):
        return False
    from tasks.system import process

    pid = _await_lock(home)
    identity = process.identify(pid) if pid else None
    return identity is not None and stop(home, process.encode(identity))


def _await_lock(home: Home) -> int | None:
    """Return the pid of the worker that holds the lock; None when the one that was starting exits before it does.

    A file tells no one that it was locked, and a worker takes its lock within a second.
    """
    while files.locked(_starter_lock(home)):
        if files.locked(home.worker_lock) and (text := home.worker_lock.read_text().strip()):
            return int(text)
        time.sleep(LOOK_S)
    return None


def stop(home: Home, owner: str) -> bool:
    """Stop the worker `owner` (boot/pid/start) if a command started it. Return whether it has exited."""
    from tasks.system import process

    if not files.locked(_starter_lock(home)):
        return False
    identity = process.decode(owner)
    process.send(identity, signal.SIGTERM)
    return process.wait(identity, STOP_LIMIT_S)


def _starter_lock(home: Home) -> Path:
    return home.run / "starter.lock"


def _chosen(home: Home) -> str:
    """Return the interpreter of the version that is used in this home, which an upgrade may have changed meanwhile."""
    if not home.versions.exists():
        return sys.executable
    from tasks.upgrade import installation

    return installation.chosen(home)


def _start(home: Home, inherited: int, python: str) -> subprocess.Popen[bytes]:
    """Start the worker in its own session, so that it survives the terminal."""
    import subprocess  # 6 ms of every command, and most find a worker

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    output = os.open(home.log("worker"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            [python, "-P", "-m", "mlxq", "worker"],
            env=environment | {"MLXQ_HOME": str(home.root)},
            cwd=home.root,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=(inherited,),
        )
    finally:
        os.close(output)
