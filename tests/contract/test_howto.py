"""What docs/add-a-task.md and docs/add-a-command.md have their reader write works as it is written."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("mlxq", "tasks", "catalog", "state")


def examples(page: str) -> list[str]:
    found = re.findall(r"^ *```python\n(.*?)^ *```$", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    return [re.sub("^   ", "", text, flags=re.MULTILINE) for text in found]


def insert(file: Path, before: str, text: str) -> None:
    was = file.read_text()
    assert was.count(before) == 1
    file.write_text(was.replace(before, text + before))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Give a copy of mlxq with the reader's task and command in it."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    kind, task = examples("add-a-task.md")
    (command,) = examples("add-a-command.md")
    (tmp_path / "tasks" / "touch.py").write_text(task)
    (tmp_path / "mlxq" / "commands" / "touch.py").write_text(command)
    insert(tmp_path / "tasks" / "kinds.py", '        Kind("prune_jobs"', f"        {kind.strip()},\n")
    insert(tmp_path / "tasks" / "registry.py", "from tasks.queue import QUEUES", "from tasks import touch\n")
    insert(tmp_path / "mlxq" / "cli.py", '        "jobs": ', '        "touch": "Read the weights in FOLDER.",\n')
    return tmp_path


def test_the_examples_work(copy: Path) -> None:
    folder = copy / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(2048))
    home = copy / "home"
    world = os.environ | {"MLXQ_HOME": str(home), "PYTHONPATH": str(copy)}
    argv = [sys.executable, "-P", "-m", "mlxq", "touch", str(folder)]

    done = subprocess.run(argv, cwd=copy, env=world, capture_output=True, text=True, check=False, timeout=60)
    os.kill(int((home / "run" / "worker.lock").read_text()), signal.SIGTERM)

    assert done.returncode == 0, done.stderr
    assert "2 KB are in memory.\nNext: mlxq status\n" in done.stderr
