"""What an upgrade costs: the table of what it must reach, and what it reaches here.

    uv run python benchmarks/upgrade.py                  all of it: nine minutes on a machine that does nothing else
    uv run python benchmarks/upgrade.py --only kills     an upgrade and its way back under load, killed at every step
    uv run python benchmarks/upgrade.py --only kills --moments 'the guard looks'     killed at some steps
    uv run python benchmarks/upgrade.py --only engine    an upgrade that replaces a real engine under streams
    uv run python benchmarks/upgrade.py --only gateway   the gateway replaced 50 times under load
    uv run python benchmarks/upgrade.py --only wheel     from the wheel to the first answer, with its real packages

Real installations by uv, workers and gateways. In `kills` and `gateway` the engine is scripted; in `kills` and `engine`
the libraries are lent (tests/support/release.py), so that each version has an engine in its own environment, and an
upgrade replaces it. `wheel` needs the packages in uv's cache, or a package index.
"""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from harness import table

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "process")]

import test_upgrade as steps  # noqa: E402 (the crash points are the test's)
from support import loopback, release  # noqa: E402
from support.gateway import MASTER, Gateway, Upstream  # noqa: E402
from support.load import Load  # noqa: E402
from support.mlxq_home import until  # noqa: E402
from support.package_index import PackageIndex, running  # noqa: E402
from support.ports import free_port, free_run  # noqa: E402
from support.release import User  # noqa: E402

from state import secrets  # noqa: E402
from state.paths import Home  # noqa: E402
from tasks.plan import gateway as plan  # noqa: E402
from tasks.supervision import probe, socket_handover  # noqa: E402
from tasks.weights import builtin  # noqa: E402

