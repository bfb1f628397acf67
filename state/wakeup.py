"""Wake-ups between processes: one datagram after a commit, no polling.

The worker listens on one socket; each watching command on one of its own. What a datagram says is ignored, so it can
wake and nothing more; a lost one costs the listener's guard time, never a job. A WAL file cannot be watched instead:
its write event comes before the commit can be seen.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path
from typing import Self

from state.errors import MlxqError
from state.paths import Home

LONGEST_SOCKET_PATH = 100
"""macOS holds a socket's path to 104 bytes (sys/un.h)."""


def folder(home: Home) -> Path:
    """Return the folder of the sockets: run/, or a private one under /tmp when that path is too long.

    Not $TMPDIR: a worker that launchd started has another one than a shell.
    """
    if len(os.fsencode(home.wake)) + 24 <= LONGEST_SOCKET_PATH:
        return home.run
    import hashlib  # OpenSSL takes 6 ms of every command

    digest = hashlib.sha256(str(home.root).encode()).hexdigest()[:16]
    return Path("/tmp", f"mlxq-{os.getuid()}-{digest}")  # noqa: S108 (0700, and refused when it is not ours)


def wake(home: Home) -> None:
    """Wake the worker, when there is one."""
    _send(folder(home) / home.wake.name)


def announce(home: Home) -> None:
    """Wake every watching command; forget the sockets of those that are gone."""
    for path in folder(home).glob("watch-*.sock"):
        if not _send(path):
            path.unlink(missing_ok=True)


def _send(path: Path) -> bool:
    """Send one byte without waiting; False when no process listens there any more.

    It never raises, as it comes after a commit that stands. A full queue (EAGAIN, on macOS ENOBUFS) wakes its
    listener anyhow.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(b"!", str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except OSError:
        return True
    return True


class Listener:
    """A bound socket to wait on; closing it removes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = self._bound()

    def _bound(self) -> socket.socket:
        own(self.path.parent)
        self.path.unlink(missing_ok=True)
        fresh = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        fresh.bind(str(self.path))
        self.path.chmod(0o600)
        self._file = self.path.stat()
        return fresh

    def ensure(self) -> bool:
        """Listen at the path again if its file was deleted or is another; return whether that was so.

        Raises OSError, MlxqError.
        """
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(self._file, self.path.stat()):
                return False
        before, self.socket = self.socket, self._bound()
        before.close()
        return True

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for a wake-up; take all that are there. False when the time passed without one."""
        self.socket.settimeout(timeout_s)
        try:
            self.socket.recv(16)
        except (TimeoutError, BlockingIOError):
            return False
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self.socket.recv(16):
                pass
        return True

    def close(self) -> None:
        """Stop listening."""
        self.path.unlink(missing_ok=True)
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def own(path: Path) -> None:
    """Make the folder. Raises MlxqError when another process made it first: /tmp is shared."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        raise MlxqError(f"{path} belongs to another user.", hint="export MLXQ_HOME=/a/shorter/path")


def worker_listener(home: Home) -> Listener:
    """Return the worker's socket; only the holder of the worker's lock may call this."""
    return Listener(folder(home) / home.wake.name)


def watcher(home: Home, tag: str = "") -> Listener:
    """Return a socket for one watching command."""
    return Listener(folder(home) / f"watch-{os.getpid()}{tag}.sock")
