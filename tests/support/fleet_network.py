"""A fleet whose nodes are in network namespaces: three machines, two of them fronts, and a Redis that these share."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from support.fleet import Machine, proxy_environment
from support.front_load import Entrance, ask, ordered
from support.mlxq_home import until
from support.networks import Network, RedisServer, Strangers, network
from support.networks import redis as redis_server

from state import secrets, service
from tasks.system import process

FRONTS = ("a", "b")
NODES = ("a", "b", "c")
ASKER = """
import json, os, sys, time, urllib.request, urllib.error
url, key = sys.argv[1], os.environ["ASKED_WITH"]
body = json.dumps({"model": "standard", "messages": [{"role": "user", "content": "Hi"}]}).encode()
headers = {"Authorization": "Bearer " + key, "Content-Type": "application/json"}
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
while True:
    try:
        status = opener.open(urllib.request.Request(url, body, headers), timeout=30).status
    except urllib.error.HTTPError as problem:
        status = problem.code
    except OSError:
        status = 0
    print(status, flush=True)
    time.sleep(0.05)
"""
"""Asks a gateway on loopback of its namespace, again and again."""


@dataclass
class LocalLoad:
    """Someone who asks a gateway on its own machine."""

    process: subprocess.Popen[bytes]
    output: Path

    def statuses(self) -> list[int]:
        return [int(line) for line in self.output.read_text().split()]


@dataclass
class FleetNetwork:
    """The fleet in the hands of a test."""

    network: Network
    strangers: Strangers
    machines: dict[str, Machine]
    redis: RedisServer
    slots: int
    folder: Path
    key: str = ""
    """An app's, at both fronts."""
    _entrances: dict[str, Entrance] = field(default_factory=dict[str, Entrance])

    def entrance(self, name: str) -> Entrance:
        """Return where a front is asked."""
        machine = self.machines[name]
        if name not in self._entrances:
            self._entrances[name] = Entrance.of(machine.front_url, machine.home)
        return self._entrances[name]

    # ------------------------------------------------------------ making it

    def build(self, proxy: Path, fronts: Sequence[str] = FRONTS) -> None:
        """Start everything; each front's machine has invited all the others."""
        with ThreadPoolExecutor(len(self.machines)) as pool:
            list(pool.map(lambda machine: machine.up_with_scripted(self.slots), self.machines.values()))
        for front in fronts:
            for name in self.machines:
                if name != front:
                    self.join(name, front)
        for front in fronts:
            self._give_key(front)
        with ThreadPoolExecutor(len(fronts)) as pool:
            list(pool.map(lambda name: self.machines[name].up_front(proxy, self.redis.url), fronts))
        for name in self.machines:
            self.await_serving(name, fronts)

    def _give_key(self, front: str) -> None:
        machine = self.machines[front]
        if self.key:
            machine.run("keys", "create", "my-app", "--key", "-", text=self.key)
        else:
            self.key = machine.run("keys", "create", "my-app").split()[0]

    def token(self, inviter: str) -> str:
        return self.machines[inviter].document("node", "invite", "--yes")["token"]

    def join(self, name: str, inviter: str) -> None:
        """Have a machine join the fleet of another one."""
        self.machines[name].run("node", "join", "-", "--yes", text=self.token(inviter))

    def leave(self, name: str, fronts: Sequence[str] = FRONTS) -> None:
        """Have a machine leave the fleets of all fronts, and wait until these know."""
        for front in fronts:
            self.machines[front].run("node", "remove", name, "--yes")
            until(lambda front=front: name not in self._groups(front), 60)

    def _groups(self, front: str) -> set[str]:
        """Return the nodes that a front's configuration has."""
        content = json.loads((self.machines[front].home.front / "front.yaml").read_bytes())
        return {entry["model_info"]["id"].partition("@")[2] for entry in content["model_list"]}

    def await_serving(self, name: str, fronts: Sequence[str] = FRONTS) -> None:
        """Wait until each front has an answer of a node."""
        for front in fronts:
            with self.entrance(front).client(self.key) as client:
                until(lambda client=client: ask(client, ordered()).node == name, 60)

    @contextmanager
    def only(self, *names: str) -> Iterator[None]:
        """Have the front on `a` ask these nodes alone."""
        others = [name for name in self.machines if name not in names]
        for name in others:
            self.machines["a"].run("node", "drain", name)
        until(lambda: self._groups("a") == set(names), 60)
        try:
            yield
        finally:
            for name in others:
                self.machines["a"].run("node", "drain", name, "--undo")
            until(lambda: self._groups("a") == set(self.machines), 60)

    # ------------------------------------------------------------ hurting it

    def kill(self, name: str) -> float:
        """Kill all processes of a node at once, the worker first: nothing starts them again. Returns when."""
        mlxq = self.machines[name].mlxq
        assert mlxq.worker
        services = [one.name for one in service.listing(mlxq.db)]
        victims = [left.pid for one in services for left in process.find_orphans(str(mlxq.home.root), one)]
        at = time.monotonic()
        for pid in (mlxq.worker.pid, *victims):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        mlxq.worker.wait()
        return at

    def revive(self, name: str) -> None:
        """Start a killed node's worker, which starts the others, and wait until the fronts use it."""
        self.machines[name].mlxq.work_with_scripted(self.slots)
        self.await_serving(name)

    def cut_redis(self) -> None:
        self.network.cut("redis")

    def plug_redis(self) -> None:
        self.network.plug("redis")

    @contextmanager
    def local_load(self, name: str) -> Iterator[LocalLoad]:
        """Ask the gateway of a machine on that machine while the block lasts."""
        machine, output = self.machines[name], self.folder / "statuses"
        url = f"http://127.0.0.1:{machine.port}/v1/chat/completions"
        key = secrets.read(machine.home.secrets)[secrets.MASTER]
        with output.open("w") as file:
            argv = [*machine.prefix, sys.executable, "-c", ASKER, url]
            asker = subprocess.Popen(argv, stdout=file, env=os.environ | {"ASKED_WITH": key})
        try:
            yield LocalLoad(asker, output)
        finally:
            asker.kill()
            asker.wait()

    # ------------------------------------------------------------ attacking it

    def attack(self, ports: Mapping[str, Sequence[int]], *, thorough: bool = True) -> tuple[list[str], int]:
        """Ask every route at each open port without a key, with a wrong one, and with forged invitations.

        `thorough`: in each of these ways, else in one of them in turn. Returns the requests that were answered with
        anything but a refusal, and how many were sent.
        """
        reached, asked = list[str](), 0
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
        for name, port in ((name, port) for name, opened in ports.items() for port in opened):
            base = f"https://{self.machines[name].address}:{port}"
            with httpx.Client(base_url=base, verify=unverified, trust_env=False, timeout=20) as client:
                for number, (method, path) in enumerate(ATTACKED):
                    for headers in WRONG_KEYS if thorough else [WRONG_KEYS[number % len(WRONG_KEYS)]]:
                        asked += 1
                        answer = client.request(method, path, headers=headers, json=ATTACK)
                        if answer.status_code not in REFUSALS and not public(method, path, answer):
                            reached.append(f"{base} {method} {path}: {answer.status_code}")
        return reached, asked

    def impersonate(self, name: str, network_name: str = "x") -> tuple[list[str], int]:
        """Put a machine with its own certificate at a node's address, and have both fronts ask.

        Returns what it was told, and how many connections it had.
        """
        machine = self.machines[name]
        self.network.cut(name)
        self.network.take_address(network_name, name)
        log = self.folder / "impostor"
        prefix = self.network.inside(network_name)
        argv = [sys.executable, IMPOSTOR, machine.address, str(machine.port), str(self.folder / "impostor-tls")]
        with log.open("w") as file:
            impostor = subprocess.Popen([*prefix, *argv], stdout=file, text=True)
        try:
            until(lambda: "listening" in log.read_text(), 60)
            for front in FRONTS:
                with self.entrance(front).client(self.key) as client:
                    until(lambda client=client: ask(client, ordered()).status and "connected" in log.read_text(), 30)
                    for _ in range(6):
                        assert ask(client, ordered()).status == httpx.codes.OK
        finally:
            impostor.kill()
            impostor.wait()
            self.network.return_address(network_name, name)
            self.network.plug(name)
        lines = log.read_text().splitlines()
        return [line for line in lines if line.startswith("told")], lines.count("connected")


