"""The serving gateway hands its listening sockets to its successor, over a unix socket (SCM_RIGHTS, unix(7)).

Both processes then hold the very same sockets. What neither has accepted yet waits in one queue that belongs to both,
so none of it is lost, whichever of them closes first. Two sockets with SO_REUSEPORT would lose some: on Linux each
has a queue of its own, which is reset with it, and macOS gives all to the one that was bound last.

    the successor          give       and it gets the sockets
    the one that serves    sockets    and it waits, however long
    the successor          serving    it listens, and its own unix socket lies at `place`
    the one that serves    stopped    it accepts no more connections

Until `serving` is sent all can be undone: whichever ends before, the one that serves keeps serving.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from state import wakeup
from state.paths import Home
from tasks.system import process

PATIENCE_S = 5.0
"""How long one side waits for the other's next word."""
LOOK_S = 3.0
"""How often the one that serves looks whether it can still be found."""
PAUSE_S = 1.0
_WHO, _GIVE, _SOCKETS, _SERVING, _STOPPED = b"who", b"give", b"sockets", b"serving", b"stopped"
WITHHELD = "The gateway that serves does not hand over its sockets."
_MOST = 8
"""Sockets a gateway listens on: two, loopback and the address that was opened."""
_LONGEST = 1024


@dataclass(frozen=True)
class ServingProcess:
    """Who serves."""

    identity: str
    """As tasks.system.process encodes it."""
    generation: int


@dataclass(frozen=True)
class SocketHandover:
    """What a successor is given."""

    sockets: list[socket.socket]
    _line: socket.socket | None

    def confirm(self) -> bool:
        """Announce that the replacement serves; return whether the process before it has confirmed that it stopped.

        One that hangs does not; it stops when it resumes. There is no way back from here.
        """
        if self._line is None:
            return True
        with contextlib.suppress(OSError):
            self._line.sendall(_SERVING)
            return self._line.recv(_LONGEST) == _STOPPED
        return False


def place(home: Home) -> Path:
    """Return the path of the unix socket, which leads to the gateway that serves; its folder is the user's alone."""
    return wakeup.folder(home) / "gateway.sock"


def serving_process(home: Home, patience_s: float = PATIENCE_S) -> ServingProcess | None:
    """Return the process that serves, None when none answers within `patience_s` seconds."""
    try:
        with _connected(home) as line:
            line.settimeout(patience_s)
            line.sendall(_WHO)
            return ServingProcess(**json.loads(line.recv(_LONGEST)))
    except (OSError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def take_over(home: Home) -> Generator[SocketHandover]:
    """Get the listening sockets of the gateway that serves; none when it is dead.

    It keeps serving, unless it is relieved in the block. Raises OSError when it does not answer, or
    cannot be found.
    """
    try:
        line = _connected(home)
    except ConnectionRefusedError:
        yield SocketHandover([], None)
        return
    with line:
        yield SocketHandover(_given(line), line)


def _given(line: socket.socket) -> list[socket.socket]:
    line.sendall(_GIVE)
    try:
        message, descriptors, _, _ = socket.recv_fds(line, _LONGEST, _MOST)
    except TimeoutError as problem:
        raise ConnectionError(WITHHELD) from problem
    if message != _SOCKETS:
        raise ConnectionError(WITHHELD)
    return [socket.socket(fileno=descriptor) for descriptor in descriptors]


def _connected(home: Home) -> socket.socket:
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(PATIENCE_S)
    try:
        line.connect(str(place(home)))
    except OSError:
        line.close()
        raise
    return line


class HandoverServer(threading.Thread):
    """Answers at `place` as the gateway that serves, and gives its sockets away.

    It holds the connection until the successor serves or is gone, as macOS may lose descriptors whose sender closes
    before they are received (CPython issue 58874). However long that takes: were it to give up, both would serve.
    """

    def __init__(self, home: Home, generation: int, leave: Callable[[], None]) -> None:
        """Listen on a path that no process knows yet. `leave` is called when the sockets are taken.

        It returns when no connection is accepted any more. Raises OSError, MlxqError.
        """
        super().__init__(name="handover", daemon=True)
        wakeup.own(place(home).parent)
        me = process.identify(os.getpid())
        assert me is not None, "a process that runs can be identified"
        self._me = ServingProcess(process.encode(me), generation)
        self._place = place(home)
        self._home = home
        self._leave = leave
        self._sockets: Sequence[socket.socket] = ()
        self._listener = self._listening()

    def take_place(self, sockets: Sequence[socket.socket]) -> None:
        """Be the one that is found, with `sockets` to give. Raises OSError."""
        self._sockets = sockets
        self._beside.replace(self._place)

    def run(self) -> None:
        """Meet one peer after another, until one has taken over."""
        while not self._met():
            self.publish()
        self._listener.close()

    @property
    def _beside(self) -> Path:
        """The path to listen at first: the rename leaves no moment without anybody there."""
        return self._place.with_suffix(".next")

    def _listening(self) -> socket.socket:
        self._beside.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(self._beside))
            self._file = self._beside.stat()
        except OSError:
            listener.close()
            raise
        listener.listen()
        listener.settimeout(LOOK_S)
        return listener

    def publish(self) -> None:
        """Listen again where the socket's file is gone, or is that of a successor that died before it served."""
        with contextlib.suppress(OSError):
            if self._is_in_place() or serving_process(self._home):
                return
            fresh = self._listening()
            self._listener.close()
            self._listener = fresh
            self.take_place(self._sockets)

    def _is_in_place(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(self._file, self._place.stat())
        return False

    def _met(self) -> bool:
        """Wait for a peer, LOOK_S at most, and tell whether it serves now."""
        try:
            line, _ = self._listener.accept()
        except TimeoutError:
            return False
        except OSError:  # no descriptor is left for it; it waits in the queue
            time.sleep(PAUSE_S)
            return False
        with line, contextlib.suppress(OSError):
            line.settimeout(PATIENCE_S)
            return self._meet(line)
        return False

    def _meet(self, line: socket.socket) -> bool:
        """Return whether the peer serves now. One that dies, or never says so, does not."""
        request = line.recv(_LONGEST)
        if request == _WHO:
            line.sendall(json.dumps(asdict(self._me)).encode())
        if request != _GIVE:
            return False
        socket.send_fds(line, [_SOCKETS], [listener.fileno() for listener in self._sockets])
        line.settimeout(None)
        if line.recv(_LONGEST) != _SERVING:
            return False
        self._leave()
        with contextlib.suppress(OSError):  # who does not hear it serves all the same
            line.sendall(_STOPPED)
        return True
