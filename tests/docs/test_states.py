"""docs/states.md is what the tables of steps say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from state import job, service

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "states.md"


def test_the_page_is_up_to_date() -> None:
    argv = [sys.executable, "-m", "cogapp", "--check", "--diff", str(PAGE)]
    told = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)
    assert told.returncode == 0, told.stdout


def test_every_state_and_step_is_told() -> None:
    text = PAGE.read_text()
    for member in (*job.JobState, *job.JobEvent, *service.State, *service.ServiceEvent):
        assert member.meaning in text
