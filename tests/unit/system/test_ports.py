import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.system import ports, process


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def number(bound: socket.socket) -> int:
    return bound.getsockname()[1]


@pytest.mark.parametrize(
    ("family", "address"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")],
)
def test_a_listener_on_any_address_takes_the_port(family: socket.AddressFamily, address: str):
    with socket.create_server((address, 0), family=family) as taken:
        assert not ports.free(number(taken))
        assert ports.holder(number(taken)).pid == os.getpid()


def test_a_closed_listener_frees_the_port(listener: socket.socket):
    port = number(listener)
    listener.close()

    assert ports.free(port)
    assert ports.holder(port) is None


def test_connections_that_just_ended_do_not_take_the_port(listener: socket.socket):
    """`down`, then `up`: the server closed first, so its side lingers in TIME_WAIT for a minute."""
    port = number(listener)
    with socket.create_connection(("127.0.0.1", port)) as client:
        served, _ = listener.accept()
        served.close()
        assert client.recv(1) == b""
    listener.close()

    assert ports.free(port)


def test_the_holder_is_named():
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        holder = ports.holder(int(other.stdout.readline()))
        identity = process.identify(other.pid)
        other.communicate(b"\n")

    assert holder == ports.PortHolder(other.pid, holder.name, identity)
    assert "python" in holder.name


def test_a_port_is_taken_where_none_of_a_process_group_listens(listener: socket.socket):
    own, other = process.identify(os.getpid()), subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        stranger = process.identify(other.pid)
        assert own
        assert stranger

        assert ports.taken_from(number(listener), stranger)
        assert not ports.taken_from(number(listener), own)
        assert not ports.taken_from(ports.spare(), own)
    finally:
        other.kill()
        other.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which ports the kernel chooses")
def test_the_kernel_gives_no_spare_port_to_another_program():
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())

    assert first > ports.spare() or ports.spare() > last


def test_lsof_of_a_mac_is_read():
    """The answer of `lsof -nP -iTCP:8000 -sTCP:LISTEN -Fp`: one process, two descriptors."""
    assert ports.parse_lsof("p812\nf7\nf9\np813\nf4\n") == [812, 813]
    assert ports.parse_lsof("") == []
