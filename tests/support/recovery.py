"""Hurt a running mlxq in one way, and measure how it comes back. Seconds throughout."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace

import httpx
import psutil
from support import loopback
from support.mlxq_home import LIMIT_S, Mlxq, until

from state import ledger, secrets, service, settings
from state.errors import EngineFailed
from state.service import Service, State
from tasks.kinds import new
from tasks.plan import gateway, health
from tasks.supervision import probe, watchdog
from tasks.system import memory, ports, process

QUESTION = {"max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]}


THIEF = """
import http.server, os, socket, threading
from tasks.supervision import lifecycle
marked = lifecycle.write_start_marker
def steal(*known):
    address = ("127.0.0.1", int(os.environ["PORT"]))
    if os.environ["MANNER"] == "silent":
        lifecycle.thief = socket.create_server(address)
    else:
        lifecycle.thief = http.server.HTTPServer(address, http.server.BaseHTTPRequestHandler)
        threading.Thread(target=lifecycle.thief.serve_forever, daemon=True).start()
    marked(*known)
lifecycle.write_start_marker = steal
"""
"""A worker that takes the port away itself, at the one moment at which nobody looks."""


NO_LOOKS = """
from tasks.supervision import watchdog
watchdog.Watchdog.tick = lambda self: None
"""
"""A worker that never looks at its services: it learns of a death from the kernel or not at all."""


@dataclass(frozen=True)
class Back:
    """How a service came back."""

    begun_s: float
    """From the harm to the next start begun."""
    ready_s: float
    """From the harm to its first answer."""
    own_start_s: float
    """What its start took alone."""

    @property
    def extra_s(self) -> float:
        """What mlxq took beside the service's own start."""
        return self.ready_s - self.own_start_s


def hurt(mlxq: Mlxq, number: signal.Signals, name: str = "fast") -> Back:
    """Signal a service that is ready, and wait for its next start to be ready."""
    one = mlxq.one(name)
    at = time.time()
    process.send(mlxq.identity(name), number)
    return back(mlxq, one, at)


def back(mlxq: Mlxq, earlier: Service, at: float) -> Back:
    after = mlxq.await_next(earlier)
    assert after.started_at
    assert after.ready_at
    begun = mlxq.db.value("SELECT max(at) FROM events WHERE name = 'starting' AND service = ?", (earlier.name,))
    return Back(begun - at, after.ready_at - at, after.ready_at - after.started_at)


def wedge(mlxq: Mlxq, name: str = "fast") -> Back:
    """Let a fake engine take requests and make no token, with its health green; a client waits for one."""
    one = mlxq.one(name)
    process.send(mlxq.identity(name), signal.SIGUSR1)
    threading.Thread(target=_ask_engine, args=(mlxq, one), daemon=True).start()
    return back(mlxq, one, time.time())


def patience() -> float:
    """Give by what mlxq stretches its limits now, as a crowded machine makes healthy engines slow."""
    return health.patience(health.TEXT, memory.crowding()).stalled_s / health.TEXT.stalled_s


def _ask_engine(mlxq: Mlxq, one: Service) -> None:
    """Ask until a request hangs: the first may be quicker than the signal."""
    with suppress(EngineFailed):
        while True:
            probe.one_token(one.port, secrets.read(mlxq.home.secrets)[secrets.TIER], one.name, 120)


def up_with_gateway(mlxq: Mlxq, port: int) -> Service:
    """Bring up every tier and the gateway."""
    settings.write(mlxq.home, "litellm-port", port)
    done = mlxq.ended(mlxq.put("configure"))
    assert done.state == "succeeded", done.error
    starts = [mlxq.put("start", service=name) for name in [*tiers(mlxq), gateway.SERVICE]]
    for start in starts:
        assert mlxq.ended(start).state == "succeeded", mlxq.logs()
    return mlxq.one(gateway.SERVICE)


def wait_behind_a_pull(mlxq: Mlxq) -> None:
    """Enqueue what a change of the stack does: a pull, and what follows for every service, in ten minutes."""
    pull = replace(new("pull", {"source": "hub:slow/model"}), wait_s=600.0)
    starts = [
        new("start", {"service": name}, needs=["configure"], label=name) for name in [*tiers(mlxq), gateway.SERVICE]
    ]
    ledger.enqueue_all(mlxq.db, [pull, new("configure", needs=["pull"]), *starts])


def ask_gateway(mlxq: Mlxq) -> int:
    """Return the status of one request to the tier fast through the gateway."""
    key = secrets.read(mlxq.home.secrets)[secrets.MASTER]
    url = f"http://127.0.0.1:{mlxq.one(gateway.SERVICE).port}/v1/chat/completions"
    headers = {"Authorization": f"Bearer {key}"}
    return loopback.post(url, json=QUESTION | {"model": "fast"}, headers=headers, timeout=60).status_code


