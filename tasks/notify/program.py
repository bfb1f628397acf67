"""Run the program of a target: bounded in time, without the worker's variables, its group killed when it hangs."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

from state.errors import MlxqError, Offline

LIMIT_S = 30.0
PASSED_ON = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")
"""Variables of the worker that the program gets; what else is in the worker's environment may be a secret."""


def run(target: str, argv: Sequence[str], body: bytes, variables: Mapping[str, str], limit_s: float = LIMIT_S) -> None:
    """Run a program with `body` on its standard input.

    Raises Offline when it fails or takes longer than `limit_s` seconds, and MlxqError when there is no such program.
    """
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment | dict(variables),
            cwd="/",
            start_new_session=True,
        )
    except OSError as problem:
        raise MlxqError(
            f"The program of the notification target {target} cannot be started: {problem.strerror}.",
            hint=f"mlxq notify remove {target}",
        ) from None
    try:
        process.communicate(body, timeout=limit_s)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise Offline(
            f"The program of the notification target {target} ran longer than {limit_s:g} s.",
            done="It was killed.",
        ) from None
    if process.returncode:
        raise Offline(f"The program of the notification target {target} ended with exit code {process.returncode}.")
