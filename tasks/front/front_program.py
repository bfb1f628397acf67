"""The program of the front's process: LiteLLM's proxy as it comes, behind mlxq's door.

Run by the Python of the environment that the proxy is in, which has no mlxq: `PYTHON -P front_program.py FOLDER PORT`.
It imports nothing of mlxq but files by their path. FOLDER has front.yaml (LiteLLM's configuration), policy.json and
nodes.json; SIGHUP has all three read again, and the proxy continues with the nodes that they name. With `--prove` it
loads all that it is made of and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import atexit
import faulthandler
import importlib.util
import json
import logging
import os
import secrets
import signal
import socket
import sys
from pathlib import Path
from typing import Any

TASKS = Path(__file__).parents[1]
LOOPBACK = "127.0.0.1"
DRAIN_S = 8
"""Seconds an answer in flight has left after SIGTERM; mlxq kills at 10."""


def main() -> None:
    """Serve until SIGTERM."""
    wanted = _arguments()
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what comes before the first reading changes nothing
    sys.stdout = sys.stderr
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    faulthandler.enable()
    os.environ["LITELLM_MASTER_KEY"] = f"sk-{secrets.token_urlsafe(32)}"  # it must have one; this one opens nothing
    if wanted.prove:
        load_proxy()
        return
    load(TASKS / "system" / "own_log.py").keep_of_service()
    os.environ["WORKER_CONFIG"] = str(wanted.folder / "front.yaml")
    Front(wanted.folder).serve(wanted.port, wanted.host, wanted.tls)


def load(file: Path) -> Any:
    """Return the module in `file`, which imports nothing of mlxq; others find it by its name."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def load_proxy() -> Any:
    """Return LiteLLM's proxy, a module; this takes seconds."""
    from litellm.proxy import proxy_server

    return proxy_server


class Front:
    """The proxy, and what mlxq puts before and behind it."""

    def __init__(self, folder: Path) -> None:
        self._usage: Any = None
        atexit.register(self._write_usage)  # before LiteLLM's own, so that it runs after it has counted all
        import httpx
        import litellm

        self._folder = folder
        self._door = load(Path(__file__).with_name("front_door.py"))
        plugin = load(Path(__file__).with_name("front_plugin.py"))
        reaching = load(Path(__file__).with_name("node_transport.py"))
        self._transport = reaching.NodeTransport()
        self._under_way = load(Path(__file__).with_name("node_choice.py")).UnderWay()
        self._choice = plugin.NodeChoice(self._under_way)
        self._proxy = load_proxy()
        litellm.aclient_session = httpx.AsyncClient(transport=self._transport, trust_env=False)
        self._usage = plugin.UsageLog(folder / "usage")
        litellm.logging_callback_manager.add_litellm_callback(self._usage)
        policy = self._read_policy()
        ring = self._door.AppKeys(Path(policy["keys"]), policy["master"])
        policy_now = self._door.Policy.read(folder / "policy.json")
        # LiteLLM has a node answer to the end what no one waits for any more.
        application = load(TASKS / "engines" / "asgi.py").cancelled_on_disconnect(self._proxy.app)
        self._application = self._door.FrontDoor(
            application, ring, policy_now, reaching.APP_WORDS.set, self._under_way.request
        )
        self._point()

    def _write_usage(self) -> None:
        if self._usage is not None:
            self._usage.write()

    def _read_policy(self) -> dict[str, Any]:
        return json.loads((self._folder / "policy.json").read_bytes())

    def _point(self) -> None:
        self._transport.point(json.loads((self._folder / "nodes.json").read_bytes()))

    def choose(self) -> None:
        """Choose the nodes, once the proxy has made its router, whose own callbacks come first."""
        import litellm

        litellm.logging_callback_manager.add_litellm_callback(self._choice)

    def reload(self) -> None:
        """Continue with what the files say now; with what they said before where one cannot be read."""
        try:
            wanted = json.loads((self._folder / "front.yaml").read_bytes())
            policy = self._door.Policy.read(self._folder / "policy.json")
            self._point()
        except (OSError, ValueError, KeyError, TypeError) as problem:
            logging.getLogger("mlxq.front").warning("the new configuration was not taken: %s", problem)
            return
        self._proxy.llm_router.set_model_list(wanted["model_list"])
        self._proxy.llm_router.update_settings(num_retries=wanted["router_settings"]["num_retries"])
        self._application.policy = policy

    def serve(self, port: int, host: str, tls: str | None) -> None:
        """Serve until SIGTERM. Exits with 1 where a port cannot be had."""
        import uvicorn

        front = self

        class Server(uvicorn.Server):
            """uvicorn's server, plain on loopback and encrypted on the network's address."""

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets[:1] if sockets else None)
                front.choose()
                for listener in sockets[1:] if sockets else []:
                    await listen(self, listener, tls)
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, front.reload)

        config = uvicorn.Config(
            self._application,
            loop="asyncio",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=DRAIN_S,
        )
        try:
            listeners = bound(list(dict.fromkeys([LOOPBACK, host])), port)
        except OSError as problem:
            sys.exit(str(problem))
        server = Server(config)
        signal.signal(signal.SIGTERM, _end)
        server.run(listeners)
        if not server.started:
            sys.exit(1)


def _end(_number: int, _frame: object) -> None:
    """End in order: uvicorn raises the signal again when all is answered, and functions of atexit would not run."""
    sys.exit(0)


async def listen(server: Any, listener: socket.socket, tls: str | None) -> None:
    """Accept connections from one socket more, encrypted where `tls`, the folder of the certificate, is given."""

    def connected() -> asyncio.Protocol:
        return server.config.http_protocol_class(
            config=server.config, server_state=server.server_state, app_state=server.lifespan.state
        )

    if tls:
        module = load(TASKS / "gateway" / "tls.py")
        encrypted = module.TlsListener(listener, module.ServerContext(Path(tls, "server.pem")), connected)
        encrypted.listen(server.config.backlog)
        server.servers.append(encrypted)
    else:
        loop = asyncio.get_running_loop()
        server.servers.append(await loop.create_server(connected, sock=listener, backlog=server.config.backlog))


def bound(hosts: list[str], port: int) -> list[socket.socket]:
    """Take a port on each address, without listening yet. Raises OSError that names the one that cannot be taken.

    The first one is taken for this process alone; only after that bind may others be opened beside it.
    """
    listeners: list[socket.socket] = []
    for host in hosts:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listeners:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listener.bind((host, port))
        except OSError as problem:
            raise OSError(f"{host}:{port}: {problem}") from problem
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listeners.append(listener)
    return listeners


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="front_program.py")
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default=LOOPBACK)
    parser.add_argument("--tls", help="folder of the certificate by which other machines know this front")
    parser.add_argument("--prove", action="store_true", help="load the proxy and end")
    return parser.parse_args()


if __name__ == "__main__":
    main()
