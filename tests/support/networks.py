"""Machines in a network of their own: Linux network namespaces on one bridge, whose cables can be cut.

What runs in a namespace shares files and processes with this machine, and reaches the others over the bridge alone.
This process reaches them too: the bridge has an address here. Needs root and iproute2.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ETH_P_IP = 0x0800
LAST = 254
"""The last number of this machine's own address."""


@functools.cache
def refusal() -> str:
    """Return why this machine makes no namespaces; empty where it does."""
    name = f"mlxq-try-{os.getpid()}"
    try:
        made = _ip("netns", "add", name)
    except FileNotFoundError:
        return "there is no ip(8): apt install iproute2"
    if made.returncode:
        return f"namespaces are not permitted: {made.stderr.strip()}"
    _ip("netns", "delete", name)
    return ""


@dataclass
class Strangers:
    """Who asked whom outside of the network."""

    listener: socket.socket
    own: ipaddress.IPv4Network | ipaddress.IPv6Network
    sent: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """Source and destination of packets."""
    over: threading.Event = field(default_factory=threading.Event)

    def listen(self) -> None:
        """Read packets until it is over: bytes 12 to 19 of IPv4's header are the two addresses (RFC 791)."""
        while not self.over.is_set():
            with suppress(TimeoutError):
                header = self.listener.recv(64)
                source, destination = (ipaddress.ip_address(header[at : at + 4]) for at in (12, 16))
                if source in self.own and destination not in self.own and not destination.is_multicast:
                    self.sent.add((str(source), str(destination)))


@dataclass
class Network:
    """A bridge, and namespaces with a cable to it each."""

    number: int = field(default_factory=lambda: os.getpid() % 12_000)
    """Names and addresses are made of it: two processes at the same time have two networks."""
    names: list[str] = field(default_factory=list[str])

    @property
    def bridge(self) -> str:
        return f"mqb{self.number}"

    def address(self, name: str) -> str:
        """Return the address of a namespace."""
        return self._at(self.names.index(name) + 1)

    @property
    def own_address(self) -> str:
        """Where the namespaces reach this machine."""
        return self._at(LAST)

    def _at(self, last: int) -> str:
        return f"10.{200 + self.number // 250}.{self.number % 250}.{last}"

    def _namespace(self, name: str) -> str:
        return f"mlxq{self.number}-{name}"

    def _cable(self, name: str) -> str:
        return f"mq{self.number}h{self.names.index(name)}"

    def inside(self, name: str) -> tuple[str, ...]:
        """Return the words before a command that is to run in a namespace; it keeps its process id."""
        return "ip", "netns", "exec", self._namespace(name)

    def add(self, name: str) -> None:
        """Make a namespace with a cable to the bridge."""
        self.names.append(name)
        there = f"mq{self.number}t{self.names.index(name)}"
        run("netns", "add", self._namespace(name))
        peer = ("peer", "name", there, "netns", self._namespace(name))
        run("link", "add", self._cable(name), "type", "veth", *peer)
        run("link", "set", self._cable(name), "master", self.bridge, "up")
        run("-n", self._namespace(name), "addr", "add", f"{self.address(name)}/24", "dev", there)
        for device in (there, "lo"):
            run("-n", self._namespace(name), "link", "set", device, "up")

    def cut(self, name: str) -> None:
        """Drop every packet from and to a namespace: no side is told."""
        run("link", "set", self._cable(name), "down")

    def plug(self, name: str) -> None:
        """Undo `cut`."""
        run("link", "set", self._cable(name), "up")

    def route_out(self, name: str) -> None:
        """Give a namespace a way to the rest of the world, which leads to this machine and no further."""
        run("-n", self._namespace(name), "route", "add", "default", "via", self.own_address)

    @contextmanager
    def watch(self) -> Iterator[Strangers]:
        """Note what the namespaces send to other networks."""
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP)) as listener:
            listener.bind((self.bridge, ETH_P_IP))
            listener.settimeout(0.2)
            seen = Strangers(listener, ipaddress.ip_network(f"{self.own_address}/24", strict=False))
            thread = threading.Thread(target=seen.listen, daemon=True)
            thread.start()
            try:
                yield seen
            finally:
                seen.over.set()
                thread.join()

    def take_address(self, name: str, other: str) -> None:
        """Give a namespace the address of another one too, and have the others learn where it is now."""
        device = f"mq{self.number}t{self.names.index(name)}"
        run("-n", self._namespace(name), "addr", "add", f"{self.address(other)}/24", "dev", device)
        for neighbour in self.names:
            flush = ["-n", self._namespace(neighbour), "neigh", "flush", "to", self.address(other)]
            _ip(*flush)

    def return_address(self, name: str, other: str) -> None:
        """Undo `take_address`."""
        device = f"mq{self.number}t{self.names.index(name)}"
        run("-n", self._namespace(name), "addr", "del", f"{self.address(other)}/24", "dev", device)
        for neighbour in self.names:
            _ip("-n", self._namespace(neighbour), "neigh", "flush", "to", self.address(other))

    def listeners(self, name: str) -> set[int]:
        """Return the ports of a namespace at which others can connect: those that are not on loopback."""
        done = subprocess.run(
            [*self.inside(name), "ss", "-H", "-l", "-t", "-n"], capture_output=True, text=True, check=True
        )
        places = [line.split()[3].rpartition(":") for line in done.stdout.splitlines()]
        return {int(port) for host, _, port in places if not host.startswith("127.") and host != "[::1]"}

    def open(self) -> None:
        """Make the bridge."""
        run("link", "add", self.bridge, "type", "bridge")
        run("addr", "add", f"{self.own_address}/24", "dev", self.bridge)
        run("link", "set", self.bridge, "up")

    def close(self) -> None:
        """Delete it all; what still runs in a namespace keeps it, without a name and without a cable."""
        for name in self.names:
            _ip("link", "delete", self._cable(name))
            _ip("netns", "delete", self._namespace(name))
        _ip("link", "delete", self.bridge)


@contextmanager
def network(*names: str) -> Iterator[Network]:
    """Make a network of namespaces, and delete it in the end."""
    made = Network()
    try:
        made.open()
        for name in names:
            made.add(name)
        yield made
    finally:
        made.close()


def run(*words: str) -> None:
    """Run ip(8). Raises AssertionError with what it said."""
    done = _ip(*words)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def _ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


@contextmanager
def redis(folder: Path, host: str, password: str, prefix: Sequence[str] = ()) -> Iterator[RedisServer]:
    """Start Debian's redis-server at an address, and end it."""
    server = RedisServer(folder, host, password, prefix)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@dataclass
class RedisServer:
    """A redis-server without persistence, at the port that is usual."""

    folder: Path
    host: str
    password: str
    prefix: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@{self.host}:6379/0"

    def start(self) -> None:
        """Start it, and return when it takes connections."""
        self.folder.mkdir(exist_ok=True)
        configuration = self.folder / "redis.conf"
        configuration.write_text(f'bind {self.host}\nport 6379\nrequirepass {self.password}\nsave ""\nappendonly no\n')
        log = self.folder / "redis.log"
        log.unlink(missing_ok=True)
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*self.prefix, "redis-server", str(configuration)], cwd=self.folder, stdout=file, stderr=file
            )
        from support.mlxq_home import until

        until(lambda: b"Ready to accept connections" in log.read_bytes() or self._ended(), 20)
        assert not self._ended(), log.read_text()

    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def kill(self) -> None:
        """End it at once."""
        if self.process:
            self.process.kill()
            self.process.wait()


needed = pytest.mark.skipif(bool(refusal()), reason=refusal() or "namespaces are there")
