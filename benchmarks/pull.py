"""Pull from one local Hub with huggingface_hub and with mlxq, side by side.

    PYTHONPATH=tests uv run python benchmarks/pull.py

Both run as fresh processes against tests/hub/server.py. Wall time is the median of three rounds taken in turns.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil
from hub.client import Hub, running
from hub.model import make

from tasks.weights.formats import headers

ROUNDS = 3
RIVAL = """
import sys
from huggingface_hub import snapshot_download
snapshot_download(sys.argv[1], local_dir=sys.argv[2] + "/model")
"""
OURS = """
import resource, sys
from tasks.weights import client
from tasks.weights.source import Request
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
client.fetch(Request("hub:" + sys.argv[1], sys.argv[2]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


class Bench:
    """One Hub, one working folder."""

    def __init__(self, hub: Hub, work: Path) -> None:
        self.hub = hub
        self.work = work

    def start(self, program: str, repo: str) -> subprocess.Popen[str]:
        """Start one pull."""
        command = [sys.executable, "-c", program, repo, str(self.work)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def run(self, program: str, repo: str) -> tuple[int, float, str]:
        """Give exit code, seconds and output of one pull from the start of the process to its end."""
        begun = time.monotonic()
        process = self.start(program, repo)
        said = process.communicate()[0]
        return process.returncode, time.monotonic() - begun, said

    def until(self, process: subprocess.Popen[str], count: int) -> None:
        """Wait until so many bytes are on the disk."""
        while self.held() < count:
            assert process.poll() is None
            time.sleep(0.02)

    def held(self) -> int:
        """Give the bytes on the disk."""
        return sum(path.stat().st_blocks * 512 for path in self.work.rglob("*") if path.is_file())

    def clear(self) -> None:
        """Forget every pull."""
        for path in self.work.iterdir():
            shutil.rmtree(path)


def wall(bench: Bench) -> tuple[str, str]:
    """1 GB in 8 files; huggingface_hub is 1.0."""
    taken: dict[str, list[float]] = {RIVAL: [], OURS: []}
    for _ in range(ROUNDS):
        for program, seconds in taken.items():
            code, wall_s, _ = bench.run(program, "ok/eight")
            assert code == 0
            seconds.append(wall_s)
            bench.clear()
    rival, ours = statistics.median(taken[RIVAL]), statistics.median(taken[OURS])
    return f"1.0 ({rival:.1f} s)", f"{ours / rival:.2f} ({ours:.1f} s)"


def killed(bench: Bench, program: str) -> str:
    """SIGKILL at 40 % of one file of 1 GB, then run again: how much of what was on the disk came once more."""
    bench.hub.set(rate=(40 << 20) if program == RIVAL else (5 << 20))
    process = bench.start(program, "slow/one")
    bench.until(process, 400_000_000)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.send_signal(signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(family, 5)
    kept = bench.held()
    bench.hub.set(rate=4 << 30)
    assert bench.run(program, "slow/one")[0] == 0
    again = sum(line["sent"] for line in bench.hub.heard("cdn", "resolve"))
    model = sum(path.stat().st_size for path in bench.work.rglob("*") if path.name in wanted(bench))
    left = [path for path in bench.work.rglob("*") if path.suffix in {".incomplete", ".part"}]
    bench.clear()
    return f"{max(0, kept + again - model) / 1e6:.1f} MB + {len(left)} orphans"


def wanted(bench: Bench) -> set[str]:
    return {path.name for path in (bench.hub.root / "one").iterdir()}


def wrong(bench: Bench, program: str) -> str:
    """Wrong bytes of the right length."""
    code, _, _ = bench.run(program, "wrong/small")
    installed = [path for path in bench.work.rglob("*.safetensors") if ".partial" not in str(path)]
    bench.clear()
    return "reported OK" if code == 0 else ("installed" if installed else "refused, not installed")


def cancelled(bench: Bench, program: str) -> str:
    """Ctrl-C in the middle of a file, on a line of 40 MB/s."""
    bench.hub.set(rate=(40 << 20) if program == RIVAL else (5 << 20))
    process = bench.start(program, "slow/one")
    bench.until(process, 400_000_000)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate()
    taken = time.monotonic() - begun
    bench.clear()
    return f"{taken:.1f} s"


def memory(bench: Bench) -> str:
    """Measure by how much the process that asks for a pull grows."""
    said = bench.run(OURS, "ok/eight")[2]
    bench.clear()
    return f"+{int(said)} MiB"


def look(work: Path) -> str:
    """Inventory of 20 models."""
    folders = [make(work / f"model-{number}", shards=8) for number in range(20)]
    begun = time.monotonic()
    for folder in folders:
        headers.inventory(folder)
    return f"{(time.monotonic() - begun) * 1000:.0f} ms"


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        models = Path(place) / "models"
        make(models / "eight", shard_bytes=125_000_000, shards=8)
        make(models / "one", shard_bytes=1_000_000_000, shards=1)
        make(models / "small")
        work = Path(place) / "work"
        work.mkdir()
        with running(models) as hub:
            os.environ |= {"HF_HOME": str(Path(place) / "hf"), "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": ""}
            bench = Bench(hub, work)
            rows = [
                ("SIGKILL at 40 % of 1 GB, run again: fetched twice", killed(bench, RIVAL), killed(bench, OURS)),
                ("wrong bytes of the right length", wrong(bench, RIVAL), wrong(bench, OURS)),
                ("wall time, 1 GB in 8 files from loopback", *wall(bench)),
                ("cancel while fetching", cancelled(bench, RIVAL), cancelled(bench, OURS)),
                ("memory of the process that asks", "-", memory(bench)),
                ("inventory of 20 models", "-", look(Path(place) / "many")),
            ]
    print(f"| | huggingface_hub {version('huggingface_hub')} | mlxq |\n| --- | --- | --- |")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
