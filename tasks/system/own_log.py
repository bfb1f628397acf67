"""A process's own log, opened again when the file was deleted: what it writes would be lost and fill the disk."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

LOOK_S = 2.0
OUTPUTS = (1, 2)


def ensure(log: Path) -> bool:
    """Open the log again if the file that standard error goes to was deleted; return whether that was so.

    A terminal or a pipe is left as it is. Raises OSError where the log cannot be made.
    """
    if os.fstat(OUTPUTS[-1]).st_nlink:
        return False
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        for output in OUTPUTS:
            if not os.fstat(output).st_nlink:
                os.dup2(descriptor, output)
    finally:
        os.close(descriptor)
    return True


def keep(log: Path) -> None:
    """Look after the log of this process in a thread, as long as the process lives."""
    threading.Thread(target=_keep, args=(log,), name="own-log", daemon=True).start()


def keep_of_service() -> None:
    """Look after the log of the service that this process is, by the marks that mlxq gave it."""
    if "MLXQ_HOME" in os.environ and "MLXQ_SERVICE" in os.environ:
        keep(Path(os.environ["MLXQ_HOME"], "logs", f"{os.environ['MLXQ_SERVICE']}.log"))


def _keep(log: Path) -> None:
    while True:
        time.sleep(LOOK_S)
        try:
            ensure(log)
        except OSError:  # the disk is full, or the home is going away
            continue
