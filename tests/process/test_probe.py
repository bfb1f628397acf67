import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.calls import called
from support.mlxq_home import until
from support.ports import free_port
from support.suspend import suspend_pid

from state.errors import EngineFailed
from tasks.supervision import probe

FAKE = Path(__file__).parents[1] / "support" / "fake_engine.py"
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def start(port: int) -> Iterator[Start]:
    made: list[subprocess.Popen[bytes]] = []

    def begin(*flags: str) -> subprocess.Popen[bytes]:
        argv = [sys.executable, str(FAKE), "--port", str(port), *flags]
        made.append(subprocess.Popen(argv, env={"MLXQ_TIER_KEY": "k", "PATH": os.environ["PATH"]}))
        until(lambda: probe.listening(port))
        return made[-1]

    yield begin
    for one in made:
        one.kill()
        one.wait()


def test_a_working_engine(start: Start, port: int):
    start("--name", "fast")

    assert probe.models(port, "k") == {"fast"}
    assert probe.status(port, "k").steps_executed == 0
    assert probe.one_token(port, "k", "fast", 60) < 60
    assert probe.status(port, "k").steps_executed == 1


def test_a_wrong_key_is_told(start: Start, port: int):
    start()

    with pytest.raises(EngineFailed, match="HTTP 401"):
        probe.models(port, "wrong")


def test_nobody_there(port: int):
    assert not probe.listening(port)
    with pytest.raises(probe.NotListening, match=f"Nothing listens on port {port}"):
        probe.status(port, "k")
    assert not probe.gateway_ready(port)


def test_a_frozen_engine_is_silent(start: Start, port: int):
    """SIGSTOP, or a machine deep in swap: the kernel still takes the connection."""
    suspend_pid(start().pid)

    assert probe.listening(port)
    with pytest.raises(probe.Silent, match=r"within 0\.3 s"):
        probe.status(port, "k", 0.3)
    with pytest.raises(probe.Silent):
        probe.gateway_ready(port, 0.3)


def test_a_wedged_engine_answers_but_makes_no_token(start: Start, port: int):
    start("--wedge")

    with pytest.raises(probe.Silent):
        probe.one_token(port, "k", "fast", 2)  # in which the request gets there also on a crowded machine
    until(lambda: probe.status(port, "k").num_running == 1)


def test_a_broken_engine_is_told(start: Start, port: int):
    """Tokenizer files missing: /health is green, every request ends in 500."""
    start("--broken")

    assert probe.models(port, "k") == {"fast"}
    with pytest.raises(EngineFailed, match="HTTP 500"):
        probe.one_token(port, "k", "fast", 60)


@pytest.mark.parametrize("word", [b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n", b""], ids=["half", "odd", "none"])
def test_half_an_answer_is_silence(word: bytes):
    with Served(lambda connection: connection.sendall(word)) as port, pytest.raises(probe.Silent):
        probe.ask(port, "/", "", 2)


def test_a_trickle_does_not_outlive_the_deadline():
    """A timeout on each read alone would let one byte a second hold the worker for ever."""

    def trickle(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)

    with Served(trickle) as port, pytest.raises(probe.Silent):  # the server would go on for ever
        probe.ask(port, "/", "", 0.5)


class Served:
    """One connection on a port, handled by a function."""

    def __init__(self, handle: Callable[[socket.socket], None]) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.handle = handle
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            connection.recv(65_536)
            try:
                self.handle(connection)
            except OSError:
                return

    def __enter__(self) -> int:
        self.thread.start()
        return self.listener.getsockname()[1]

    def __exit__(self, *_: object) -> None:
        self.thread.join()
        self.listener.close()


def test_probes_are_cheap(start: Start, port: int):
    """Four services every 2 s are 120 probes a minute; a new client of httpx for each makes 2,500 calls."""
    start()
    probe.status(port, "k")  # which imports what it needs

    calls, _ = called(lambda: probe.status(port, "k"))
    print(f"a probe: {calls} calls")
    assert calls < 500
