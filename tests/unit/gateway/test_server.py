"""A gateway that leaves serves what it has accepted, whatever the order in which its event loop learns of it."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import uvicorn

from state.paths import Home
from tasks.gateway.connections import Connection
from tasks.gateway.server import Server
from tasks.gateway.tls import ServerContext
from tasks.system import certificates

REQUEST = b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n"


async def application(scope: dict[str, Any], _receive: object, send: Callable[[dict[str, Any]], Any]) -> None:
    """Answer each request with 204."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})


def server(home: Home, host: str) -> Server:
    config = uvicorn.Config(application, loop="asyncio", http=Connection, lifespan="off", log_config=None)
    config.load()
    addresses = dict.fromkeys([("127.0.0.1", 0), (host, 0)])
    tls = ServerContext(certificates.server_file(home.root / "tls"))
    made = Server(config, home, 1, list(addresses), trial=None, tls=tls)
    made.lifespan = config.lifespan_class(config)
    return made


async def asked_while_it_leaves(home: Home, host: str, context: ssl.SSLContext) -> bytes:
    """Return the answer to a request whose connection is accepted in the very step in which the gateway leaves."""
    gateway, loop, stopped = server(home, host), asyncio.get_running_loop(), threading.Event()
    await gateway.startup()
    read, write = os.pipe()
    loop.add_reader(read, lambda: (loop.remove_reader(read), gateway._begin_leaving(stopped)))
    address = next(listener.getsockname() for listener in gateway._first if listener.getsockname()[0] == host)
    client = socket.create_connection(address)  # from here on the loop takes no step until the thread begins
    client.settimeout(60)
    os.write(write, b"leave")
    answer = await asyncio.to_thread(ask, client, None if host == "127.0.0.1" else context)
    assert stopped.is_set()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    return answer


def ask(client: socket.socket, context: ssl.SSLContext | None) -> bytes:
    with context.wrap_socket(client, server_hostname="127.0.0.2") if context else client as connection:
        connection.sendall(REQUEST)
        return connection.recv(1024)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
def test_a_connection_that_is_accepted_while_the_gateway_leaves_is_answered(home: Home, host: str) -> None:
    """Asyncio drops one whose server is closed between two steps; the second address is encrypted."""
    certificates.ensure(home.root / "tls", [host], datetime.now(UTC))
    context = ssl.create_default_context(cafile=str(certificates.authority_file(home.root / "tls")))
    answer = asyncio.run(asked_while_it_leaves(home, host, context))
    assert answer.startswith(b"HTTP/1.1 204 ")


async def answered_without_delay(home: Home) -> bool:
    """Ask a gateway, and return whether the connection that answers sends each write at once."""
    gateway = server(home, "127.0.0.1")
    await gateway.startup()
    reader, writer = await asyncio.open_connection(*gateway._first[0].getsockname())
    writer.write(REQUEST)
    await reader.readline()
    (connection,) = gateway.server_state.connections
    accepted: socket.socket = connection.transport.get_extra_info("socket")
    assert accepted.proto == 0, "asyncio itself does it for TCP by name alone"
    writer.close()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    return bool(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


def test_an_answer_is_not_held_back_by_the_network(home: Home) -> None:
    """With Nagle's algorithm on, each answer's second write waits 40 ms, also that of the quickest."""
    certificates.ensure(home.root / "tls", ["127.0.0.1"], datetime.now(UTC))
    assert asyncio.run(answered_without_delay(home))
