"""A person who uses mlxq in a fresh home, on ports of its own: every program is real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.ports import free_run

from state import worker as workers
from state.db import read_database
from state.paths import Home
from tasks.system import process

QUESTION = "What is the capital of France?"


class User:
    """A person at a terminal, in a fresh home on ports of its own."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root)
        base = free_run(12)  # ten for tiers, one for the gateway, one for the page
        self.gateway = base + 10
        self.environment = {name: text for name, text in os.environ.items() if not name.startswith("MLXQ_")} | {
            "MLXQ_HOME": str(root),
            "MLXQ_TIER_PORT_BASE": str(base),
            "MLXQ_LITELLM_PORT": str(self.gateway),
            "MLXQ_PAGE_PORT": str(base + 11),
        }

    def run(self, *words: str, code: int = 0) -> str:
        """Run a command and give what it printed; its exit code must be `code`."""
        argv = [sys.executable, "-P", "-m", "mlxq", *words]
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        return json.loads(self.run("status", "--json"))

    def services(self) -> dict[str, dict[str, Any]]:
        return {each["name"]: each for each in self.status()["services"]}

    def leave(self) -> None:
        """Put everything down, the worker last."""
        self.run("down")
        db = read_database(self.home)
        there = workers.current(db)
        db.close()
        if there:
            process.stop(process.decode(there.owner), 20.0)
