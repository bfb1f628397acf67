"""A small disk of its own, to be filled."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(place: Path, size: str) -> Generator[Path]:
    """Mount a disk of that size, such as 2m; needs root, or sudo that does not ask. Skips the test elsewhere."""
    if sys.platform != "linux":
        pytest.skip("tmpfs is Linux's")
    place.mkdir(exist_ok=True)
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    options = ["-t", "tmpfs", "-o", f"size={size},mode=0700,uid={os.getuid()}", "tmpfs", str(place)]
    try:
        subprocess.run([*sudo, "mount", *options], capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("this account may not mount a tmpfs")
    try:
        yield place
    finally:
        subprocess.run([*sudo, "umount", "-l", str(place)], check=True)


def fill(filler: Path) -> None:
    """Write until the disk is full."""
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        while os.write(descriptor, b"x" * 4096):
            pass
    except OSError:
        return
    finally:
        os.close(descriptor)
