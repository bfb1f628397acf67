"""A person at a terminal: mlxq on a real pseudo-terminal, on a Mac that was recorded, with a Hub that answers.

No worker is started: what a command puts in stays to be read. The machine is a recording because a Mac cannot be had,
its disk has the size that is named; the Hub is any server on loopback, because set-up asks only whether one answers.
"""

from __future__ import annotations

import http.server
import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pexpect

ROOMY = 900 * 10**9
MACHINES = Path(__file__).parents[1] / "fixtures" / "machines"
PROGRAM = f"""
import shutil, sys
from pathlib import Path
from mlxq import cli, worker_process
from tasks.system import hardware
recorded, free = Path({str(MACHINES)!r}, sys.argv[1] + ".txt").read_text(), int(sys.argv[2])
hardware.detect = lambda: hardware.parse_fixture(recorded)
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(2 * free, free, free)
worker_process.ensure = lambda home: None
sys.exit(cli.run(sys.argv[3:]))
"""


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Say nothing."""


@contextmanager
def a_hub() -> Generator[str]:
    """Answer HEAD on loopback; give the address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def argv(machine: str, *words: str, free_bytes: int = ROOMY) -> list[str]:
    """Give the command line of mlxq on a machine of tests/fixtures/machines."""
    return [sys.executable, "-P", "-c", PROGRAM, machine, str(free_bytes), *words]


def environment(home: Path, hub: str, **more: str) -> dict[str, str]:
    """Give the variables of a person's shell."""
    return os.environ | {"MLXQ_HOME": str(home), "HF_ENDPOINT": hub, "TERM": "xterm", "NO_COLOR": "1"} | more


def typing(
    home: Path,
    hub: str,
    *words: str,
    machine: str = "m4-max-128",
    columns: int = 80,
    free_bytes: int = ROOMY,
    **variables: str,
) -> pexpect.spawn[str]:
    """Type a command on a terminal of so many columns."""
    program, *rest = argv(machine, *words, free_bytes=free_bytes)
    return pexpect.spawn(
        program,
        rest,
        env=environment(home, hub, **variables),
        dimensions=(24, columns),
        encoding="utf-8",
        timeout=30,
        preexec_fn=_hear_ctrl_c,
    )


def _hear_ctrl_c() -> None:
    """Take SIGINT as a shell's foreground command does; tests that run in the background inherit that it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupt(screen: pexpect.spawn[str]) -> tuple[int | None, str]:
    """Press Ctrl-C until the command ends, as a person would; give the exit code and what was printed last.

    One press can be lost: Python looks for signals, then reads the terminal, and a signal between the two waits for the
    next key.
    """
    for _ in range(6):
        screen.sendintr()
        if screen.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=5) == 0:
            break
    screen.close()
    return screen.exitstatus, screen.before or ""


def ends(screen: pexpect.spawn[str]) -> tuple[int | None, str]:
    """Wait for the end; give the exit code and what was printed last."""
    screen.expect(pexpect.EOF)
    screen.close()
    return screen.exitstatus, screen.before or ""
