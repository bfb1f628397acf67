"""The screens that people see most, of a home that never changes: its clock stands still, its Mac is a recording."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hub.model import make
from support import scene

from state import facts, keys, ledger, service, stack
from state.db import Database
from state.metrics import usage
from state.metrics.usage import Usage
from state.notify import notices, targets
from state.notify.targets import NotifyTarget
from tasks import kinds
from tasks.system import hardware

NOW = 1_700_000_000.0
"""When the home was last written to, in unix seconds; the commands look a minute later."""
MACHINE = Path(__file__).parents[1] / "fixtures" / "machines" / "m4-max-128.txt"
PID = 4242
FINDINGS = """
from mlxq.doctor import checks, rules
checks.run_checks = lambda place: [
    rules.passed("Machine", "Python 3.13.1"),
    rules.warning("Machine", "4.2 GB of disk are free", "mlxq prune"),
    rules.Finding("Worker", rules.Grade.FAIL, "The lock of the worker is stale.", "mlxq doctor --fix", "lock"),
]
"""
SETUP = f"""
import shutil, time
time.time = lambda: {NOW + 60}
from pathlib import Path
from tasks.system import hardware
recorded = Path({str(MACHINE)!r}).read_text()
hardware.detect = lambda: hardware.parse_fixture(recorded)
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 10**11, 9 * 10**11)
{FINDINGS}
"""
"""What is the same at every look: the time, the machine, its disk, what doctor finds."""
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "mlxq": (),
    "status": ("status",),
    "models": ("models",),
    "models-catalog": ("models", "--catalog"),
    "jobs": ("jobs",),
    "jobs-show": ("jobs", "show", "4"),
    "config-list": ("config", "list"),
    "doctor": ("doctor",),
    "setup-dry-run": ("setup", "--dry-run"),
    "setup-dry-run-fleet": ("setup", "--dry-run", "--intent", "agent-fleet"),
    "why": ("why",),
    "usage": ("usage",),
    "keys-list": ("keys", "list"),
    "notify-list": ("notify", "list"),
}


def furnish(db: Database) -> None:
    """Fill a home: three tiers of which one died, a pull under way, jobs that ended, weights, keys, usage."""
    with patch.object(os, "getpid", lambda: PID):
        scene.all_ready(db)
        scene.die(db, "fast")
    for tier, release, reused in (("standard", "rapid-mlx 0.16.10", 0.99), ("longctx", "vllm-mlx 0.6.0", 0.0)):
        service.update(db, tier, release=release, reused=reused)
    scene.beat(db)
    recorded = hardware.parse_fixture(MACHINE.read_text())
    facts.put(db, "machine", recorded.as_row())
    scene.succeed(db, "rotate")
    scene.fail(db)
    scene.pull(db)
    ledger.enqueue(db, kinds.new("bench", {"target": "standard"}))
    models = db.home.root / "models"
    make(models / "mlx-community--tiny-4bit@0123456")
    stack.set_weights(db, "hub:mlx-community/qwen3.5-9b", str(models / "mlx-community--tiny-4bit@0123456"))
    usage.add(
        db,
        [
            Usage("2023-11-14", "", tier, 120, 1, 2, 84_000, 9_600, 360.0, 66.0, 6.0, cached_tokens=cached)
            for tier, cached in (("fast", 63_000), ("longctx", 0), ("standard", 78_000))
        ],
    )
    targets.add(targets.file(db.home), NotifyTarget("ops", "webhook", "https://hooks.example/T0/B0", secret="x" * 24))
    targets.add(targets.file(db.home), NotifyTarget("phone", "ntfy", "https://ntfy.example/my-topic", always=True))
    for target in ("ops", "phone"):
        notices.begin(db, target)
    notices.delivered(db, "phone", 0)
    ledger.enqueue(db, kinds.new("notify", {"target": "ops"}), source="watchdog")
    db.run("UPDATE jobs SET error = 'The notification target ops answered with status 502.' WHERE kind = 'notify'")
    with patch.object(keys.time, "time", lambda: NOW - 86_400):
        keys.create(keys.file(db.home), "editor", tiers=("fast",), rpm=60)
        keys.create(keys.file(db.home), "night-batch", background=True)


def environment(hub: str, **more: str) -> dict[str, str]:
    """Give variables that are the same wherever the tests run; MLXQ_HOME comes from outside."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "MLXQ_HOME")}
    return kept | {"HF_ENDPOINT": hub, "TZ": "UTC", "LC_ALL": "C.UTF-8", "NO_COLOR": "1", "TERM": "xterm"} | more


class Screens:
    """A process that runs commands and returns their screens."""

    def __init__(self, hub: str) -> None:
        argv = [sys.executable, "-P", str(Path(__file__).with_name("screen_server.py")), SETUP]
        self._hub = hub
        self._server = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(hub), text=True
        )

    def close(self) -> None:
        """End the process."""
        self._server.communicate()

    def on_a_terminal(self, words: tuple[str, ...], columns: int) -> str:
        """Return the screen of a command on a terminal of this width, and the exit code."""
        done = self._run(words, columns)
        return _plain(f"{done['stdout'].replace(chr(13), '')}[exit {done['exit']}]\n")

    def in_a_pipe(self, words: tuple[str, ...]) -> str:
        """Return what a command without a terminal writes to stdout and to stderr, and the exit code."""
        done = self._run(words, None, COLUMNS="40")
        return _plain(f"{done['stdout']}[stderr]\n{done['stderr']}[exit {done['exit']}]\n")

    def _run(self, words: tuple[str, ...], columns: int | None, **more: str) -> dict[str, Any]:
        assert self._server.stdin
        assert self._server.stdout
        request = {"argv": words, "env": environment(self._hub, **more), "columns": columns}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def _plain(text: str) -> str:
    """Put fixed words where every run has its own: the home's place and the worker's pid."""
    text = text.replace(os.environ["MLXQ_HOME"], "/home/you/.mlxq").replace(os.environ["HOME"], "/home/you")
    return re.sub(rf"pid {os.getpid()}\b", "pid 4141", text)
