"""The child that makes the environment of LiteLLM's proxy: uv installs by a lock that ships with mlxq.

As with an engine, every file is held to a hash, nothing is built, and the environment gets its name only after the
program in it has loaded all that it is made of (tasks/engines/environments.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from state import files
from state.errors import GatewayFailed, MlxqError
from tasks.engines import environments, install, installed
from tasks.front import plan as front
from tasks.front import proxy
from tasks.plan.environment import kept
from tasks.system.child import Report, answer

SIZE_BYTES = 500_000_000
"""Of the environment with its bytecode, measured on Linux; 130 MB of it are downloaded."""
LOAD_S = 300.0
"""Importing the proxy compiles 3,000 files the first time."""
KEPT = "The front was not installed; what was running keeps running."
HINT = "mlxq up front"


def work(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Make the environment and load the proxy in it. Returns {"litellm", "at", "downloaded_bytes", "size_bytes", …}."""
    folder = Path(request["folder"])
    with environments.hold(folder) as staging:
        install.require_room(folder, "The front", SIZE_BYTES)
        try:
            fetched = install.make(staging.folder, proxy.LOCK, report)
        except MlxqError as problem:
            raise of_front(problem) from problem
        report({"phase": "loading it once"})
        load(installed.python(staging.folder), folder.parent)
        proof = {
            "litellm": front.LITELLM,
            "at": time.time(),
            "downloaded_bytes": fetched,
            "size_bytes": files.size(staging.folder),
            **installed.interpreter(staging.folder),
        }
        files.replace_private(staging.folder / proxy.PROOF, json.dumps(proof, indent=1, sort_keys=True))
        staging.finish()
    return proof


def of_front(problem: MlxqError) -> MlxqError:
    """Return an installation's error as it concerns the front."""
    message = problem.message.replace("A package of the engine", "A package of the front")
    message = message.replace("the engine", "the front")
    return type(problem)(message, done=KEPT, hint=HINT if problem.hint == "mlxq engine list" else problem.hint)


def load(python: Path, folder: Path) -> None:
    """Have the program load the proxy once, which also writes its bytecode. Raises GatewayFailed."""
    command = [str(python), "-P", str(proxy.PROGRAM), str(folder), "0", "--prove"]
    environment = kept(os.environ) | front.quiet()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LOAD_S, check=False)
        problem = done.stderr.strip().splitlines()[-1:] if done.returncode else None
    except subprocess.TimeoutExpired:
        problem = [f"it took more than {LOAD_S:.0f} s"]
    if problem is not None:
        cause = problem[0][:300] if problem else "it said nothing"
        raise GatewayFailed(f"LiteLLM's proxy {front.LITELLM} does not load: {cause}", done=KEPT, hint=HINT)


if __name__ == "__main__":
    answer(work)
