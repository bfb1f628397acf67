"""From nothing to the first token: set-up, engine starts, their memory, and the command line's start.

    uv run python benchmarks/first_light.py

Real engines and a real gateway in a home that is thrown away; without a Hub in reach, on the built-in model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import NOTHING, Case, in_turns

from state import event
from state.db import Database, read_database
from state.paths import Home

MLXQ = [sys.executable, "-P", "-m", "mlxq"]
PORTS = {"MLXQ_TIER_PORT_BASE": "27800", "MLXQ_LITELLM_PORT": "27810", "MLXQ_PAGE_PORT": "0"}
ENGINE_MB = 350
"""What an engine with the built-in model may keep resident after its load."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder, "home"))
        env = os.environ | PORTS | {"MLXQ_HOME": str(home.root)}
        try:
            figures = set_up(home, env) | command_line(env)
        finally:
            subprocess.run([*MLXQ, "down"], env=env, check=False, capture_output=True)
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    for name, figure in figures.items():
        print(f"{name:<44} {figure}")


def set_up(home: Home, env: dict[str, str]) -> dict[str, str]:
    """Set up once from nothing, once again, and read the figures from the events."""
    began, wall = time.time(), time.perf_counter()
    subprocess.run([*MLXQ, "setup", "--accept-defaults"], env=env, check=True, capture_output=True)
    whole = time.perf_counter() - wall
    status = json.loads(subprocess.run([*MLXQ, "status", "--json"], env=env, check=True, capture_output=True).stdout)
    db = read_database(home)
    figures = {"set-up, nothing there -> first token": f"{first_token_at(db) - began:.1f} s"}
    figures["set-up, nothing there -> all verified"] = f"{whole:.1f} s"
    for service in status["services"]:
        figures[f"{service['name']}: started -> ready"] = f"{start_s(db, service['name']):.1f} s"
        limit = f"  (at most {ENGINE_MB})" if service["kind"] == "engine" else ""
        figures[f"{service['name']}: resident"] = f"{service['memory_mb']:.0f} MB{limit}"
    db.close()
    wall = time.perf_counter()
    subprocess.run([*MLXQ, "setup", "--accept-defaults"], env=env, check=True, capture_output=True)
    return figures | {"set-up again": f"{time.perf_counter() - wall:.1f} s"}


def first_token_at(db: Database) -> float:
    """Give when the first engine made its first token, in unix seconds."""
    return min(one.at for one in event.of_service(db, None) if one.name == "became_ready" and one.service != "gateway")


def start_s(db: Database, service: str) -> float:
    """Give the seconds from spawn to first token, or first answer."""
    at = {one.name: one.at for one in event.of_service(db, service)}
    return at["became_ready"] - at["spawned"]


def command_line(env: dict[str, str]) -> dict[str, str]:
    """Time the commands a person types most, beside Python doing nothing."""
    cases = [NOTHING, *(Case(f"mlxq {word}", [*MLXQ, word]) for word in ("--help", "status", "jobs"))]
    medians = in_turns(cases, 7, env)
    nothing = medians[NOTHING.name]
    return {name: f"{taken.wall:.3f} s  ({taken.cpu / nothing.cpu:.1f}x)" for name, taken in medians.items()}


if __name__ == "__main__":
    main()
