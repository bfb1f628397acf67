"""First light of a version that is not in use yet: the child runs in its environment, started by the version before it.

It copies the home, brings the copy's state.db to its own schema, and sets the built-in model up in it as a user would:
a worker, an engine and a gateway of its own, on spare ports, which answer one chat. Weights and engines are the
home's own and not copied. So the request's and the result's fields are what two versions agree on, and never change.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from state import settings
from state.db import SCHEMA_VERSION, Database, create_private, open_database
from state.errors import MlxqError
from state.paths import Home
from state.settings import TIER_PORTS
from tasks.plan.environment import kept
from tasks.system import ports
from tasks.system.child import Report, answer

FOLDER = "try"
COPIED = ("config.yaml", "secrets.env", "keys.json")
EMPTIED = (
    *("job_deps", "jobs", "events", "services", "tiers", "engines", "worker"),
    *("desired", "schedule_runs", "schedules", "deliveries", "notices", "batch_lines", "batches"),
)
"""Tables whose rows the copy's worker would act on, where they exist."""
MODEL = "smollm2-135m"
QUESTION = "What is the capital of France?"
STEP_S = 400.0
"""Seconds that setting up, or one answer, may take: the model is fetched where it is not here."""


def folder(home: Home) -> Path:
    """Return the home that the new version is tried in."""
    return home.root / FOLDER


def work(request: dict[str, Any], report: Report) -> dict[str, Any]:
    """Try this version; return {"schema", "answer", "seconds"}.

    `request`: {"home"}. Raises MlxqError with what failed.
    """
    began = time.monotonic()
    real = Home(Path(request["home"]))
    trial = Home(folder(real))
    report({"phase": "trying it on a copy"})
    clear(real)
    try:
        _copy(real, trial)
        _own_places(real, trial)
        _mlxq(trial, "doctor", "--self-test")
        _mlxq(trial, "setup", "--accept-defaults", "--model", MODEL)
        text = _mlxq(trial, "chat", QUESTION)
        if not text.strip():
            raise MlxqError("The new version answered nothing.")
    finally:
        clear(real)
    return {"schema": SCHEMA_VERSION, "answer": text.strip(), "seconds": round(time.monotonic() - began, 1)}


def clear(real: Home) -> None:
    """End what runs in the copy, and delete it. A worker whose home was deleted ends its services itself."""
    trial = Home(folder(real))
    if trial.database.exists():
        _run(trial, "down")
    shutil.rmtree(trial.root, ignore_errors=True)


def _copy(real: Home, trial: Home) -> None:
    """Copy the state and the settings. Raises MlxqError where state.db cannot be brought to this version's schema."""
    trial.make()
    create_private(trial.database)
    source = sqlite3.connect(f"{real.database.as_uri()}?mode=ro", uri=True)
    with closing(source), closing(sqlite3.connect(trial.database)) as target:
        source.backup(target)
    for name in COPIED:
        if (real.root / name).exists():
            shutil.copy2(real.root / name, trial.root / name)
    with closing(open_database(trial)) as db:
        _empty(db)


def _empty(db: Database) -> None:
    """Delete what the copy's worker would act on."""
    db.run("PRAGMA foreign_keys=OFF")
    tables = {row[0] for row in db.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table in tables & set(EMPTIED):
        db.run(f"DELETE FROM {table}")  # noqa: S608 (our own names)
    db.run("DELETE FROM facts WHERE name = 'stack'")


def _own_places(real: Home, trial: Home) -> None:
    """Set ports of its own, no page and no cloud in the copy, and the home's weights and engines."""
    models = settings.load(real).models(real)
    for name, value in _places(models).items():
        settings.write(trial, name, value)
    real.engines.mkdir(mode=0o700, exist_ok=True)  # its setup may install one, where this version brings none
    trial.engines.symlink_to(real.engines)


def _places(models: Path) -> Mapping[str, Any]:
    base = ports.spare()
    while base + TIER_PORTS >= ports.LAST or not all(ports.free(base + offset) for offset in range(TIER_PORTS)):
        base = ports.spare()
    return {
        "litellm-port": ports.spare(),
        "tier-port-base": base,
        "page-port": 0,
        "gateway-host": "127.0.0.1",
        "openrouter-key": "",
        "model-dir": str(models),
    }


def _mlxq(trial: Home, *words: str) -> str:
    """Run a command of this version in the copy, and return what it printed. Raises MlxqError with its last words."""
    ran = _run(trial, *words)
    if ran.returncode:
        lines = [line for line in ran.stderr.splitlines() if line and not line.startswith("Next: ")] or ["nothing"]
        raise MlxqError(f"`mlxq {words[0]}` failed in the trial: {lines[-1].removeprefix('Error: ')}")
    return ran.stdout


def _run(trial: Home, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-P", "-m", "mlxq", *words]
    network = {name: value for name, value in os.environ.items() if name.upper().startswith(("UV_", "PIP_", "HF_"))}
    proxies = {name: value for name, value in os.environ.items() if name.upper().endswith("_PROXY")}
    environment = kept(os.environ) | network | proxies | {"MLXQ_HOME": str(trial.root), "HF_HUB_OFFLINE": "1"}
    try:
        return subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=STEP_S, check=False
        )
    except subprocess.TimeoutExpired as problem:
        raise MlxqError(f"`mlxq {words[0]}` did not end within {STEP_S:.0f} s in the trial.") from problem


if __name__ == "__main__":
    answer(work)
