"""Batches beside the engine asked directly, beside people, and through kills: `uv run python benchmarks/batch.py`.

Real worker, gateway and vllm-mlx over a tiny model. Each row is a ratio within one run, or a count; seconds of a busy
machine mean little. `--lines` is how many lines are killed through.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import psutil
from harness import table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import recovery
from support.mlxq_home import Mlxq, make_tiny, until
from support.ports import free_port

from state import secrets, settings
from state.batches import batches
from state.batches.batches import Batch
from state.paths import Home
from tasks.batches import capacity, control
from tasks.gateway.admission.priority import PAUSE_S
from tasks.system import process

CHAT = "/v1/chat/completions"
CONCURRENCY = 4
"""Of the tier: tests/support/mlxq_home.py."""
TOKENS = range(24, 73)
"""Of answers, all the same way in every run: answers of one length would end together, as no file's do."""
SHORT = range(16, 17)
"""Tokens of an answer where lines are counted and not timed."""
TURN_S = 0.4
"""Before each turn of an agent whose tools are quick; lines do not begin in between (PAUSE_S)."""
APART_S = PAUSE_S + 0.5
"""Before a request that finds lines at work."""
PAIRS = 7
"""Of a batch and the same lines asked directly: short ones, so that both meet the machine as it is then."""
BLOCKS = 4
"""How often it changes whether a batch runs, so that what else the machine does is in both figures."""
LOOK_S = 0.5
"""Between two looks at a batch whose seconds are in its row: what looks takes from what is measured."""
BESIDE = 400
"""Lines of a batch beside people: more than are answered meanwhile."""
KILLED = ("worker", "gateway", "fast")
ASKED = "asked.log"
COUNTED = """
import os
from tasks.engines import serving
argv, counted = serving.argv, os.environ["COUNTED"].split(":")
serving.argv = lambda served, at: (lambda words: [*words[:2], *counted, *words[2:]])(argv(served, at))
"""
"""Has the worker start engines by counted_engine.py."""
Row = tuple[str, str, str, bool]
"""What was done, what it must be, what it was, and whether that is reached."""


def prompt(n: int) -> str:
    return f"Say {n} words."


def request(n: int, tokens: range = TOKENS) -> dict[str, object]:
    return {
        "model": "fast",
        "max_tokens": tokens[n * 7919 % len(tokens)],
        "messages": [{"role": "user", "content": prompt(n)}],
    }


def lines(count: int, tokens: range) -> bytes:
    rows = ({"custom_id": f"c{n}", "method": "POST", "url": CHAT, "body": request(n, tokens)} for n in range(count))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def paid(times: Sequence[int], in_flight: int) -> Row:
    """Return how often the engine got lines again. `times`: how often it got each one."""
    again = sum(times) - len(times)
    most = f"{sum(count > 1 for count in times)} of the custom_ids, one at most {max(times)} times"
    what = "requests that the engine got again"
    return (what, f"≤ {in_flight} in flight", f"{again}: {most}", min(times) >= 1 and again <= in_flight)


def work(mlxq: Mlxq) -> None:
    """Start a worker whose engines note what they are asked."""
    program = Path(__file__).with_name("counted_engine.py")
    mlxq.work(COUNTED, COUNTED=f"{program}:{mlxq.home.root / ASKED}")


