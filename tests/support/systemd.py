"""systemd's own manager of a user's services, in a mount namespace where this machine counts as booted with systemd."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.mlxq_home import until

from mlxq.autostart import systemd

MANAGER = Path("/lib/systemd/systemd")
BEGIN = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system
exec "$0" --user --unit=basic.target
"""
"""systemd starts only where /run/systemd/system exists; systemctl connects to the socket in XDG_RUNTIME_DIR."""


@dataclass(frozen=True)
class UserManager:
    """A manager that runs, with the home folder of its user."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables of a login session."""
        return {"HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.home / "run")}

    def systemctl(self, *words: str) -> str:
        """Return what systemctl prints."""
        return subprocess.run(
            ["systemctl", "--user", *words],
            env=os.environ | self.environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    @property
    def starts(self) -> int:
        """How often the worker's unit was restarted."""
        return int(self.show("NRestarts"))

    def show(self, name: str) -> str:
        """Return a property of the worker's unit."""
        return self.systemctl("show", systemd.NAME, "--value", "--property", name).strip()


@contextmanager
def running(home: Path) -> Generator[UserManager]:
    """Yield a manager for a user whose home folder is `home`. Skips the test where there is no systemd or no root."""
    if os.geteuid() or not MANAGER.exists() or not shutil.which("unshare"):
        pytest.skip("a manager of systemd needs root, and systemd")
    manager = UserManager(home)
    (home / "run").mkdir(parents=True, mode=0o700)
    with (
        (home / "systemd.log").open("wb") as log,
        subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", BEGIN, str(MANAGER)],
            env={"PATH": os.environ["PATH"]} | manager.environment | {"SYSTEMD_LOG_TARGET": "console"},
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            until((home / "run" / "systemd" / "private").exists, 20)
            yield manager
        finally:
            process.terminate()  # it ends its units first
