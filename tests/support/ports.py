"""Ports for tests: two processes never get the same one.

The kernel hands out a port again as soon as whoever found it free has closed it, to a connection too. So each process
that runs tests takes a block of ports for as long as it lives, below those that the kernel hands out (32768 and up on
Linux, 49152 and up on macOS), and finds its ports there.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

FIRST, LAST, BLOCK = 20_000, 32_000, 200
_locks: list[int] = []
"""Kept open: the kernel lets go of a lock when its process ends, however it ends."""


def free_port() -> int:
    """Return a port that no one listens on. What can be handed a bound socket instead is safer with that."""
    return free_run(1)


def free_run(count: int) -> int:
    """Return the first of `count` ports in a row that no one listens on."""
    block = _block()
    for _ in range(BLOCK):
        run = [next(_numbers()) for _ in range(count)]
        if run[0] + count <= block + BLOCK and all(map(_is_free, run)):
            return run[0]
    raise AssertionError(f"no {count} free ports in a row from {block} on")


@functools.cache
def _block() -> int:
    """Take the first block that no other process has. Return its first port."""
    folder = Path(tempfile.gettempdir()) / f"mlxq-test-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for first in range(FIRST, LAST, BLOCK):
        lock = os.open(folder / str(first), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            _locks.append(lock)
            return first
    raise AssertionError(f"every block of ports from {FIRST} to {LAST} is taken")


@functools.cache
def _numbers() -> Iterator[int]:
    """Return the block's ports in turn, so that one is not used again at once."""
    return itertools.cycle(range(_block(), _block() + BLOCK))


def _is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
