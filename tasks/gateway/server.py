"""The gateway's server and its listening sockets: on trial beside another, serving, leaving.

uvicorn gets its sockets once and closes them as it ends. Here they come from the gateway that served before, and are
let go of long before the end, while answers in flight are finished.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import cast

import uvicorn

from state.errors import MlxqError
from state.paths import Home
from tasks.gateway import gc_between_steps
from tasks.gateway.tls import ServerContext, TlsListener
from tasks.plan.gateway import LEAVE_SECONDS, LOOPBACK
from tasks.supervision import socket_handover

log = logging.getLogger("mlxq.gateway")

LOOK_S = 0.1
LINGER_S = 6.0
"""How long a gateway that leaves waits for requests on connections it has: uvicorn keeps an idle one for 5 s."""
_LAST_ANSWER = (b"connection", b"close")

Address = tuple[str, int]


def bound(addresses: Sequence[Address]) -> list[socket.socket]:
    """Take the addresses, without listening yet. Raises OSError that names the one that cannot be taken.

    The first one is taken for this process alone. SO_REUSEPORT comes after that bind: it lets all addresses be
    opened beside loopback, or closed again, which Linux else refuses while one of the two listens.
    """
    first = _bound(addresses[0])
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return [first, *map(_bound_beside, addresses[1:])]


def _bound_beside(address: Address) -> socket.socket:
    """Take one address more of a port that is ours."""
    return _bound(address, socket.SO_REUSEPORT)


def _bound(address: Address, *options: int) -> socket.socket:
    listener = socket.socket()
    for option in (socket.SO_REUSEADDR, *options):
        listener.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        listener.bind(address)
    except OSError as problem:
        listener.close()
        raise OSError(f"{address[0]}:{address[1]}: {problem}") from problem
    return listener


class Server(uvicorn.Server):
    """uvicorn's server for one gateway. With `trial`, a loopback port, it is there until SIGUSR1 has it take over."""

    def __init__(
        self,
        config: uvicorn.Config,
        home: Home,
        generation: int,
        addresses: Sequence[Address],
        *,
        trial: int | None,
        tls: ServerContext | None,
    ) -> None:
        """Take the addresses. `tls`: for all but loopback. Raises OSError."""
        super().__init__(config)
        self._tls = tls
        self._home = home
        self._generation = generation
        self._addresses = addresses
        self.proving = trial is not None
        """Whether all that is asked so far is mlxq's own proof."""
        self._first = bound([(LOOPBACK, trial)] if trial else addresses)
        self.ended_by: list[int] = []
        """Signals that asked it to end; uvicorn raises them again at once, before the last requests are counted."""
        self._collecting: asyncio.Task[None] | None = None
        self._change: asyncio.Task[None] | None = None
        """What is under way; asyncio itself holds its tasks weakly."""

    def serve_all(self) -> None:
        """Serve until SIGTERM, or until a successor has taken over and the last answer is out."""
        self.run(self._first)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 (uvicorn's signature)
        """Begin to listen, once the application is ready (uvicorn's own step); uvicorn itself on loopback alone."""
        await super().startup(self._first[:1])
        for listener in self._first[1:]:
            await self._listen(listener)
        self._collecting = asyncio.create_task(gc_between_steps.collect())
        if self.proving:
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._begin_succession)
        else:
            self._open_door()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End in order (uvicorn's own step)."""
        await super().shutdown(sockets)
        self.ended_by, self._captured_signals = self._captured_signals, []

    def _begin_succession(self) -> None:
        if self._change is None:
            self._change = asyncio.create_task(self._succeed())

    async def _succeed(self) -> None:
        """Take the place of the gateway that serves, or end."""
        try:
            door = self._door()
            with socket_handover.take_over(self._home) as before:
                sockets = self._matched(before.sockets)
                trial = self.servers.copy()
                door.take_place(sockets)
                self.proving = False
                for listener in sockets:
                    await self._listen(listener)
                stopped = await asyncio.to_thread(before.confirm)
        except (OSError, MlxqError) as problem:
            self.should_exit = True
            sys.stderr.write(f"{problem}\n")
            return
        if not stopped:
            log.warning("the gateway before did not confirm that it accepts no more connections")
        await _stop_accepting(trial)
        for server in trial:
            self.servers.remove(server)
        door.start()

    def _matched(self, sockets: Sequence[socket.socket]) -> list[socket.socket]:
        """Return a socket for each address: one that was handed over, or a new one. What is not needed is closed."""
        by_address = {listener.getsockname(): listener for listener in sockets}
        for address in by_address.keys() - set(self._addresses):
            by_address.pop(address).close()
        if not by_address:
            return bound(self._addresses)
        return [by_address.get(address) or _bound_beside(address) for address in self._addresses]

    async def _listen(self, listener: socket.socket) -> None:
        """Accept connections from one socket more, as uvicorn does from its first ones."""
        make = cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class)

        def connected() -> asyncio.Protocol:
            return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

        if self._tls and listener.getsockname()[0] != LOOPBACK:
            server = TlsListener(listener, self._tls, connected)
            server.listen(self.config.backlog)
            self.servers.append(cast("asyncio.Server", server))
            return
        loop = asyncio.get_running_loop()
        self.servers.append(await loop.create_server(connected, sock=listener, backlog=self.config.backlog))

    def _open_door(self) -> None:
        """Publish itself as the gateway that serves; where that fails it serves all the same."""
        try:
            door = self._door()
            door.take_place(self._first)
        except (OSError, MlxqError) as problem:
            log.warning("the next gateway will take this one's place with a gap: %s", problem)
        else:
            door.start()

    def _door(self) -> socket_handover.HandoverServer:
        """Listen for a successor, who has this gateway leave."""
        loop = asyncio.get_running_loop()

        def leave() -> None:
            stopped = threading.Event()
            loop.call_soon_threadsafe(self._begin_leaving, stopped)
            stopped.wait()

        return socket_handover.HandoverServer(self._home, self._generation, leave)

    def _begin_leaving(self, stopped: threading.Event) -> None:
        self._change = asyncio.create_task(self._leave(stopped))

    async def _leave(self, stopped: threading.Event) -> None:
        """Accept no more connections; end when those there are have had their answers.

        A client may send its next request on a connection that was kept, so none is closed before it idled out:
        it is answered, with word that this answer was the connection's last.
        """
        await _stop_accepting(self.servers)
        stopped.set()
        self.config.encoded_headers.append(_LAST_ANSWER)
        self.server_state.default_headers = [*self.server_state.default_headers, _LAST_ANSWER]
        loop = asyncio.get_running_loop()
        began = loop.time()
        while (elapsed_s := loop.time() - began) < LINGER_S or (self._used() and elapsed_s < LEAVE_SECONDS):  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(LOOK_S)
        self.should_exit = True

    def _used(self) -> bool:
        """Return whether a connection is left on which anything was ever asked."""
        return any(getattr(connection, "cycle", None) for connection in self.server_state.connections)


async def _stop_accepting(servers: Sequence[asyncio.Server]) -> None:
    """Close the listening sockets; each connection that was accepted before is served.

    asyncio serves a connection one step of its loop after it accepted it, and drops it without a word where its server
    was closed in between (the assertion in asyncio.Server._attach). So the sockets are closed a step after the last
    accept.
    """
    loop = asyncio.get_running_loop()
    for server in servers:
        for listener in server.sockets:
            loop.remove_reader(listener.fileno())
    await asyncio.sleep(0)
    for server in servers:
        server.close()