def tiers(mlxq: Mlxq) -> list[str]:
    return [row["name"] for row in mlxq.db.rows("SELECT name FROM tiers ORDER BY position")]


@dataclass
class Load:
    """Clients that ask one tier through the gateway, one request after another, until `stop` is set."""

    url: str
    key: str
    stop: threading.Event = field(default_factory=threading.Event)
    answers: list[tuple[float, float, bool]] = field(default_factory=list[tuple[float, float, bool]])
    """When each request began and ended, in unix seconds, and whether it was answered."""

    def ask(self) -> None:
        with loopback.client(headers={"Authorization": f"Bearer {self.key}"}, timeout=60) as client:
            while not self.stop.is_set():
                began = time.time()
                good = False
                with suppress(httpx.HTTPError):
                    good = client.post(self.url, json=QUESTION | {"model": "fast"}).status_code == 200
                self.answers.append((began, time.time(), good))

    def lost(self, at: float) -> tuple[int, int]:
        """Give the requests that failed of those in flight at a moment, and of those that began later."""
        failed = [began for began, ended, good in self.answers if not good and ended >= at]
        return sum(began <= at for began in failed), sum(began > at for began in failed)


def kill_under_load(mlxq: Mlxq, clients: int = 3) -> tuple[Load, float]:
    """Kill -9 the tier fast while clients ask it through the gateway; give their log and the moment."""
    port = mlxq.one(gateway.SERVICE).port
    key = secrets.read(mlxq.home.secrets)[secrets.MASTER]
    load = Load(f"http://127.0.0.1:{port}/v1/chat/completions", key)
    threads = [threading.Thread(target=load.ask, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    until(lambda: sum(good for *_, good in load.answers) >= 3 * clients)
    at = time.time()
    hurt(mlxq, signal.SIGKILL)
    answered = len(load.answers)
    until(lambda: len(load.answers) >= answered + 3 * clients)
    load.stop.set()
    for thread in threads:
        thread.join(LIMIT_S)
    return load, at


def kill_worker_then_engine(mlxq: Mlxq) -> tuple[bool, Back]:
    """Kill -9 the worker and start another; tell whether the engine was left alone, and how its next death went."""
    one = mlxq.one()
    mlxq.kill_worker()
    mlxq.work()
    until(lambda: mlxq.db.value("SELECT count(*) FROM worker WHERE pid = ?", (mlxq.worker.pid,)))
    let_it_look()
    same = mlxq.one().identity == one.identity and process.alive(mlxq.identity())
    return same, hurt(mlxq, signal.SIGKILL)


def start_dying(mlxq: Mlxq) -> Service:
    """Ask for a service whose engine ends at once, again and again; give it as it is when mlxq has seen enough."""
    mlxq.put("start", service="fast")
    return mlxq.await_doing(State.CRASH_LOOP)


def forge_reused_pid(mlxq: Mlxq) -> bool:
    """Let the row name a pid that a stranger (this process) has now; tell whether it outlives that."""
    me = process.identify(os.getpid())
    assert me
    forged = process.encode(process.Identity(me.pid, "1", me.boot))
    mlxq.db.run("UPDATE services SET state = 'ready', desired = 'down', identity = ? WHERE name = 'fast'", (forged,))
    mlxq.await_doing(State.STOPPED)
    return process.alive(me)


def let_it_look() -> None:
    """Give the watchdog time for two looks: that it leaves something alone cannot be awaited."""
    time.sleep(2.5 * watchdog.TICK_S)


def idle(mlxq: Mlxq, seconds: float) -> tuple[float, float]:
    """Give what the worker takes while all is well: CPU seconds a minute, and resident MiB."""
    assert mlxq.worker
    worker = psutil.Process(mlxq.worker.pid)
    before = sum(worker.cpu_times()[:2])
    time.sleep(seconds)
    spent = sum(worker.cpu_times()[:2]) - before
    return spent * 60 / seconds, worker.memory_info().rss / 2**20


def unclean_boot(mlxq: Mlxq) -> None:
    """Make the ledger look as if the machine had gone down: another boot's worker, and engines that are gone."""
    mlxq.kill_worker()
    for one in service.listing(mlxq.db):
        if one.identity:
            process.stop(process.decode(one.identity), 0)
            until(lambda port=one.port: ports.free(port))
            earlier = {key: f"before/{found.partition('/')[2]}" for key, found in marks(one).items()}
            service.update(mlxq.db, one.name, **earlier)
    mlxq.db.run("UPDATE worker SET owner = 'before/1/1'")


def marks(one: Service) -> dict[str, str]:
    """Give the processes that a row names, by column."""
    return {key: found for key, found in (("identity", one.identity), ("shim", one.shim)) if found}
