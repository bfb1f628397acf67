"""A log that is deleted under its writer, and the limit of open files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WRITER = """
import os, sys, pathlib
from tasks.system import own_log
log = pathlib.Path(sys.argv[1])
print("before", flush=True)
log.unlink()
assert own_log.ensure(log) is True
assert own_log.ensure(log) is False
print("out", flush=True)
print("err", file=sys.stderr, flush=True)
"""
LIMITS = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
from tasks.system import open_files
print(*open_files.raise_limit(2048), open_files.too_low({hard}))
"""


def test_a_log_that_was_deleted_is_opened_again(tmp_path: Path) -> None:
    log = tmp_path / "fast.log"
    with log.open("ab") as output:
        subprocess.run([sys.executable, "-c", WRITER, str(log)], stdout=output, stderr=output, check=True)

    assert log.read_text() == "out\nerr\n"
    assert log.stat().st_mode & 0o077 == 0


def test_a_pipe_is_left_as_it_is() -> None:
    code = "from pathlib import Path; from tasks.system import own_log; print(own_log.ensure(Path('/nowhere/x.log')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_soft_limit_is_raised_as_far_as_the_hard_one_allows() -> None:
    """Hard limits up to 4096: mlx-lm lowers that of a process which imports it, so of these tests', for good."""
    told = [
        subprocess.run(
            [sys.executable, "-c", LIMITS.format(soft=soft, hard=hard)], capture_output=True, text=True, check=True
        ).stdout.split()
        for soft, hard in ((256, 4096), (256, 1024), (3000, 4096))
    ]

    assert told == [["2048", "4096", "False"], ["1024", "1024", "True"], ["3000", "4096", "False"]]