Row = tuple[str, str, str, bool]
"""What was done, the bound, what came of it, and whether that is what it must be."""
MOMENTS = (*steps.FORWARD, *steps.BACKWARD)
LIMIT_S = 60.0
WHEEL_BYTES = 1_300_000_000
REPLACEMENTS = 50
STREAMS = 2
TOKENS = 60
"""Of each answer: about ten seconds on MLX's CPU backend, beyond the grace of a stopped engine."""
CLIENTS = 80
"""A quarter of them keep their connection."""
CLIENT = """
import json, socket, sys, threading
port, key, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
body = json.dumps({"model": "standard", "messages": [{"role": "user", "content": "say hi"}]}).encode()
head = f"POST /v1/chat/completions HTTP/1.1\\r\\nHost: localhost\\r\\nAuthorization: Bearer {key}\\r\\n"
request = f"{head}Content-Type: application/json\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n".encode() + body
over, lock, answered, lost = threading.Event(), threading.Lock(), 0, []


def ask(connection):
    connection.sendall(request)
    answer = b""
    while b"\\r\\n\\r\\n" not in answer or len(answer.split(b"\\r\\n\\r\\n", 1)[1]) < length(answer):
        part = connection.recv(65536)
        if not part:
            raise EOFError(f"closed after {len(answer)} bytes")
        answer += part
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise ValueError(answer[:60])
    return b"connection: close" in answer.lower()


def length(answer):
    return int(answer.lower().split(b"content-length:")[1].split(b"\\r\\n")[0])


def client(kept):
    global answered
    connection = None
    while not over.is_set():
        try:
            connection = connection or socket.create_connection(("127.0.0.1", port), 60)
            closes = ask(connection)
            with lock:
                answered += 1
        except (OSError, EOFError, ValueError) as problem:
            closes = True
            with lock:
                lost.append(repr(problem))
        if connection and (closes or not kept):
            connection.close()
            connection = None


threads = [threading.Thread(target=client, args=(number % 4 == 0,)) for number in range(count)]
for thread in threads:
    thread.start()
sys.stdin.readline()
over.set()
for thread in threads:
    thread.join()
print(json.dumps({"answered": answered, "lost": lost}))
"""
"""Clients that ask without a pause until a line comes, each by a plain socket: nothing tries again what was reset."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--only", choices=["kills", "engine", "gateway", "wheel"])
    parser.add_argument("--moments", nargs="+", choices=MOMENTS, default=MOMENTS, help="when it is killed")
    parser.add_argument("--times", type=int, default=REPLACEMENTS, help="how often the gateway is replaced")
    wanted = parser.parse_args()
    parts: dict[str, Callable[[Path], list[Row]]] = {
        "kills": partial(kills, moments=wanted.moments),
        "engine": engine,
        "gateway": partial(replaced, times=wanted.times),
        "wheel": wheel,
    }
    with tempfile.TemporaryDirectory() as name:
        rows = [row for part, measure in parts.items() if wanted.only in {None, part} for row in measure(Path(name))]
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    table(["", "must be", "is", ""], [(*row[:3], "reached" if row[3] else "MISSED") for row in rows])
    return 0 if all(row[3] for row in rows) else 1


def kills(folder: Path, moments: Sequence[str]) -> list[Row]:
    """Upgrade, go back, and be killed on each way, while four clients ask."""
    index = PackageIndex()
    steps.offer(index, folder / "wheels")
    with _installed(folder, index) as user:
        return _under_load(user, moments)


@contextmanager
def _installed(folder: Path, index: PackageIndex) -> Generator[User]:
    """Yield a user whose stack is of the old version, with an index that has both."""
    models = builtin.ensure(folder / "models").parent
    with running(index):
        user = User(folder / "user", index, models)
        user.folder.mkdir()
        try:
            user.install(steps.OLD)
            user.set_up()
            yield user
        finally:
            user.close()


def _under_load(user: User, moments: Sequence[str]) -> list[Row]:
    with Load(user.ports[0], secrets.read(user.home.secrets)[secrets.MASTER]) as load:
        upgrade_s = _timed(user, "upgrade")[0]
        back_s, told = _timed(user, "upgrade", "--back", "--yes")
        print(f"upgrade {upgrade_s:.1f} s, the way back {back_s:.1f} s", flush=True)
        (user.home.root / "proven").touch()
        took = _ways(user, moments)
    worst = max(took, key=lambda moment: took[moment])
    named = str(user.home.root / "backups") in told
    return [
        ("an upgrade under load, requests lost", "0", f"{len(load.failures)} of {load.answered}", not load.failures),
        (
            f"killed at one of {len(took)} steps: seconds until a version serves",
            f"{LIMIT_S:.0f}",
            f"{took[worst]:.1f} ({worst})",
            took[worst] <= LIMIT_S,
        ),
        ("downgrade after a newer schema: the backup is named", "yes", "yes" if named else "no", named),
        ("an upgrade with its first light, seconds", "-", f"{upgrade_s:.1f}", True),
        ("the way back, seconds", "-", f"{back_s:.1f}", True),
    ]


def _ways(user: User, moments: Sequence[str]) -> dict[str, float]:
    """Return the seconds of each kill: there and back again, as long as there is a moment left to be killed at."""
    took: dict[str, float] = {}
    forward = [moment for moment in steps.FORWARD if moment in moments]
    backward = [moment for moment in steps.BACKWARD if moment in moments]
    while forward or backward:
        steps.back_to_old(user)  # with its gateway: else none is replaced on the way there
        if forward:
            moment = forward.pop(0)
            took[moment] = _killed(user, moment, steps.FORWARD[moment], "upgrade")
        else:
            user.run("upgrade")
        if backward:
            moment = backward.pop(0)
            took[moment] = _killed(user, moment, steps.BACKWARD[moment], "upgrade", "--back", "--yes")
    return took


def _timed(user: User, *words: str) -> tuple[float, str]:
    began = time.monotonic()
    printed = user.run(*words).stdout
    return time.monotonic() - began, printed


def _killed(user: User, moment: str, order: str, *words: str) -> float:
    """Return the seconds from the command, which is killed on the way, until a worker serves what was asked for."""
    (user.home.root / "die-at").write_text(order)
    if words == ("upgrade",):
        user.kill_worker()
    began = time.monotonic()
    user.run(*words)
    until(user.settled, LIMIT_S)
    seconds = time.monotonic() - began
    assert not (user.home.root / "die-at").exists(), "it was killed"
    print(f"killed when {moment}: {seconds:.1f} s", flush=True)
    return seconds


def engine(folder: Path) -> list[Row]:
    """Upgrade while clients of the built-in model ask for one long stream after another; its engine is replaced."""
    index = PackageIndex()
    built = release.build(folder / "dist")
    versions = [release.release(built, folder / "wheels", name, scripted=False) for name in (steps.OLD, steps.NEW)]
    index.add_hashed(*versions, release.lent(folder / "wheels"))
    with _installed(folder, index) as user:
        return _streamed(user)


def _streamed(user: User) -> list[Row]:
    before = _engine_pid(user)
    load = Load(user.ports[0], secrets.read(user.home.secrets)[secrets.MASTER])
    over = threading.Event()

    def stream() -> None:
        with loopback.client(timeout=600) as client:
            while not over.is_set():
                load.ask(client, "Tell me a long story about a lighthouse.", stream=True, max_tokens=TOKENS)

    with ThreadPoolExecutor() as pool:
        asking = [pool.submit(stream) for _ in range(STREAMS)]
        try:
            seconds, _ = _timed(user, "upgrade")
        finally:
            over.set()
    for future in asking:
        future.result()
    print("\n".join(load.failures[:10]))
    lost, asked = len(load.failures), load.answered + len(load.failures)
    changed = _engine_pid(user) != before
    return [
        ("an upgrade that replaces the real engine, streams lost", "0", f"{lost} of {asked}", changed and not lost),
        ("this upgrade, with the last answers of the old engine, seconds", "-", f"{seconds:.1f}", True),
    ]


def _engine_pid(user: User) -> int:
    listed = json.loads(user.run("status", "--json").stdout)["services"]
    return next(row["pid"] for row in listed if row["name"] == "standard")


def replaced(folder: Path, times: int) -> list[Row]:
    """Replace the gateway again and again, while clients ask without a pause."""
    home = Home(folder / "gateway").make()
    engine = Upstream("standard")
    engine.start()
    keys = {secrets.MASTER: MASTER, secrets.TIER: "sk-tier"}
    first = Gateway(home.root, [engine.tier()], keys)
    first.start()
    assert first.process
    gateways = [first.process]
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(first.port), MASTER, str(CLIENTS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        gateways += [_successor(home, first, keys, generation) for generation in range(2, times + 2)]
        told = json.loads(client.communicate("\n")[0])
    finally:
        client.kill()
        for gateway in gateways:
            gateway.kill()
        engine.kill()
    print("\n".join(told["lost"][:10]))
    lost, asked = len(told["lost"]), told["answered"] + len(told["lost"])
    return [(f"the gateway replaced {times} times under load, requests lost", "0", f"{lost} of {asked}", not lost)]


def _successor(home: Home, first: Gateway, keys: dict[str, str], generation: int) -> subprocess.Popen[bytes]:
    """Start a gateway beside the one that serves, and have it take over."""
    trial = free_port()
    environment = plan.environment(
        keys,
        base=os.environ,
        home=str(home.root),
        backend="cpu",
        generation=generation,
        cloud_url=plan.OPENROUTER,
        cloud_cap_usd=1.0,
    )
    argv = plan.argv(sys.executable, str(home.root / "gateway.yaml"), first.port)
    with first.log.open("ab") as log:
        gateway = subprocess.Popen(
            argv, env=environment | {plan.TRIAL: str(trial), plan.TRIAL_KEY: "sk-trial"}, stdout=log, stderr=log
        )
    until(lambda: probe.gateway_ready(trial, 30.0))
    gateway.send_signal(signal.SIGUSR1)
    until(lambda: (holder := socket_handover.serving_process(home)) and holder.generation == generation)
    return gateway


def wheel(folder: Path) -> list[Row]:
    """Install the wheel as a user does, set the built-in model up, and ask it."""
    ports = {"TIER_PORT_BASE": free_run(10), "LITELLM_PORT": free_port(), "PAGE_PORT": free_port()}
    ran = subprocess.run(
        [ROOT / ".ci" / "wheel", release.build(folder / "dist")],
        env=os.environ | {f"MLXQ_{name}": str(port) for name, port in ports.items()},
        capture_output=True,
        text=True,
        check=False,
    )
    figures = re.search(r"first answer: (\d+) s; environments: (\d+) MB", ran.stdout)
    if figures is None:
        raise SystemExit(f"{ran.stdout}\n{ran.stderr}")
    seconds, megabytes = map(int, figures.groups())
    unwanted = re.search(r"Not wanted: (.*)", ran.stdout)
    return [
        ("from the wheel to the first answer, seconds", f"{LIMIT_S:.0f}", str(seconds), seconds <= LIMIT_S),
        ("its environments, MB", "1300", str(megabytes), megabytes * 1_000_000 <= WHEEL_BYTES),
        ("packages of torch, CUDA, gradio, opencv in it", "0", unwanted[1] if unwanted else "0", not unwanted),
    ]


if __name__ == "__main__":
    sys.exit(main())