class BatchBench:
    """One home whose stack runs."""

    def __init__(self, mlxq: Mlxq) -> None:
        self.mlxq = mlxq
        self.keys = secrets.read(mlxq.home.secrets)
        self.gateway = f"http://127.0.0.1:{mlxq.one('gateway').port}"

    def create(self, count: int, tokens: range = TOKENS) -> Batch:
        path = self.mlxq.home.root / "lines.jsonl"
        path.write_bytes(lines(count, tokens))
        return control.create_from(self.mlxq.db, path)

    def now(self, batch: Batch) -> Batch:
        return batches.get(self.mlxq.db, batch.id)

    def await_end(self, batch: Batch) -> Batch:
        until(lambda: self.now(batch).ended, 400, LOOK_S)
        return self.now(batch)

    def throughput(self, count: int) -> Row:
        """Answer the same lines in a batch and by asking the engine, in turns; the median of the ratios counts."""
        ratios = [self.direct_s(count) / self.batch_s(count) for _ in range(PAIRS)]
        ratio = statistics.median(ratios)
        each = ", ".join(f"{one:.2f}" for one in ratios)
        return (f"throughput of {count} lines against the engine", "≥ 0.95", f"{ratio:.2f} ({each})", ratio >= 0.95)

    def batch_s(self, count: int) -> float:
        """Return the seconds from the first line sent to the last answer written."""
        ended = self.await_end(self.create(count))
        assert ended.succeeded == count, ended
        return (ended.finalizing_at or 0.0) - (ended.in_progress_at or 0.0)

    def direct_s(self, count: int) -> float:
        began = time.perf_counter()
        asyncio.run(self._direct(count))
        return time.perf_counter() - began

    async def _direct(self, count: int) -> None:
        url, key = f"http://127.0.0.1:{self.mlxq.port()}{CHAT}", self.keys[secrets.TIER]
        left = iter(range(count))

        async def ask(client: aiohttp.ClientSession) -> None:
            for n in left:
                async with client.post(url, json=request(n), headers={"Authorization": f"Bearer {key}"}) as answer:
                    assert answer.status == 200
                    await answer.read()

        async with aiohttp.ClientSession() as client:
            await asyncio.gather(*(ask(client) for _ in range(CONCURRENCY)))

    def people(self, rounds: int) -> list[Row]:
        """Ask with a stream while a batch runs, and while none does: as an agent's turns, and one now and then."""
        self.ttft_s(3, 0.0)  # what is loaded once
        return [
            self._beside(rounds, TURN_S, "turns"),
            self._beside(rounds, APART_S, "requests that interrupt lines"),
        ]

    def _beside(self, rounds: int, wait_s: float, what: str) -> Row:
        alone: list[float] = []
        beside: list[float] = []
        done = 0
        for _ in range(BLOCKS):
            alone += self.ttft_s(rounds // BLOCKS, wait_s)
            batch = self.create(BESIDE)
            until(lambda batch=batch: self.now(batch).succeeded)
            beside += self.ttft_s(rounds // BLOCKS, wait_s)
            control.cancel(self.mlxq.db, batch)
            done += self.await_end(batch).succeeded
        without, ratio = statistics.median(alone), statistics.median(beside) / statistics.median(alone)
        shown = f"{ratio:.2f} ({without * 1000:.0f} ms alone; the batches answered {done} lines meanwhile)"
        return (f"first token p50 of {what} beside a batch against without", "≤ 1.10", shown, ratio <= 1.10)

    def ttft_s(self, rounds: int, wait_s: float) -> list[float]:
        return asyncio.run(self._ttft_s(rounds, wait_s))

    async def _ttft_s(self, rounds: int, wait_s: float) -> list[float]:
        headers = {"Authorization": f"Bearer {self.keys[secrets.MASTER]}"}
        prompt = "Explain this in other words. " * 40
        taken: list[float] = []
        async with aiohttp.ClientSession() as client:
            for n in range(rounds):
                message = {"role": "user", "content": f"{n} {time.time()} {prompt}"}
                body = {"model": "fast", "max_tokens": 8, "stream": True, "messages": [message]}
                await asyncio.sleep(wait_s)
                began = time.perf_counter()
                async with client.post(f"{self.gateway}{CHAT}", json=body, headers=headers) as answer:
                    async for _ in answer.content:
                        taken.append(time.perf_counter() - began)
                        break
                    await answer.read()
        return taken

    def kills(self, count: int) -> list[Row]:
        """Kill worker, gateway and engine in turn, three times each, at even shares of the batch."""
        log = self.mlxq.home.root / ASKED
        before = len(log.read_text().splitlines())  # of the rows before, which ask the same
        batch = self.create(count, SHORT)
        victims = KILLED * 3
        for number, victim in enumerate(victims):
            goal = (number + 1) * count // (len(victims) + 1)
            until(lambda goal=goal: self.now(batch).succeeded + self.now(batch).errored >= goal, 200)
            self.kill(victim)
        ended = self.await_end(batch)
        asked = Counter(log.read_text().splitlines()[before:])
        times = [asked[prompt(n)] for n in range(count)]
        ids = Counter(row["custom_id"] for row in self.results(ended))
        once = sum(times == 1 for times in ids.values())
        shown = f"{once} of {count} once, {ended.succeeded} answered, {ended.errored} errors"
        return [
            (f"{count} lines, {len(victims)} kills: custom_ids", "each once", shown, once == len(ids) == count),
            paid(times, len(victims) * CONCURRENCY * capacity.AHEAD),
        ]

    def kill(self, victim: str) -> None:
        if victim == "worker":
            self.mlxq.kill_worker()
            work(self.mlxq)
        else:
            os.kill(process.decode(str(self.mlxq.one(victim).identity)).pid, signal.SIGKILL)

    def results(self, batch: Batch) -> list[dict[str, object]]:
        names = [name for name in (batch.output_file, batch.error_file) if name]
        paths = [self.mlxq.home.files / name for name in names]
        return [json.loads(text) for path in paths if path.exists() for text in path.read_text().splitlines()]

    def memory(self, count: int) -> list[Row]:
        """Have a large file checked and begun; read what the worker takes meanwhile."""
        assert self.mlxq.worker
        worker = psutil.Process(self.mlxq.worker.pid)
        self.await_end(self.create(50))  # what is loaded once
        before, most = worker.memory_info().rss, 0
        file_id, created_s = asyncio.run(self._upload_and_create(count))
        batch = next(row for row in batches.listing(self.mlxq.db) if row.input_file == file_id)
        while self.now(batch).succeeded < 200:
            most = max(most, worker.memory_info().rss)
            time.sleep(0.02)
        control.cancel(self.mlxq.db, batch)
        while not self.now(batch).ended:
            most = max(most, worker.memory_info().rss)
            time.sleep(0.02)
        more = (most - before) / 2**20
        return [
            (f"{count:,} lines: memory of the worker", "+ ≤ 30 MiB", f"+ {more:.1f} MiB", more <= 30),
            (f"{count:,} lines: create answers", "≤ 2 s", f"{created_s:.2f} s", created_s <= 2),
        ]

    async def _upload_and_create(self, count: int) -> tuple[str, float]:
        headers = {"Authorization": f"Bearer {self.keys[secrets.MASTER]}"}
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", lines(count, SHORT), filename="lines.jsonl")
        async with aiohttp.ClientSession() as client:
            async with client.post(f"{self.gateway}/v1/files", data=form, headers=headers) as answer:
                file = await answer.json()
            wanted = {"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"}
            began = time.perf_counter()
            async with client.post(f"{self.gateway}/v1/batches", json=wanted, headers=headers) as answer:
                assert answer.status == 200, await answer.text()
            return file["id"], time.perf_counter() - began


def main(words: Sequence[str] | None = None) -> int:
    """Run the rows that were named, or all; return 1 where one was missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="*", help="throughput, people, kills, memory")
    parser.add_argument("--lines", type=int, default=1000)
    options = parser.parse_args(words)
    chosen = options.rows or ["throughput", "people", "memory", "kills"]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="mlxq-batch-") as folder:
        home = Home(Path(folder) / "home").make()
        os.environ["MLXQ_HOME"] = str(home.root)
        mlxq = Mlxq(home)
        try:
            mlxq.serve(make_tiny(Path(folder) / "tiny"), "fast")
            port = free_port()
            settings.write(home, "litellm-port", port)
            work(mlxq)
            recovery.up_with_gateway(mlxq, port)
            bench = BatchBench(mlxq)
            for name in chosen:
                began = time.monotonic()
                made = {
                    "throughput": lambda: [bench.throughput(80)],
                    "people": lambda: bench.people(20),
                    "memory": lambda: bench.memory(100_000),
                    "kills": lambda: bench.kills(options.lines),
                }[name]()
                rows += made
                for row in made:
                    print(*row, file=sys.stderr)
                print(f"{name} took {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        finally:
            mlxq.close()
    table(
        ["What", "must be", "is", ""],
        [(what, must, shown, "reached" if ok else "MISSED") for what, must, shown, ok in rows],
    )
    return 0 if all(ok for *_, ok in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
