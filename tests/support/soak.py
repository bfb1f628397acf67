"""Many faults, chosen at random, upon a whole mlxq that is asked all the while; and an account of every request.

What is counted: a request is *lost* when it was not answered with 200 although it had every right to be. It had that
right unless, while it was under way,

- an engine or the gateway was harmed (it may have been in flight there),
- or the gateway was away: from its harm until its next process was ready,
- or every tier was away at once, counted likewise, and for as long after its return as the gateway lets a tier rest
  that failed (COOLDOWN_SECONDS): when the last one dies, the gateway may not have asked the first one again yet.

That the worker or the page dies, a clock jumps, a log is filled, a file is spoiled or deleted, the disk of the models
is away, everything sleeps for a while, a chain waits for a pull, or a tier other than the last is away is no excuse.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from support import loopback, mounts, recovery
from support.mlxq_home import CLOCK, Mlxq, until
from support.ports import free_port

from state import ledger, secrets, service, settings, wakeup
from state.db import open_database
from state.errors import EngineFailed
from state.service import Service, State
from tasks.gateway import cooldown
from tasks.plan import gateway, page
from tasks.supervision import probe, socket_handover
from tasks.system import process

TIERS = ("standard", "fast", "longctx")
LIMIT_S = 300.0
"""Within this long after each burst of faults all must be well again. On a machine that is ten times too busy, mlxq
waits 200 s for the token of an engine, and 120 s for one that starts."""
LOG_BYTES = 2 * 2**20
SLIPS = (
    *(b"", b"litellm-port: [", b"\xff\xfe\x00", b"- a\n"),
    *(b"a: &a [1]\nb: *a\n", b"max-restarts: many\n", bytes(4096)),
)
"""What a file holds after a slip, or after a disk was full."""
LOW = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
"""
"""A worker that is started from macOS's Terminal."""
READS = (["status"], ["models"], ["why", "standard"], ["config", "list"], ["jobs"], ["keys", "list"], ["doctor"])
"""Commands that work whatever is wrong with a file; doctor ends with 1 when it finds something."""


@contextmanager
def renamed(folder: Path) -> Generator[None]:
    """Take a folder away, as when macOS mounts a disk under another name."""
    elsewhere = folder.with_name("elsewhere")
    folder.rename(elsewhere)
    yield
    elsewhere.rename(folder)


@contextmanager
def unplugged(folder: Path) -> Generator[None]:
    """Show the empty folder on which a disk is mounted."""
    empty = folder.with_name("mount-point")
    empty.mkdir(exist_ok=True)
    with mounts.over(folder, empty):
        yield


MOUNTS: tuple[Callable[[Path], AbstractContextManager[object]], ...] = (
    *(unplugged, mounts.dead, mounts.hanging, mounts.read_only),
)
"""How a disk goes away, where this account may mount."""


def _may_mount() -> bool:
    """Enter a mount namespace; return whether this account may."""
    try:
        mounts.enter()
    except pytest.skip.Exception:
        return False
    return True


@dataclass
class Away:
    """A time in which a service could not be counted on, in unix seconds."""

    name: str
    identity: str
    """The process that was harmed; another one that is ready ends the time."""
    since: float
    until: float = float("inf")


@dataclass(frozen=True)
class Asked:
    """One request and what came of it."""

    began: float
    ended: float
    said: str
    """200, or why not."""


