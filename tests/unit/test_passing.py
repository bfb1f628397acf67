import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from state.paths import Home
from tasks.world import passing
from tasks.world.passing import Door, Holder

TAKER = """
import time
from state.paths import home
from tasks.world import passing
with passing.succession(home()) as given:
    print(len(given), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@pytest.fixture
def left(home: Home, listening: socket.socket) -> threading.Event:
    """Tell whether the gateway of the third start, which serves, has been told to leave."""
    told = threading.Event()
    Door(home, 3, [listening], told.set).start()
    return told


def test_nobody_serves_where_nobody_answers(home: Home) -> None:
    assert passing.holder(home) is None
    with passing.succession(home) as given:
        assert given == []


def test_who_serves_says_so(home: Home, left: threading.Event) -> None:
    assert [passing.holder(home), passing.holder(home)] == [Holder(os.getpid(), 3)] * 2
    assert not left.is_set()


def test_a_connection_that_nobody_accepted_goes_to_the_successor(
    home: Home, listening: socket.socket, left: threading.Event
) -> None:
    client = socket.create_connection(listening.getsockname())
    with passing.succession(home) as given:
        assert not left.is_set()
    assert left.wait(10)
    listening.close()

    accepted, address = given[0].accept()

    assert client.getsockname() == address
    for one in (client, accepted, *given):
        one.close()


def test_a_successor_that_fails_leaves_all_as_it_was(home: Home, left: threading.Event) -> None:
    with pytest.raises(OSError, match="no port"), passing.succession(home):
        raise OSError("no port")

    assert passing.holder(home) == Holder(os.getpid(), 3)
    assert not left.is_set()


def test_a_successor_that_is_killed_leaves_all_as_it_was(home: Home, left: threading.Event) -> None:
    with subprocess.Popen([sys.executable, "-c", TAKER], stdout=subprocess.PIPE, text=True) as taker:
        assert taker.stdout
        assert taker.stdout.readline() == "1\n"
        taker.send_signal(signal.SIGKILL)

    assert passing.holder(home) == Holder(os.getpid(), 3)
    assert not left.is_set()


def test_the_latest_door_is_the_one_that_is_found(home: Home, listening: socket.socket) -> None:
    def nothing() -> None: ...

    leave: Callable[[], None] = nothing
    for generation in (1, 2):
        Door(home, generation, [listening], leave).start()

    assert passing.holder(home) == Holder(os.getpid(), 2)
    assert passing.place(home).stat().st_mode & 0o077 == 0
