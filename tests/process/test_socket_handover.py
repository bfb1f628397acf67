import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import pytest
from support.suspend import suspend

from state.paths import Home
from tasks.supervision import socket_handover
from tasks.supervision.socket_handover import HandoverServer, ServingProcess
from tasks.system import process

GATEWAY = """
import sys, time
from state.paths import get_home
from tasks.supervision import socket_handover
door = socket_handover.HandoverServer(get_home(), 2, lambda: None)
"""
TAKES = "with socket_handover.take_over(get_home()) as given:\n    "
SAYS = "print('here', flush=True); time.sleep(600)"


@contextmanager
def another(code: str) -> Generator[process.Identity]:
    """Run a process until it says so, and kill it at the end."""
    with subprocess.Popen([sys.executable, "-c", GATEWAY + code], stdout=subprocess.PIPE, text=True) as one:
        try:
            assert one.stdout
            assert one.stdout.readline() == "here\n"
            found = process.identify(one.pid)
            assert found
            yield found
        finally:
            one.kill()


def until(true: Callable[[], object], limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def me() -> ServingProcess:
    """Give this process as the gateway of the third start."""
    found = process.identify(os.getpid())
    assert found
    return ServingProcess(process.encode(found), 3)


@pytest.fixture
def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@pytest.fixture
def left(home: Home, listening: socket.socket) -> threading.Event:
    """Tell whether the gateway of the third start, which serves, has been told to leave."""
    told = threading.Event()
    serve(home, 3, listening, told.set)
    return told


def serve(home: Home, generation: int, listening: socket.socket, leave: Callable[[], None]) -> None:
    door = HandoverServer(home, generation, leave)
    door.take_place([listening])
    door.start()


def test_nobody_serves_where_nobody_answers(home: Home) -> None:
    assert socket_handover.serving_process(home) is None
    with pytest.raises(FileNotFoundError), socket_handover.take_over(home):
        pass


def test_one_that_is_dead_has_nothing_to_give(home: Home) -> None:
    with another(f"door.take_place([]); door.start(); {SAYS}"):
        pass

    with socket_handover.take_over(home) as given:
        assert (given.sockets, given.confirm()) == ([], True)


def test_who_serves_says_so(home: Home, left: threading.Event, me: ServingProcess) -> None:
    assert [socket_handover.serving_process(home), socket_handover.serving_process(home)] == [me, me]
    assert not left.is_set()


def test_a_connection_that_nobody_accepted_goes_to_the_successor(
    home: Home, listening: socket.socket, left: threading.Event
) -> None:
    client = socket.create_connection(listening.getsockname())
    with socket_handover.take_over(home) as given:
        assert not left.is_set()
        assert given.confirm()
    assert left.is_set()
    listening.close()

    accepted, address = given.sockets[0].accept()

    assert client.getsockname() == address
    for one in (client, accepted, *given.sockets):
        one.close()


def test_a_successor_knows_whether_the_one_before_has_stopped(home: Home, listening: socket.socket) -> None:
    goes_on = threading.Event()

    def leave() -> None:
        assert goes_on.wait(30)

    serve(home, 3, listening, leave)

    with socket_handover.take_over(home) as given:
        assert given._line
        given._line.settimeout(0.2)
        assert not given.confirm()

    goes_on.set()
    until(lambda: socket_handover.serving_process(home) is None)


def test_a_successor_that_fails_leaves_all_as_it_was(home: Home, left: threading.Event, me: ServingProcess) -> None:
    with pytest.raises(OSError, match="no port"), socket_handover.take_over(home):
        raise OSError("no port")

    assert socket_handover.serving_process(home) == me
    assert not left.is_set()


@pytest.mark.parametrize("code", ["", "door.take_place(given.sockets); "], ids=["with the sockets", "in its place"])
def test_a_successor_that_is_killed_leaves_all_as_it_was(
    home: Home, left: threading.Event, me: ServingProcess, code: str
) -> None:
    with another(TAKES + code + SAYS):
        pass

    until(lambda: socket_handover.serving_process(home) == me)
    assert not left.is_set()


def test_a_successor_may_take_its_time(
    home: Home, left: threading.Event, me: ServingProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it not waited for, both would serve: so it is asked for longer than one that says nothing is waited for."""
    monkeypatch.setattr(socket_handover, "PATIENCE_S", 2.0)

    with another(TAKES + SAYS) as successor:
        suspend(successor)
        assert socket_handover.serving_process(home) is None
        assert not left.is_set()

    until(lambda: socket_handover.serving_process(home) == me)


def test_one_that_hangs_is_not_waited_for(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_handover, "PATIENCE_S", 0.2)

    with another(f"door.take_place([]); door.start(); {SAYS}") as gateway:
        suspend(gateway)
        with pytest.raises(ConnectionError, match="does not hand over"), socket_handover.take_over(home):
            pass


def test_the_latest_door_is_the_one_that_is_found(home: Home, listening: socket.socket) -> None:
    for generation in (1, 2):
        serve(home, generation, listening, lambda: None)

    found = socket_handover.serving_process(home)
    assert found
    assert found.generation == 2
    assert socket_handover.place(home).stat().st_mode & 0o077 == 0


def test_one_whose_socket_was_deleted_is_found_again(
    home: Home, listening: socket.socket, me: ServingProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_handover, "LOOK_S", 0.05)
    serve(home, 3, listening, lambda: None)

    socket_handover.place(home).unlink()

    until(lambda: socket_handover.serving_process(home) == me)


def test_a_door_makes_no_folder_of_a_home_that_is_gone(home: Home, listening: socket.socket) -> None:
    door = HandoverServer(home, 3, lambda: None)
    door.take_place([listening])
    folder = socket_handover.place(home).parent
    shutil.rmtree(folder)

    door.publish()

    assert not folder.exists()


def test_a_door_outlives_a_want_of_descriptors(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(resource, "prlimit"):
        pytest.skip("only Linux changes another process's limits")
    monkeypatch.setattr(socket_handover, "PATIENCE_S", 0.5)
    with another(f"door.take_place([]); door.start(); {SAYS}") as gateway:
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (3, 4096))
        assert socket_handover.serving_process(home) is None
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, (4096, 4096))

        until(lambda: socket_handover.serving_process(home) == ServingProcess(process.encode(gateway), 2))
