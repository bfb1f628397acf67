"""Run the system's own tools, so that their words are English and a hang ends.

On macOS by absolute path: launchd starts the worker with whatever PATH was kept from a shell, which may lack /usr/sbin.
With LC_ALL=C, as numbers follow the locale otherwise (`sysctl vm.swapusage` prints 2048,00M on a German Mac,
powerlevel9k issue 1108).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from state.classes import dataclass
from state.errors import MlxqError

MACOS_PATHS = {
    "caffeinate": "/usr/bin/caffeinate",
    "ibv_devices": "/usr/bin/ibv_devices",
    "ioreg": "/usr/sbin/ioreg",
    "launchctl": "/bin/launchctl",
    "lsof": "/usr/sbin/lsof",
    "osascript": "/usr/bin/osascript",
    "plutil": "/usr/bin/plutil",
    "pmset": "/usr/bin/pmset",
    "rdma_ctl": "/usr/bin/rdma_ctl",
    "sysctl": "/usr/sbin/sysctl",
    "sw_vers": "/usr/bin/sw_vers",
    "system_profiler": "/usr/sbin/system_profiler",
}
MISSING = 127
TIMED_OUT = 124
"""Exit codes in place of an answer, as the shell's and timeout(1)'s."""


@dataclass(frozen=True)
class ToolOutput:
    """What a tool answered."""

    code: int
    """Its exit code; MISSING when it is not installed, TIMED_OUT when it did not end."""
    stdout: str
    stderr: str

    @property
    def message(self) -> str:
        """Return what it said, errors first."""
        return (self.stderr.strip() or self.stdout.strip()) or "nothing"


def path(name: str) -> str | None:
    """Return where a tool is; None when it is not installed."""
    fixed = MACOS_PATHS.get(name) if sys.platform == "darwin" else None
    return fixed or shutil.which(name)


def run(name: str, *arguments: str, timeout_s: float = 30.0) -> ToolOutput:
    """Run a tool to its end. Never raises: a missing tool and a hang are exit codes of the answer."""
    program = path(name)
    if program is None:
        return ToolOutput(MISSING, "", f"{name} is not installed")
    try:
        done = subprocess.run(
            [program, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
            env=os.environ | {"LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return ToolOutput(TIMED_OUT, "", f"{name} did not answer within {timeout_s:.0f} s")
    except OSError as problem:
        return ToolOutput(MISSING, "", f"{name} could not be run: {problem.strerror}")
    return ToolOutput(done.returncode, done.stdout, done.stderr)


def ensure(name: str, *arguments: str, timeout_s: float = 60.0) -> str:
    """Run a tool that must succeed; return its standard output. Raises MlxqError with what it said."""
    output = run(name, *arguments, timeout_s=timeout_s)
    if output.code:
        command = " ".join((name, *arguments))
        raise MlxqError(f"`{command}` failed ({output.code}): {output.message}", hint=command)
    return output.stdout
