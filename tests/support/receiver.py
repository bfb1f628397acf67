"""A real HTTP server on loopback that behaves as told: it answers, fails, redirects, hangs, drips or closes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Received:
    """One request as it came."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """What the server does next, and what it got."""

    port: int = 0
    do: str = "200"
    """A status, or hang, drip, close, garbage."""
    requests: list[Received] = field(default_factory=list[Received])
    ended: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait(self, count: int, limit_s: float = 60.0) -> list[Received]:
        """Wait until `count` requests have come."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.requests) >= count, limit_s), self.requests
        return self.requests


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    with socket.create_server(("127.0.0.1", 0)) as server:
        receiver.port = server.getsockname()[1]
        thread = threading.Thread(target=_serve, args=(server, receiver), daemon=True)
        thread.start()
        yield receiver
        receiver.ended.set()
        socket.create_connection(("127.0.0.1", receiver.port)).close()
        thread.join(10)


def _serve(server: socket.socket, receiver: Receiver) -> None:
    while True:
        connection, _ = server.accept()
        if receiver.ended.is_set():
            connection.close()
            return
        threading.Thread(target=_answer, args=(connection, receiver), daemon=True).start()


def _answer(connection: socket.socket, receiver: Receiver) -> None:
    with connection, connection.makefile("rb") as stream:
        line = stream.readline().decode().strip()
        headers: dict[str, str] = {}
        while (row := stream.readline().decode().strip()) != "":
            name, _, value = row.partition(":")
            headers[name.lower()] = value.strip()
        body = stream.read(int(headers.get("content-length", "0")))
        do = receiver.do
        with receiver.arrived:
            receiver.requests.append(Received(line, headers, body))
            receiver.arrived.notify_all()
        try:
            _act(connection, do, receiver)
        except OSError:  # the client has left
            return


def _act(connection: socket.socket, do: str, receiver: Receiver) -> None:
    if do == "hang":
        receiver.ended.wait()
    elif do == "drip":
        while not receiver.ended.is_set():
            connection.sendall(b"HTTP"[:1])
            time.sleep(0.1)
    elif do == "garbage":
        connection.sendall(b"220 smtp.example ESMTP\r\n")
    elif do != "close":
        location = f"Location: {receiver.url}/elsewhere\r\n" if do.startswith("3") else ""
        connection.sendall(f"HTTP/1.1 {do} As Told\r\n{location}Content-Length: 0\r\n\r\n".encode())
