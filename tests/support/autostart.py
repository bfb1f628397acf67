"""A Mac for mlxq.autostart: a launchctl that misbehaves as the original does, and the unit it gets."""

from __future__ import annotations

import json
import os
import plistlib
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
from support import launchctl

from mlxq.autostart import launchd
from mlxq.autostart.unit import Unit
from state.paths import Home
from tasks.system import tool

HOME = Home(Path("/Users/ada/.mlxq"))
UID = os.getuid()
GUI, USER = f"gui/{UID}", f"user/{UID}"
UNIT = Unit(
    ["/Users/ada/.local/bin/mlxq", "worker", "--wait"],
    HOME,
    {"PATH": "/usr/bin:/bin", "MLXQ_HOME": "/Users/ada/.mlxq"},
    user_home=Path("/Users/ada"),
)


class Mac:
    """A machine that looks like a Mac to mlxq.autostart, with a launchctl that misbehaves as the original."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "launchd.json"
        self.unit = replace(UNIT, home=Home(folder / ".mlxq"), user_home=folder, user_id=UID)

    def set(self, **values: object) -> None:
        self.file.write_text(json.dumps(self.state() | values))

    def state(self) -> dict[str, Any]:
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def jobs(self) -> dict[str, Any]:
        return {name: job for name, job in self.state().get("jobs", {}).items() if not job["gone_at"]}


def make_mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mac:
    """Return a Mac whose launchctl is the fake one, with this process on it."""
    tools = {
        "launchctl": f'#!/bin/sh\nexec "{sys.executable}" -S "{launchctl.__file__}" "$@"\n',
        "plutil": "#!/bin/sh\nexit 0\n",
    }
    for name, text in tools.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
        monkeypatch.setitem(tool.MACOS_PATHS, name, str(tmp_path / name))
    made = Mac(tmp_path)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("FAKE_LAUNCHD", str(made.file))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLXQ_HOME", str(tmp_path / ".mlxq"))
    monkeypatch.setattr(launchd, "POLL_S", 0.05)
    monkeypatch.setattr(launchd, "STARTED_S", 0.1)
    return made


class KeptAlive:
    """What a property list describes, run as launchd does: started again whenever it ends, but not too often."""

    def __init__(self, unit: Unit) -> None:
        self.content: dict[str, Any] = plistlib.loads(launchd.text(unit))
        assert self.content["KeepAlive"]
        self.starts = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep)

    def _keep(self) -> None:
        while not self._over.is_set():
            self.starts, began = self.starts + 1, time.monotonic()
            self._process = subprocess.Popen(
                self.content["ProgramArguments"],
                env=self.content["EnvironmentVariables"],
                cwd=self.content["WorkingDirectory"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a worker is ended with its group
            )
            self._process.wait()
            self._over.wait(max(0.0, began + self.content["ThrottleInterval"] - time.monotonic()))

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._process.terminate()
        self._thread.join()