@dataclass
class Soak:
    """One run. `seed` decides every choice."""

    mlxq: Mlxq
    tiny: Path
    seed: int
    faults: Counter[str] = field(default_factory=Counter[str])
    away: list[Away] = field(default_factory=list[Away])
    asked: list[Asked] = field(default_factory=list[Asked])
    stop: threading.Event = field(default_factory=threading.Event)
    broken: dict[str, Callable[[], None]] = field(default_factory=dict[str, Callable[[], None]])
    """Tiers that only a person can mend, and how; at most two, so that one is there to be harmed."""
    burst: list[str] = field(default_factory=list[str])
    """The faults since all was well."""
    spoiled: dict[Path, bytes | None] = field(default_factory=dict[Path, bytes | None])
    """Files with a slip in them, and what they held before."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.clock = self.mlxq.home.root / "clock"
        self.disks = (renamed, *(MOUNTS if _may_mount() else ()))

    # ------------------------------------------------------------ the stage

    def run(self, count: int, clients: int = 2) -> None:
        """Bring all up, do `count` faults in bursts, and see that all is well after each burst."""
        self.began = time.monotonic()
        self._set_up()
        threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]
        threads.append(threading.Thread(target=self._watch))
        for thread in threads:
            thread.start()
        try:
            while self.faults.total() < count:
                self._burst(min(self.random.randint(1, 4), count - self.faults.total()))
                self._await_health()
                print(f"{time.monotonic() - self.began:.0f} s: {self.faults.total()} faults, well again", flush=True)
        finally:
            self.stop.set()
            for thread in threads:
                thread.join(LIMIT_S)

    def _set_up(self) -> None:
        self.clock.write_text("0")
        for name in TIERS:
            shutil.copytree(self.tiny, self.mlxq.home.models / name)
        self.mlxq.serve(self.tiny, *TIERS)
        for name in TIERS:
            self.mlxq.db.run("UPDATE engines SET weights = ? WHERE name = ?", (str(self.mlxq.home.models / name), name))
        settings.write(self.mlxq.home, "max-restarts", 100)
        settings.write(self.mlxq.home, "log-max-size-mb", 1)
        settings.write(self.mlxq.home, "page-port", free_port())
        self._work()
        recovery.up_with_gateway(self.mlxq, free_port())
        self._start(page.SERVICE)

    def _work(self) -> None:
        prelude = CLOCK + self.random.choice((LOW, ""))
        self.mlxq.work_with_fakes("--load", "0.3", prelude=prelude, CLOCK=str(self.clock))

    # ------------------------------------------------------------ the faults

    def _burst(self, most: int) -> None:
        """Do some faults, so soon after each other that a later one meets what an earlier one left."""
        for _ in range(most):
            if len(self.broken) < len(TIERS) - 1:
                self._harm()
                time.sleep(self.random.uniform(0, 1))

    def _tier(self) -> str:
        return self.random.choice([name for name in TIERS if name not in self.broken])

    def _harm(self) -> None:
        """Do one fault, chosen at random, to a service that lives."""
        ways = {
            self._signal: 8,
            self._freeze: 3,
            self._wedge: 1,
            self._signal_gateway: 1,
            self._kill_worker: 3,
            self._rob: 2,
            self._cut_weights: 2,
            self._fill_log: 2,
            self._set_clock: 2,
            self._spoil_file: 3,
            self._delete_file: 3,
            self._change_mind: 3,
            self._type_commands: 2,
            self._wait_behind_a_pull: 1,
            self._sleep: 1,
            self._hurt_page: 2,
            self._take_disk_away: 3,
            self._leave_odd_folder: 1,
            self._use_up_descriptors: int(sys.platform == "linux"),  # prlimit(2)
        }
        (way,) = self.random.choices(list(ways), list(ways.values()))
        self.burst.append(way.__name__)
        print(f"    {way.__name__.strip('_')}", flush=True)
        way()
        self.faults[way.__name__.strip("_")] += 1

    def _hurt(self, name: str, number: signal.Signals) -> process.Identity:
        """Signal the process of a service, once it has one that lives."""
        return self._send(name, self._await_living(name), number)

    def _await_living(self, name: str) -> process.Identity:
        return until(lambda: self._living(name), LIMIT_S)

    def _send(self, name: str, found: process.Identity, number: signal.Signals) -> process.Identity:
        self.away.append(Away(name, process.encode(found), time.time()))
        process.send(found, number)
        return found

    def _living(self, name: str) -> process.Identity | None:
        one = self.mlxq.one(name)
        found = process.decode(one.identity) if one.identity else None
        return found if found and process.alive(found) else None

    def _signal(self) -> None:
        ends = (signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV, signal.SIGTERM)
        self._hurt(self._tier(), self.random.choice(ends))

    def _freeze(self) -> None:
        self._hurt(self._tier() if self.random.random() < 0.8 else gateway.SERVICE, signal.SIGSTOP)

    def _wedge(self) -> None:
        """Let it take requests and make no token; one that loads yet would die of the signal, which is a fault too."""
        self._hurt(self._tier(), signal.SIGUSR1)

    def _signal_gateway(self) -> None:
        self._hurt(gateway.SERVICE, signal.SIGKILL)

    def _hurt_page(self) -> None:
        self._hurt(page.SERVICE, self.random.choice((signal.SIGKILL, signal.SIGSTOP)))

    def _use_up_descriptors(self) -> None:
        """Leave the gateway no descriptor for another connection, until it is replaced."""
        before = self.mlxq.await_doing(State.READY, gateway.SERVICE, LIMIT_S)
        found = process.decode(before.identity or "")
        with ExitStack() as clients:
            with suppress(ProcessLookupError, FileNotFoundError):
                limit = len(list(Path(f"/proc/{found.pid}/fd").iterdir())) + 2
                resource.prlimit(found.pid, resource.RLIMIT_NOFILE, (limit, limit))
            self.away.append(Away(gateway.SERVICE, process.encode(found), time.time()))
            for _ in range(20):
                with suppress(OSError):
                    clients.enter_context(socket.create_connection(("127.0.0.1", before.port), 1))
            self.mlxq.await_next(before, LIMIT_S)

    def _kill_worker(self) -> None:
        """Kill it, and start another as launchd would."""
        self.mlxq.kill_worker()
        time.sleep(self.random.uniform(0, 1))
        self._work()

    def _rob(self) -> None:
        """Kill an engine and take its port, if we are quicker than its next start."""
        name = self._tier()
        process.wait(self._hurt(name, signal.SIGKILL), LIMIT_S)
        with suppress(OSError):
            thief = socket.create_server(("127.0.0.1", self.mlxq.port(name)))
            self.broken[name] = lambda: self._give_back(name, thief)

    def _give_back(self, name: str, thief: socket.socket) -> None:
        self._await_given_up(name)
        thief.close()
        self._start(name)

    def _cut_weights(self) -> None:
        """Cut the weights of an engine that lives, and kill it; one that starts would read them and be given up."""
        name = self._tier()
        found = self._await_living(name)
        os.truncate(self.mlxq.home.models / name / "model.safetensors", 1000)
        self._send(name, found, signal.SIGKILL)
        self.broken[name] = lambda: self._make_whole(name)

    def _make_whole(self, name: str) -> None:
        self._await_given_up(name)
        shutil.copy(self.tiny / "model.safetensors", self.mlxq.home.models / name)
        self._start(name)

    def _start(self, name: str) -> None:
        """Start a tier, and once more when told that the last start has just failed, as a person does."""
        until(lambda: self.mlxq.ended(self.mlxq.put("start", service=name)).state == "succeeded", LIMIT_S)

    def _await_given_up(self, name: str) -> None:
        """Wait until mlxq says that only a person can help."""
        self.mlxq.await_doing(State.FAILED, name, LIMIT_S)

    def _fill_log(self) -> None:
        with process.appended(self.mlxq.home.log(self.random.choice(TIERS))) as log:
            os.write(log, (b"x" * 99 + b"\n") * (LOG_BYTES // 100))
        self.mlxq.put("rotate")

    def _take_disk_away(self) -> None:
        """Take the disk of the models away, as it does, kill an engine and sometimes the worker, and bring it back."""
        name = self._tier()
        found = self._await_living(name)
        with self.random.choice(self.disks)(self.mlxq.home.models):
            self._send(name, found, signal.SIGKILL)
            if self.random.random() < 0.3:
                self._kill_worker()
            time.sleep(self.random.uniform(0, 4))

    def _set_clock(self) -> None:
        part = self.clock.with_suffix(".part")
        part.write_text(str(self.random.choice((-1, 1)) * self.random.uniform(60, 7200)))
        part.replace(self.clock)

    def _spoil_file(self) -> None:
        """Make a slip in a file, or damage it, until the burst is over."""
        home = self.mlxq.home
        paths = (home.config, home.gateway_config, home.root / "keys.json", home.catalog / "own.yaml")
        path = self.random.choice(paths)
        before = path.read_bytes() if path.exists() else None
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.random.choice(SLIPS))
        if path != home.gateway_config:  # which mlxq repairs by itself
            self.spoiled.setdefault(path, before)
            self._read()

    def _leave_odd_folder(self) -> None:
        """Put folders beside the models that are no models, and list them; they stay."""
        for number, text in enumerate((*SLIPS, b"{", b"[]", b'{"quantization": 1}', b'{"num_hidden_layers": "x"}')):
            folder = self.mlxq.home.models / f"odd{number}"
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_bytes(text)
            (folder / "._model.safetensors").write_bytes(b"x")
        (self.mlxq.home.models / "nowhere").unlink(missing_ok=True)
        (self.mlxq.home.models / "nowhere").symlink_to("nowhere")
        self._run("models")

    def _read(self) -> None:
        """Run a command that only reads; it works, or says what is wrong."""
        self._run(*self.random.choice(READS))

    def _run(self, *argv: str) -> None:
        _ended(self._shell(*argv))

    def _shell(self, *argv: str) -> subprocess.Popen[str]:
        """Type a command into a shell of its own."""
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "mlxq", *argv],
            env=os.environ | {"MLXQ_HOME": str(self.mlxq.home.root)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _delete_file(self) -> None:
        """Delete a socket or a log."""
        home = self.mlxq.home
        sockets = (wakeup.folder(home) / home.wake.name, socket_handover.place(home))
        self.random.choice((*sockets, home.log("worker"), home.log("gateway"))).unlink(missing_ok=True)

    def _change_mind(self) -> None:
        """Ask for this and that of a tier in close order, as from two shells, and at last that it runs."""
        name = self._tier()
        with self._asked_away(name):
            for kind in self.random.choices(("stop", "start", "restart", "drain"), k=self.random.randint(1, 4)):
                self.mlxq.put(kind, service=name)
                time.sleep(self.random.choice((0, 0, 0.2)))
            self._start(name)

    def _type_commands(self) -> None:
        """Type commands about a tier into several shells at once, and at last that it runs."""
        name = self._tier()
        with self._asked_away(name):
            commands = self.random.choices((["down"], ["up"], ["restart"], ["down", "--drain"]), k=3)
            shells = [self._shell(*command, name) for command in commands]
            for shell in shells:
                _ended(shell)
            self._run("up", name)

    @contextmanager
    def _asked_away(self, name: str) -> Generator[None]:
        """Let a tier be away on request for a time."""
        away = Away(name, self.mlxq.one(name).identity or "", time.time())
        self.away.append(away)
        yield
        away.until = time.time() + cooldown.COOLDOWN_S

    def _wait_behind_a_pull(self) -> None:
        """Let a chain that starts every service wait for a pull, until the burst is over."""
        recovery.wait_behind_a_pull(self.mlxq)

    def _sleep(self) -> None:
        """Stop everything for a while, as a Mac does when its lid is closed."""
        services = [found for row in service.listing(self.mlxq.db) if (found := self._living(row.name))]
        assert self.mlxq.worker
        worker = process.identify(self.mlxq.worker.pid)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for found in (*services, *([worker] if worker else [])):
                process.send(found, number)
            if number == signal.SIGSTOP:
                time.sleep(self.random.uniform(0.5, 3))

    # ------------------------------------------------------------ the health

    def lost_jobs(self) -> int:
        """Return how many jobs were enqueued and are no longer known, or have not ended."""
        enqueued = self.mlxq.db.value("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'")
        ended = self.mlxq.db.value("SELECT count(*) FROM jobs WHERE state NOT IN ('queued', 'running', 'blocked')")
        return enqueued - ended

    def _await_health(self) -> None:
        """Mend as a person would, and wait until all is well. What died lately is forgotten, as ten minutes would."""
        for path, content in self.spoiled.items():
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
        self.spoiled.clear()
        for row in self.mlxq.db.rows("SELECT id FROM jobs WHERE kind = 'pull' AND state = 'queued'"):
            ledger.cancel(self.mlxq.db, row["id"])
        for mend in self.broken.values():
            mend()
        self.broken.clear()
        deadline = time.monotonic() + LIMIT_S
        while ails := self._ails():
            assert time.monotonic() < deadline, self._in_vain(ails)
            time.sleep(0.01)
        self.burst.clear()
        self.mlxq.db.run("UPDATE services SET exits = '[]'")

    def _in_vain(self, ails: str) -> str:
        """Say what is not well after all faults of a burst, and what mlxq made of it."""
        services = [
            f"{row.name}: {row.desired}, {row.state}, {row.cause}, next try {row.next_try_at}, {row.identity}"
            for row in service.listing(self.mlxq.db)
        ]
        jobs = [
            tuple(row)
            for row in self.mlxq.db.rows(
                "SELECT id, kind, service, state, phase, error, run_at, owner FROM jobs ORDER BY id DESC LIMIT 25"
            )
        ]
        now = f"clock {self.clock.read_text()}, worker {self.mlxq.worker and self.mlxq.worker.poll()}"
        return "\n".join([ails, str(self.burst), now, *services, *map(str, jobs), self.mlxq.logs(), self.account()])

    def _ails(self) -> str:
        """Say what is not well; empty when all is."""
        for one in service.listing(self.mlxq.db):
            there = process.find_orphans(str(self.mlxq.home.root), one.name)
            if one.state != State.READY or list(map(process.encode, there)) != [one.identity]:
                return f"{one.name} is {one.state}, {len(there)} processes"
            with suppress(EngineFailed):
                if self._answers(one):
                    continue
            return f"{one.name} does not answer"
        live = self.mlxq.db.value("SELECT count(*) FROM jobs WHERE state IN ('queued', 'running', 'blocked')")
        return f"{live} jobs" if live else ""

    def _answers(self, row: Service) -> bool:
        """Ask a service; one that was stopped a moment ago is still healthy by its row. Raises EngineFailed."""
        if row.kind == "gateway":
            return probe.gateway_ready(row.port, 5.0)
        if row.kind == "page":
            return probe.answers(row.port, page.HEALTH, 5.0)
        return probe.one_token(row.port, self._key(secrets.TIER), row.name, 5.0) > 0

    def _key(self, name: str) -> str:
        return secrets.read(self.mlxq.home.secrets)[name]

    def _watch(self) -> None:
        """Note when a service that was harmed is back."""
        db = open_database(self.mlxq.home)
        while not self.stop.wait(0.05):
            for each in [away for away in self.away if away.until == float("inf")]:
                one = service.get(db, each.name)
                if one.state == State.READY and one.identity != each.identity:
                    rests_s = 0 if each.name == gateway.SERVICE else cooldown.COOLDOWN_S
                    each.until = time.time() + rests_s
        db.close()

    # ------------------------------------------------------------ the requests

    def _ask(self, number: int) -> None:
        """Ask through the gateway, one request after another; no two are alike, as a request may be held for poison."""
        url = f"http://127.0.0.1:{self.mlxq.one(gateway.SERVICE).port}/v1/chat/completions"
        dice = random.Random(self.seed + number)
        with loopback.client(
            headers={"Authorization": f"Bearer {self._key(secrets.MASTER)}"}, timeout=LIMIT_S
        ) as client:
            while not self.stop.wait(0.05):
                began = time.time()
                text = [{"role": "user", "content": f"{number} {len(self.asked)}"}]
                wanted = {"model": dice.choice(TIERS), "max_tokens": 2, "messages": text}
                try:
                    answer = client.post(url, json=wanted)
                    said = "200" if answer.status_code == 200 else f"{answer.status_code} {answer.text[:300]}"
                except httpx.HTTPError as problem:
                    said = repr(problem)
                self.asked.append(Asked(began, time.time(), said))

    def lost(self) -> list[Asked]:
        """Give the requests that were lost, as the head of this file says."""
        return [each for each in self.asked if each.said != "200" and not self._excuse(each)]

    def _excuse(self, each: Asked) -> str:
        if any(each.began <= away.since <= each.ended for away in self.away):
            return "in flight"
        during = {away.name for away in self.away if away.since <= each.ended and each.began <= away.until}
        if gateway.SERVICE in during:
            return "no gateway"
        return "no tier" if during >= set(TIERS) else ""

    def account(self) -> str:
        """Say what was done and what came of it, and of each lost request how it stood with the services then."""
        failed = Counter(self._excuse(each) or "LOST" for each in self.asked if each.said != "200")
        took = time.monotonic() - self.began
        told = (
            f"seed {self.seed}, {took:.0f} s: {self.faults.total()} faults {dict(self.faults)}; "
            f"{len(self.asked)} requests, not answered: {dict(failed)}; jobs lost: {self.lost_jobs()}"
        )
        return "\n".join([told, *(f"{each}\n    {self._lately(each)}" for each in self.lost())])

    def _lately(self, each: Asked) -> str:
        """Say when services were away in the half minute before a request, in seconds from its begin."""
        near = [away for away in self.away if each.began - 30 < away.until and away.since <= each.ended]
        return ", ".join(f"{a.name} {a.since - each.began:.1f} to {a.until - each.began:.1f}" for a in near)


def _ended(shell: subprocess.Popen[str]) -> None:
    """Wait for a command; it never ends by a fault of its own."""
    said, _ = shell.communicate(timeout=LIMIT_S)
    assert "Traceback" not in said, said
    assert "bug in mlxq" not in said, said
