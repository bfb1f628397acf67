"""The worker in the background: started when a command needs one and none lives, never twice.

A command that starts the worker takes run/starter.lock and lets the worker inherit it. So the lock is held from before
the worker exists until it is dead, whoever else looks meanwhile; there is nothing to wait for and nothing to guess.
A worker that launchd, systemd or a person started holds run/worker.lock alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from state import lock
from state.paths import Home

STOP_LIMIT_S = 20.0
"""A worker gives running jobs 12 s to return their work."""


def ensure(home: Home) -> subprocess.Popen[bytes] | None:
    """Make sure that a worker lives or is starting; give the process when this call started it."""
    with _starter_lock(home).open("a") as file:
        # who holds it now starts a worker, or is one
        if not lock.take(file) or lock.held(home.worker_lock):
            return None
        return _start(home, file.fileno())


def stop(home: Home, owner: str) -> bool:
    """End the worker `owner` (boot/pid/start) if a command started it; False when it is somebody else's to end."""
    from tasks.system import process

    if not lock.held(_starter_lock(home)):
        return False
    identity = process.decode(owner)
    process.send(identity, signal.SIGTERM)
    return process.wait(identity, STOP_LIMIT_S)


def _starter_lock(home: Home) -> Path:
    return home.run / "starter.lock"


def _start(home: Home, inherited: int) -> subprocess.Popen[bytes]:
    """Start the worker in a session of its own, so that closing the terminal does not end it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    output = os.open(home.log("worker"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "mlxq", "worker"],
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
