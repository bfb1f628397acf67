"""The serving gateway hands its listening sockets to its successor, over a unix socket (SCM_RIGHTS, unix(7)).

Both processes then hold the very same sockets. What nobody has accepted yet waits in one queue that belongs to both,
so none of it is lost, whichever of them closes first. Two sockets with SO_REUSEPORT would lose some: on Linux each
has a queue of its own, which is reset with it, and macOS gives all to the one that was bound last.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from state import wake
from state.paths import Home

PATIENCE_S = 5.0
"""How long either side waits for the other's next word."""
_WHO, _GIVE, _SERVING, _SOCKETS = b"who", b"give", b"serving", b"sockets"
_MOST = 8
"""Sockets a gateway listens on: two, loopback and the address that was opened."""
_LONGEST = 1024


@dataclass(frozen=True)
class Holder:
    """Who serves."""

    pid: int
    generation: int


def place(home: Home) -> Path:
    """Give the path of the unix socket, which leads to the gateway that serves; its folder is the user's alone."""
    return wake.folder(home) / "gateway.sock"


def holder(home: Home) -> Holder | None:
    """Ask who serves; None when nobody answers there."""
    try:
        with _connected(home) as line:
            line.sendall(_WHO)
            return Holder(**json.loads(line.recv(_LONGEST)))
    except (OSError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def succession(home: Home) -> Generator[list[socket.socket]]:
    """Hold the listening sockets of the gateway that serves; [] where none does.

    It stops listening at the end of the block, and goes on as if nothing had been when the block raises or this
    process dies in it. Raises OSError when it does not answer.
    """
    try:
        line = _connected(home)
    except (FileNotFoundError, ConnectionRefusedError):
        yield []
        return
    with line:
        line.sendall(_GIVE)
        _, descriptors, _, _ = socket.recv_fds(line, _LONGEST, _MOST)
        yield [socket.socket(fileno=descriptor) for descriptor in descriptors]
        line.sendall(_SERVING)


def _connected(home: Home) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(PATIENCE_S)
    try:
        line.connect(str(place(home)))
    except OSError:
        line.close()
        raise
    return line


class Door(threading.Thread):
    """Answers at `place` as the gateway that serves, and gives `sockets` away; `leave` is called when they are taken.

    It holds the connection until the successor serves or is gone, as macOS may lose descriptors whose sender closes
    before they are received (CPython issue 58874).
    """

    def __init__(
        self, home: Home, generation: int, sockets: Sequence[socket.socket], leave: Callable[[], None]
    ) -> None:
        super().__init__(name="succession", daemon=True)
        self._me = Holder(os.getpid(), generation)
        self._sockets = sockets
        self._leave = leave
        self._listener = _opened(place(home))

    def run(self) -> None:
        """Meet one peer after another, until one has taken over."""
        with self._listener:
            while not self._met():
                pass
        self._leave()

    def _met(self) -> bool:
        """Wait for a peer, and tell whether it serves now."""
        line, _ = self._listener.accept()
        with line, contextlib.suppress(OSError):
            line.settimeout(PATIENCE_S)
            return self._meet(line)
        return False

    def _meet(self, line: socket.socket) -> bool:
        """Tell whether the peer serves now. One that says nothing more, or dies, does not."""
        asked = line.recv(_LONGEST)
        if asked == _WHO:
            line.sendall(json.dumps(asdict(self._me)).encode())
        if asked != _GIVE:
            return False
        socket.send_fds(line, [_SOCKETS], [one.fileno() for one in self._sockets])
        return line.recv(_LONGEST) == _SERVING


def _opened(path: Path) -> socket.socket:
    """Listen at `path` in place of whoever did; the rename leaves no moment without anybody there."""
    wake.own(path.parent)
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(fresh))
    listener.listen()
    fresh.replace(path)
    return listener
