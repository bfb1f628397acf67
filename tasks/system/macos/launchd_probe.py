"""A program that launchd runs once for `mlxq doctor --self-test`: what a job of launchd's may do, as one JSON line."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import sys
from pathlib import Path


def scan(folder: str) -> str:
    """Return why a folder cannot be read; empty when it can. macOS asks no user for a job in the background (TCC)."""
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
    except OSError as problem:
        return problem.strerror or type(problem).__name__
    return ""


def main(folder: str) -> None:
    """Print what this process sees."""
    umask = os.umask(0o077)
    answer = {
        "scan": scan(folder),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "umask": umask,
        "appends": bool(fcntl.fcntl(1, fcntl.F_GETFL) & os.O_APPEND),
        "temporary": str(Path(os.environ.get("TMPDIR", "/tmp"))),  # noqa: S108 - what launchd gives it
    }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
