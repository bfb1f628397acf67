"""What `mlxq doctor --fix` repairs: only what loses no data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mlxq.doctor import checks
from state import files
from state.db import open_database
from state.errors import Busy
from state.paths import Home


def modes(home: Home) -> str:
    """Make the home unreadable for other users."""
    private = [home.root, home.logs, home.run, *(home.root / name for name in checks.PRIVATE)]
    for path in (path for path in private if path.exists() and checks.mode(path) & 0o077):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return f"Made {home.root} readable by you only."


def sockets(home: Home) -> str:
    """Remove the sockets without a listener."""
    stale = checks.stale_sockets(home)
    for path in stale:
        path.unlink(missing_ok=True)
    return f"Removed {len(stale)} stale {'socket' if len(stale) == 1 else 'sockets'}."


def database(home: Home) -> str:
    """Move a damaged state.db aside with what belongs to it, and start a new one. Raises Busy while a worker has it."""
    if files.locked(home.worker_lock):
        pid = home.worker_lock.read_text().strip()
        raise Busy(
            f"A worker (pid {pid}) still has {home.database} open.",
            done="Nothing was moved.",
            hint=f"kill {pid}   (then mlxq doctor --fix again)",
        )
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = home.root / f"state.db.damaged-{stamp}"
    for ending in ("", "-wal", "-shm"):
        file = Path(f"{home.database}{ending}")
        if file.exists():
            file.replace(f"{aside}{ending}")
    open_database(home).close()
    return f"Moved {home.database.name} to {aside} and started a new one."


FIXES: Mapping[str, Callable[[Home], str]] = {"modes": modes, "sockets": sockets, "database": database}
"""Every fix, by the name that findings carry; each returns a sentence on what it did."""
ASKED = frozenset({"database"})
"""Fixes that are confirmed first."""
