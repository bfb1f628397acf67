"""A real worker over real engines of a tiny model, to be killed and hung."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.ports import free_port

from state import job, ledger, secrets, service, stack
from state.db import Database, open_database
from state.paths import Home
from state.service import Service, State
from state.stack import Engine
from tasks.kinds import new
from tasks.system import process
from tasks.system.process import Identity

FAKE = """
import os, shlex
from tasks.engines import serving
flags, real_argv = shlex.split(os.environ["FAKE_ENGINE"]), serving.argv
serving.argv = lambda served, at: real_argv(served, at) if served.engine.purpose != "chat" else [
    at.python, *flags,
    "--port", str(served.engine.port), "--name", served.engine.name, "--weights", served.engine.weights,
    "--cache", str(served.engine.cache_bytes),
]
"""
SCRIPTED = """
import os
from tasks.engines import serving
program, slots = os.environ["SCRIPTED_ENGINE"], os.environ["SCRIPTED_SLOTS"]
serving.argv = lambda served, at: [at.python, program, str(served.engine.port), served.engine.name, slots]
"""
CLOCK = """
import os, pathlib, time
real_time, offset = time.time, pathlib.Path(os.environ["CLOCK"])
time.time = lambda: real_time() + float(offset.read_text())
"""
DYING = """
import importlib, os, signal
module, name = os.environ["DIES_AT"].split(":")
setattr(importlib.import_module(module), name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
"""
LIMIT_S = 180.0
"""Waits end long before; an engine that starts in 4 s alone was seen to take 40 on a crowded machine."""
WORKER = "from state.paths import get_home; from tasks import worker; worker.run(get_home())"
TIER = Engine(
    name="fast",
    model="tiny",
    quant="bf16",
    source="file:/tiny",
    port=0,
    context=4096,
    memory_bytes=2**30,
    cache_bytes=16 * 2**20,
    concurrency=4,
)


def until(true: Callable[[], Any], limit_s: float = LIMIT_S, pause_s: float = 0.01) -> Any:
    deadline = time.monotonic() + limit_s
    while not (found := true()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(pause_s)
    return found


class Mlxq:
    """One home with its worker and its services."""

    def __init__(self, home: Home, prefix: Sequence[str] = ()) -> None:
        """`prefix`: the words before the worker's command line, such as those that enter a network namespace."""
        self.home = home
        self.prefix = prefix
        self.db: Database = open_database(home)
        self.worker: subprocess.Popen[bytes] | None = None
        secrets.ensure(home.secrets)

    def serve(self, weights: Path, *names: str) -> None:
        """Make a stack of one tier a name, each at a free port."""
        stack.replace(self.db, [replace(TIER, name=name, port=free_port(), weights=str(weights)) for name in names])

    def work(self, prelude: str = "", **environment: str) -> None:
        self._start(prelude + WORKER, environment)

    def work_dying_at(self, where: str) -> None:
        """Start a worker that is killed when it first comes to a function, `module:name`."""
        self.work(DYING, DIES_AT=where)

    def work_with_fakes(self, *flags: str, prelude: str = "", **environment: str) -> None:
        """Start a worker whose engines are fake_engine.py with these flags; `prelude` is run before it."""
        program = shlex.join([str(Path(__file__).with_name("fake_engine.py")), *flags])
        self._start(prelude + FAKE + WORKER, {"FAKE_ENGINE": program} | environment)

    def work_with_scripted(self, slots: int) -> None:
        """Start a worker whose engines are scripted_engine.py, which works at `slots` requests side by side."""
        program = str(Path(__file__).with_name("scripted_engine.py"))
        self._start(SCRIPTED + WORKER, {"SCRIPTED_ENGINE": program, "SCRIPTED_SLOTS": str(slots)})

    def _start(self, code: str, environment: dict[str, str]) -> None:
        with self.home.log("worker").open("ab") as log:
            self.worker = subprocess.Popen(
                [*self.prefix, sys.executable, "-P", "-c", code],
                env=os.environ | {"MLXQ_HOME": str(self.home.root)} | environment,
                stdout=log,
                stderr=log,
            )
        until(lambda: self.db.value("SELECT pid FROM worker") == self.worker.pid)

    def kill_worker(self) -> None:
        assert self.worker
        self.worker.kill()
        self.worker.wait()

    def put(self, kind: str, **args: Any) -> int:
        return ledger.enqueue(self.db, new(kind, args))[0]

    def ended(self, number: int, limit_s: float = LIMIT_S) -> job.Job:
        until(lambda: not job.get(self.db, number).live, limit_s)
        return job.get(self.db, number)

    def up(self, name: str = "fast") -> Service:
        done = self.ended(self.put("start", service=name))
        assert done.state == "succeeded", (done.error, self.logs())
        return self.one(name)

    def one(self, name: str = "fast") -> Service:
        return service.get(self.db, name)

    def port(self, name: str = "fast") -> int:
        return stack.engine(self.db, name).port

    def source(self, name: str = "fast") -> str:
        return stack.engine(self.db, name).source

    def identity(self, name: str = "fast") -> Identity:
        text = self.one(name).identity
        assert text, self.logs()
        return process.decode(text)

    def await_doing(self, doing: State, name: str = "fast", limit_s: float = LIMIT_S) -> Service:
        until(lambda: (one := service.find(self.db, name)) and one.state == doing, limit_s)
        return self.one(name)

    def await_next(self, earlier: Service, limit_s: float = LIMIT_S) -> Service:
        """Wait until the next start of a service is ready."""

        def there() -> bool:
            one = self.one(earlier.name)
            return one.state == State.READY and one.generation > earlier.generation

        until(there, limit_s)
        return self.one(earlier.name)

    def events(self, name: str = "fast") -> list[str]:
        return [row["name"] for row in self.db.rows("SELECT name FROM events WHERE service = ? ORDER BY id", (name,))]

    def engines(self, name: str = "fast") -> int:
        return len(process.find_orphans(str(self.home.root), name))

    def logs(self) -> str:
        return "\n".join(log.read_text()[-4000:] for log in self.home.logs.glob("*.log"))

    def close(self) -> None:
        if self.worker and self.worker.poll() is None:
            self.kill_worker()
        for one in service.listing(self.db):
            for left in process.find_orphans(str(self.home.root), one.name):
                process.stop(left, 0)
        self.db.close()


def make_tiny(folder: Path) -> Path:
    """Make the weights in a child, as mlx belongs in no process that forks."""
    code = "import sys; from pathlib import Path; import tiny_model; tiny_model.make(Path(sys.argv[1]))"
    support = str(Path(__file__).parent)
    subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env=os.environ | {"PYTHONPATH": support},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return folder
