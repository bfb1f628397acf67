"""Runs commands in forks of one process that has imported what they need; `golden.Screens` starts and asks it.

A request is a line of JSON, `{"argv": […], "env": {…}, "columns": 80 or null for pipes}`; so is its answer,
`{"stdout": …, "stderr": …, "exit": 0}`. What is the same for every screen is said in SETUP, which runs first.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import pty
import struct
import sys
import termios
import time
import traceback
from typing import Any

PRELOADED = (
    "mlxq.cli",
    "state.db",
    "state.ledger",
    "state.stack",
    "state.service",
    "catalog.load",
    "mlxq.status_report",
    "yaml",
)
"""What most commands import; a fork has them at no cost."""
ROWS = 50


def main() -> None:
    """Answer one request after another, until stdin ends."""
    exec(sys.argv[1], {})  # SETUP of golden.py
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run one command and return what it printed and its exit code."""
    if request["columns"] is None:
        read_out, write_out = os.pipe()
        read_err, write_err = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(write_out, 1)
            os.dup2(write_err, 2)
            run(request)
        os.close(write_out)
        os.close(write_err)
        stdout, stderr = read_all(read_out), read_all(read_err)
    else:
        pid, terminal = pty.fork()
        if pid == 0:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, request["columns"], 0, 0))
            run(request)
        stdout, stderr = read_all(terminal), ""
    return {"stdout": stdout, "stderr": stderr, "exit": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}


def read_all(descriptor: int) -> str:
    """Return what is written until the other end is closed."""
    pieces: list[bytes] = []
    try:
        while piece := os.read(descriptor, 1 << 16):
            pieces.append(piece)
    except OSError:  # Linux's way to say that a terminal has no other end any more
        pass
    os.close(descriptor)
    return b"".join(pieces).decode()


def run(request: dict[str, Any]) -> None:
    """Become the command (in the fork)."""
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    if request["columns"] is None:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    code = 70
    try:
        from mlxq import cli

        code = cli.run(request["argv"])
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 (a fork must not go back into the server's loop)
        traceback.print_exc()
    os._exit(code)


if __name__ == "__main__":
    main()