IMPOSTOR = str(Path(__file__).with_name("impostor.py"))
REFUSALS = {401, 403, 404, 405, 429}
ATTACK = {"model": "standard", "messages": [{"role": "user", "content": "Hi"}], "secret": "guess", "command": "restart"}
WRONG_KEYS: Sequence[Mapping[str, str]] = (
    {},
    {"Authorization": "Bearer sk-mlxq-wrong"},
    {"Authorization": "Bearer sk-1234", "x-api-key": "sk-1234", "x-forwarded-for": "127.0.0.1"},
)
PUBLIC = {"/fleet/v1/authority", "/health/liveliness", "/health/readiness", "/health"}
"""What anyone may read: the certificate that any handshake shows, and whether the service is up."""


def public(method: str, path: str, answer: httpx.Response) -> bool:
    """Return whether an answer says no more than anyone may know."""
    words = ("BEGIN CERTIFICATE", '"status":"healthy"', "I'm alive!")
    return method == "GET" and path in PUBLIC and any(word in answer.text for word in words) and len(answer.text) < 1000


_LITELLM = (
    *(
        "/key/generate",
        "/key/info",
        "/key/list",
        "/user/new",
        "/team/new",
        "/model/new",
        "/model/info",
        "/config/update",
    ),
    *("/get/config/callbacks", "/spend/logs", "/global/spend", "/health", "/health/services", "/metrics", "/routes"),
    *("/openapi.json", "/docs", "/redoc", "/ui", "/ui/", "/sso/key/generate", "/login", "/v1/mcp/server", "/mcp"),
    *(
        "/openai/v1/chat/completions",
        "/engines/standard/chat/completions",
        "/anthropic/v1/messages",
        "/utils/token_counter",
    ),
    *(
        "/cache/ping",
        "/cache/flushall",
        "/debug/memory/summary",
        "/memory-usage",
        "/otel-spans",
        "/queue/chat/completions",
    ),
    *(
        "/v1/files",
        "/v1/batches",
        "/v1/rerank",
        "/v1/audio/speech",
        "/v1/images/generations",
        "/v1/responses/x",
        "/test",
    ),
)
_GATEWAY = (
    *("/v1/models", "/models", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
    *("/v1/messages/count_tokens", "/v1/embeddings", "/v1/rerank", "/v1/messages/batches", "/api/tags", "/api/pull"),
    *("/api/delete", "/api/chat", "/api/generate", "/api/show", "/api/ps", "/api/version", "/v1/stats", "/stats"),
)
_FLEET = (
    *("/fleet/v1/status", "/fleet/v1/jobs", "/fleet/v1/jobs/1", "/fleet/v1/jobs/1/cancel", "/fleet/v1/leave"),
    *("/fleet/v1/member", "/fleet/v1/join", "/fleet/v1/authority", "/fleet/", "/fleet/v1/../v1/status"),
)
ATTACKED = [
    *((method, path) for path in dict.fromkeys((*_LITELLM, *_GATEWAY, *_FLEET)) for method in ("GET", "POST")),
    *((method, path) for path in _FLEET for method in ("PUT", "DELETE")),
    *(
        ("GET", path)
        for path in ("/", "/health/liveliness", "/health/readiness", "/favicon.ico", "/.env", "//v1/models")
    ),
]


@contextmanager
def fleet_network(
    folder: Path, *, proxy: Path, slots: int, nodes: Sequence[str] = NODES, weights: Path | None = None
) -> Iterator[FleetNetwork]:
    """Make the fleet, and end all of it.

    `proxy`: the folder in which LiteLLM's proxy is installed once; `weights`: the built-in model, if it was made.
    """
    environment = proxy_environment(proxy)
    with network(*nodes, "redis", "x") as net, net.watch() as strangers:
        for name in nodes:
            net.route_out(name)
        inside = net.inside("redis")
        with redis_server(folder / "redis", net.address("redis"), "a-password-of-the-tests", inside) as server:
            machines = {
                name: Machine(name, folder / name, weights, address=net.address(name), prefix=net.inside(name))
                for name in nodes
            }
            made = FleetNetwork(net, strangers, machines, server, slots, folder)
            try:
                made.build(environment)
                yield made
            except BaseException:
                for machine in machines.values():
                    print(f"---- {machine.name}\n{machine.mlxq.logs()}", file=sys.stderr)
                raise
            finally:
                for machine in machines.values():
                    machine.close()
