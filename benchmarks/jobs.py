"""What the ledger costs and holds, beside plain SqliteHuey in the same run.

    uv run python benchmarks/jobs.py [--jobs 400 --kills 20 --terms 10 --idle 120 --rounds 40]

The workers are real processes (tests/support/jobworker.py); each job sleeps 50 ms. Submissions are timed from before
the insert to the task's first line. A submission is one durable write, so the row `one write made durable` says what
this disk takes for that alone, measured in between; on a shared disk its worst cases are the ledger's worst cases.
About ten minutes with the defaults.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from harness import table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import beside_pulls
import plain_huey
from support.crew import Crew, Toll, storm

from state import ledger
from state.job import JobState
from state.paths import Home

SECONDS = 0.05
NONE = "no such thing"
ASKER = """
import sys, threading
from state import ledger
from state.db import open_database
from state.job import NewJob
from state.paths import Home
ready = threading.Barrier(10)
def ask():
    db = open_database(Home(__import__("pathlib").Path(sys.argv[1])))
    ready.wait()
    ledger.enqueue(db, NewJob("act", unique_key="one"))
threads = [threading.Thread(target=ask) for _ in range(10)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


class Plain:
    """A plain SqliteHuey with its consumer, asked in the same words as a Crew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.queue, self.task = plain_huey.app(folder)
        self.put = 0

    def start(self, threads: int = 4) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, plain_huey.__file__, str(self.folder), str(threads)], stderr=subprocess.DEVNULL
        )

    def act(self, seconds: float = 0.0) -> int:
        self.put += 1
        self.task(self.put, seconds)
        return self.put

    def notes(self) -> list[list[str]]:
        path = self.folder / "notes"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def started(self, job: int) -> float | None:
        return next(
            (float(at) for number, _, word, at in self.notes() if int(number) == job and word == "started"), None
        )

    def ended(self) -> int:
        return len({number for number, _, word, _ in self.notes() if word == "ended"})


def plain_storm(folder: Path, number: signal.Signals, *, threads: int, jobs: int, kills: int) -> Toll:
    """Do to plain Huey what `storm` does to mlxq."""
    plain, toll = Plain(folder), Toll(jobs, kills, threads)
    for _ in range(jobs):
        plain.act(SECONDS)
    step = max(1, jobs // (2 * kills))
    for turn in range(1, kills + 1):
        worker, goal = plain.start(threads), turn * step
        await_(lambda goal=goal: plain.ended() >= goal)
        worker.send_signal(number)
        worker.wait(20)
    worker = plain.start(threads)
    await_(lambda: len(plain.queue) == 0)
    time.sleep(2)  # what was taken last ends; what was lost never does
    worker.kill()
    worker.wait()
    toll.lost = jobs - plain.ended()
    begun = [job for job, _, word, _ in plain.notes() if word == "started"]
    toll.repeats = len(begun) - len(set(begun))
    return toll


def await_(holds: Callable[[], bool], limit_s: float = 120.0) -> None:
    """Wait by looking: plain Huey has nothing to listen to."""
    until = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError("plain Huey did not get there")
        time.sleep(0.01)


def storms(folder: Path, options: argparse.Namespace) -> list[list[str]]:
    """Kill both, and give a row for each kind of storm."""
    rows: list[list[str]] = []
    for number, kills in ((signal.SIGKILL, options.kills), (signal.SIGTERM, options.terms)):
        for threads in (4, 8):
            name = f"{kills} {number.name}, {threads} threads"
            crew = Crew(Home(folder / name.replace(" ", "-") / "home").make())
            ours = storm(crew, number, threads=threads, jobs=options.jobs, kills=kills, seconds=SECONDS)
            crew.close()
            place = folder / name.replace(" ", "-") / "plain"
            place.mkdir()
            theirs = plain_storm(place, number, threads=threads, jobs=options.jobs, kills=kills)
            rows += toll_rows(name, ours, theirs)
            show(rows[-4:])
    return rows


def toll_rows(name: str, ours: Toll, theirs: Toll) -> list[list[str]]:
    bound = ours.threads * ours.kills
    slowest = max(ours.rescue_s, default=0.0)
    rescue = [f"{name}: rescue p100", "3 s", f"{slowest:.2f} s" if ours.rescue_s else "none needed", NONE]
    return [
        [f"{name}: lost of {ours.jobs}", "0", str(ours.lost), str(theirs.lost)],
        [f"{name}: repeats", f"≤ {bound}", str(ours.repeats), str(theirs.repeats)],
        [f"{name}: anything after success", "0", str(ours.after_success), ""],
        rescue,
    ]


def started(crew: Crew, job: int) -> float | None:
    return next((note.at for note in crew.notes() if note.job == job and note.word == "started"), None)


def latency(ask: Callable[[], int], at: Callable[[int], float | None]) -> float:
    """Put one job in and give the seconds until its task's first line."""
    begun = time.monotonic()
    job = ask()
    await_(lambda: at(job) is not None)
    return (at(job) or 0.0) - begun


def latencies(
    rounds: int, ask: Callable[[], int], at: Callable[[int], float | None], between: Callable[[], None] = lambda: None
) -> list[float]:
    chance = random.Random(7)
    taken: list[float] = []
    for _ in range(rounds):
        time.sleep(chance.uniform(0.2, 0.8))
        between()
        taken.append(latency(ask, at))
    return sorted(taken)


class Disk:
    """A file on the ledger's disk, to be written to as the ledger is: 4 KiB made durable."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / "disk").open("ab", buffering=0)
        self.taken: list[float] = []

    def write(self) -> None:
        begun = time.monotonic()
        self._file.write(bytes(4096))
        os.fsync(self._file.fileno())
        self.taken.append(time.monotonic() - begun)

    def row(self) -> list[str]:
        taken = sorted(self.taken)
        return [
            "one write made durable, p50 and p99",
            "",
            f"{ms(statistics.median(taken))}, {ms(at_share(taken, 0.99))}",
            "",
        ]


def idle_and_latency(folder: Path, options: argparse.Namespace) -> list[list[str]]:
    """Let both idle at once, then time what is asked of them."""
    crew, plain = Crew(Home(folder / "idle").make()), Plain(folder)
    workers = [crew.start(), plain.start()]
    crew.until_ended(crew.act())
    warm = plain.act()
    await_(lambda: plain.started(warm) is not None)
    time.sleep(3)
    before = [cpu_s(worker.pid) for worker in workers]
    time.sleep(options.idle)
    spent = [(cpu_s(worker.pid) - was) * 60 / options.idle for worker, was in zip(workers, before, strict=True)]
    first = latency(crew.act, lambda job: started(crew, job)), latency(plain.act, plain.started)
    disk = Disk(folder)
    ours = latencies(options.rounds, crew.act, lambda job: started(crew, job), disk.write)
    theirs = latencies(options.rounds // 4, plain.act, plain.started)
    workers[1].kill()
    workers[1].wait()
    rows = [
        ["idle CPU, seconds a minute", "≤ 0.15", *(f"{each:.3f}" for each in spent)],
        [f"submit → started after {options.idle:g} s idle", "≤ 50 ms", *map(ms, first)],
        ["submit → started, p50", "≤ 5 ms", ms(statistics.median(ours)), ms(statistics.median(theirs))],
        ["submit → started, p99", "≤ 50 ms", ms(at_share(ours, 0.99)), ms(at_share(theirs, 0.99))],
        disk.row(),
        *steering(crew, options.rounds // 2),
    ]
    crew.close()
    show(rows)
    return rows


def steering(crew: Crew, rounds: int) -> list[list[str]]:
    """Cancel children that work, and ask for something small while the heavy queue is full."""
    cancels: list[float] = []
    for _ in range(5):
        job = crew.act("run_child", kind="dig")
        crew.until(lambda job=job: any(note.job == job and "child" in note.word for note in crew.notes()))
        begun = time.monotonic()
        ledger.cancel(crew.db, job)
        crew.until_ended(job)
        cancels.append(time.monotonic() - begun)
    digs = [crew.act("wait", kind="dig") for _ in range(3)]
    for dig in digs:
        crew.until_running(dig)
    beside = latencies(rounds, crew.act, lambda job: started(crew, job))
    for dig in digs:
        ledger.cancel(crew.db, dig)
    crew.until_ended(*digs)
    return [
        ["cancel of a running child process, slowest of 5", "≤ 1 s", f"{max(cancels):.2f} s", NONE],
        ["start beside a full heavy queue, slowest", "≤ 100 ms", ms(beside[-1]), ""],
    ]


def memory_only(rounds: int) -> list[list[str]]:
    """Time submissions in a home that lies in memory: what mlxq itself takes, whatever the disk does."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        crew = Crew(Home(Path(name)).make())
        crew.start()
        crew.until_ended(crew.act())
        taken = latencies(rounds, crew.act, lambda job: started(crew, job))
        crew.close()
    rows = [
        [
            "submit → started, home in memory, p50 and p99",
            "",
            f"{ms(statistics.median(taken))}, {ms(at_share(taken, 0.99))}",
            "",
        ]
    ]
    show(rows)
    return rows


def pulls(folder: Path) -> list[list[str]]:
    """Ask for something small while three models come in, then cancel them."""
    restarts, cancels = beside_pulls.measure(folder)
    rows = [
        ["restart while three pulls run → started, slowest", "≤ 100 ms", ms(max(restarts)), NONE],
        ["cancel of a running download, slowest of 3", "≤ 1 s", f"{max(cancels):.2f} s", NONE],
    ]
    show(rows)
    return rows


def parallel(folder: Path) -> list[str]:
    """Ask 100 times at once for the same."""
    crew = Crew(Home(folder / "parallel").make())
    askers = [subprocess.Popen([sys.executable, "-c", ASKER, str(crew.home.root)]) for _ in range(10)]
    codes = [asker.wait() for asker in askers]
    made = crew.count(*JobState)
    crew.close()
    return ["100 parallel submissions of one ukey", "1 row", f"{made} row" if not any(codes) else "failed", NONE]


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def at_share(taken: list[float], share: float) -> float:
    return taken[min(len(taken) - 1, int(len(taken) * share))]


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def show(rows: list[list[str]]) -> None:
    for row in rows:
        print("  ".join(row), file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    for name, default in (("jobs", 400), ("kills", 20), ("terms", 10), ("idle", 120), ("rounds", 40)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = idle_and_latency(folder, options)
        rows += [*memory_only(options.rounds), *pulls(folder), parallel(folder), *storms(folder, options)]
    table(["", "must", "mlxq", "plain SqliteHuey"], rows)


if __name__ == "__main__":
    main()
